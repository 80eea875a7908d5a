"""Training loop: updates, evaluations, the best model and the last state."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from lamp_jax.config import Learning, Optimization
from lamp_jax.distributed import watch
from lamp_jax.errors import LampError, Preempted
from lamp_jax.inputs.batches import Batches, read_ahead
from lamp_jax.runs.processes import is_first
from lamp_jax.runs.remote import CHECKPOINTS
from lamp_jax.sharding import Rules, place_batch
from lamp_jax.steps.update import LossSum, TrainState, make_optimizer, make_update, start
from lamp_jax.training.ahead import compiled_ahead, first_steps
from lamp_jax.training.checkpoints import Checkpoints
from lamp_jax.training.divergence import DIVERGED, DivergedError, PendingMetrics, check, end_diverged, norm_of

_LINE_SECONDS = 60.0  # between lines of progress without a terminal for the bar

WAIT, UPDATE = "wait for data", "update"
"""Annotations of the two parts of a step in a profiler's trace."""

Shapes = tuple[tuple[int, ...], ...]

RUN_FILES = (DIVERGED, "metrics.jsonl", "tensorboard/*", f"{CHECKPOINTS}/*")
"""Files of `fit` in a run's directory, besides the best model."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run: updates made, best validation score so far, evaluations since then."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    since_best: int = 0


def check_optimization(learning: Optimization) -> None:
    """LampError for invalid values of the optimization."""
    for name, fits, wanted in (
        ("batch_size", learning.batch_size >= 1, "1 or more"),
        ("epochs", 0 < learning.epochs < math.inf, "more than 0, and finite"),
        ("learning_rate", 0 <= learning.learning_rate < math.inf, "0 or more, and finite"),
        ("warmup_ratio", 0 <= learning.warmup_ratio <= 1, "from 0 to 1"),
        ("weight_decay", 0 <= learning.weight_decay < math.inf, "0 or more, and finite"),
        ("clip", learning.clip > 0, "more than 0"),
    ):
        if not fits:
            raise LampError(f"--{name.replace('_', '-')} {getattr(learning, name)}: must be {wanted}")


def check_learning(learning: Learning, mesh: Mesh) -> None:
    """LampError for invalid values, also of batches that do not divide into microbatches or these over devices."""
    check_optimization(learning)
    if learning.accumulation < 1 or learning.batch_size % learning.accumulation:
        raise LampError(
            f"--batch-size {learning.batch_size} is not a multiple of --accumulation {learning.accumulation}"
        )
    microbatch, shards = learning.batch_size // learning.accumulation, mesh.shape["data"]
    if microbatch % shards:
        step = learning.accumulation * shards
        below = learning.batch_size // step * step
        fitting = [size for size in (below, below + step) if size]
        raise LampError(
            f"--batch-size {learning.batch_size} with --accumulation {learning.accumulation} gives microbatches of "
            f"{microbatch}, which do not divide over {shards} data shards; use --batch-size "
            f"{' or '.join(map(str, fitting))}, another --accumulation, or another mesh "
            "(--data-parallel, --model-parallel)"
        )


def fit(
    output: Path,
    params: Any,
    loss_sum: LossSum,
    batches: Batches,
    learning: Learning,
    *,
    seed: int,
    rules: Rules,
    evaluate: Callable[[Any], Mapping[str, float]],
    higher_is_better: bool,
    keep_best: Callable[[Any], None],
) -> Progress:
    """Trains the parameters on the current mesh; `train` with checkpoints and logs in `output`.

    An existing run resumes after its newest checkpoint. `evaluate` and `keep_best` take the parameters. Raises
    Preempted, with all progress on disk, after SIGTERM, and LampError for non-finite numbers: updates after the last
    checkpoint are lost, and `check_converging` refuses the next command.
    """
    total_steps = math.ceil(learning.epochs * len(batches))
    optimizer = make_optimizer(learning, total_steps)
    update = make_update(loss_sum, optimizer, seed=seed, accumulation=learning.accumulation, rules=rules)
    state, progress = start(params, optimizer), Progress()
    compiled: set[Shapes] = set()

    def update_on_devices(state: TrainState, batch: Sequence[np.ndarray]) -> tuple[TrainState, dict[str, jax.Array]]:
        shapes = _shapes(batch)
        compiled.add(shapes)
        wait(shapes)
        return update(state, place_batch(tuple(batch), rules=rules))

    with (
        watch() as must_stop,  # outermost: active until all is on disk
        ExitStack() as stack,
        closing(Checkpoints(output / CHECKPOINTS)) as checkpoints,
        closing(Log(output, every=learning.log_every) if is_first() else NoLog()) as log,
    ):
        if restored := checkpoints.restore(jax.tree.map(abstract, state)):
            state, progress = restored[0], Progress(**restored[1])
            print(f"{output}: resuming after step {progress.step} of {total_steps}")
        kept = progress

        def lower(step: int) -> tuple[Shapes, jax.stages.Lowered]:
            batch = tuple(batches[step])
            return _shapes(batch), update.lower(state, place_batch(batch, rules=rules))

        steps = first_steps(batches, progress.step, total_steps)
        wait = stack.enter_context(compiled_ahead(map(lower, steps if len(steps) > 1 else ())))

        def save(step: int, state: TrainState, progress: dict[str, Any]) -> None:
            nonlocal kept
            checkpoints.save(step, state, progress)
            kept = Progress(**progress)

        try:
            _, progress = train(
                state,
                progress,
                update=update_on_devices,
                batches=read_ahead(batches, progress.step, total_steps),
                total_steps=total_steps,
                evaluate_every=max(1, round(learning.evaluate_every * len(batches))),
                measure=lambda state: norm_of(state.params),
                evaluate=lambda state: evaluate(state.params),
                higher_is_better=higher_is_better,
                keep_best=lambda state: keep_best(state.params),
                save=save,
                patience=learning.patience,
                log=log,
                must_stop=must_stop,
            )
        except DivergedError as error:
            raise end_diverged(output, error, learning, saved=kept.step, best=kept.best_step) from None
    print(f"{output}: programs compiled: {len(compiled)}, for batches of {', '.join(map(_written, sorted(compiled)))}")
    return progress


def _shapes(batch: Sequence[np.ndarray]) -> Shapes:
    """Shapes of a batch's arrays, for each of which the update is compiled once."""
    return tuple(rows.shape for rows in batch)


def _written(shapes: Shapes) -> str:
    """Shapes in words: "8x256 8x32"."""
    return " ".join("x".join(map(str, shape)) for shape in shapes)


def abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    """Shape, type and sharding of an array, as which a checkpoint is restored."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def train(
    state: Any,
    progress: Progress,
    *,
    update: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]],
    batches: Iterable[Any],
    total_steps: int,
    evaluate_every: int,
    measure: Callable[[Any], Mapping[str, Any]] = lambda state: {},
    evaluate: Callable[[Any], Mapping[str, float]],
    higher_is_better: bool,
    keep_best: Callable[[Any], None],
    save: Callable[[int, Any, dict[str, Any]], None],
    patience: int,
    log: "Log",
    must_stop: Callable[[int], bool] = lambda step: False,
) -> tuple[Any, Progress]:
    """Runs updates `progress.step + 1` to `total_steps` over `batches` (which begin at `progress.step`).

    After every `evaluate_every` updates, and at the end: `evaluate`, `keep_best` where its "validation" is the best so
    far, `save`. Ends early after `patience` evaluations without a better score (0: never). If `must_stop` is true after
    a step, the state is saved and Preempted raised, unless it was the last step. Before anything is saved, all losses
    so far and the values of `measure` and `evaluate` must be finite: DivergedError, with the first step at which they
    are not.
    """
    unread = PendingMetrics()

    def check_all(step: int, state: Any) -> None:
        unread.look()
        check(step, measure(state))

    with tqdm(total=total_steps, initial=progress.step, desc="train", unit="step", disable=None) as bar:
        for batch in _traced(batches):
            if progress.step >= total_steps or 0 < patience <= progress.since_best:
                break
            step = progress.step + 1
            with jax.profiler.StepTraceAnnotation(UPDATE, step_num=step):
                state, metrics = update(state, batch)
            progress = replace(progress, step=step)
            bar.update()
            unread.add(step, metrics)
            log.step(step, metrics, bar)
            evaluated = step % evaluate_every == 0 or step == total_steps
            if evaluated:
                check_all(step, state)
                found = evaluate(state)
                check(step, found)
                score = found["validation"]
                better = progress.best is None or (score > progress.best if higher_is_better else score < progress.best)
                if better:
                    keep_best(state)
                since = progress.since_best + 1
                progress = Progress(step, score, step) if better else replace(progress, since_best=since)
                save(step, state, asdict(progress))
                log.write(step, {**found, "best": progress.best, "best_step": progress.best_step})
            if must_stop(step) and step < total_steps:
                if not evaluated:
                    check_all(step, state)
                    save(step, state, asdict(progress))
                raise Preempted
    return state, progress


def _traced(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches, with the wait for each as an annotation in the profiler's trace."""
    numbered = iter(batches)
    while True:
        with jax.profiler.TraceAnnotation(WAIT):
            batch = next(numbered, None)
        if batch is None:
            return
        yield batch


class Log:
    """Log of a run's metrics: to the terminal, to `metrics.jsonl` and to TensorBoard, in one directory."""

    def __init__(self, directory: Path, *, every: float = 5.0):
        """Updates' metrics are logged every `every` seconds."""
        from tensorboardX import SummaryWriter

        self._file = open(directory / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (open for the entire run)
        self._board = SummaryWriter(str(directory / "tensorboard"))
        self._every, self._last, self._last_line = every, time.monotonic(), time.monotonic()

    def step(self, step: int, metrics: dict[str, jax.Array], bar: tqdm) -> None:
        """Logs an update's metrics, but not too often: reading them waits for the device."""
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        values = {name: float(value) for name, value in metrics.items()}
        self._note(step, values)
        bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})
        if bar.disable and now - self._last_line > _LINE_SECONDS:
            self._last_line = now
            _show(f"step {step} of {bar.total}", values)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Logs values, also to the terminal."""
        _show(f"step {step}", values)
        self._note(step, values)

    def _note(self, step: int, values: dict[str, Any]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


class NoLog(Log):
    """Log without effect, of processes other than the first."""

    def __init__(self):
        pass

    def step(self, step: int, metrics: dict[str, jax.Array], bar: tqdm) -> None:
        pass

    def write(self, step: int, values: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def _show(where: str, values: dict[str, Any]) -> None:
    tqdm.write(f"{where}: " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()), file=sys.stderr)
