"""Training of many users' adapters, cohort by cohort, each from its first update to its last."""

import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm.auto import tqdm

from lamp_jax.distributed import read, watch
from lamp_jax.errors import Preempted
from lamp_jax.inputs.microbatches import Cohort, Microbatch, UserExamples, fit_shapes, make_cohorts
from lamp_jax.models.generator import Generator
from lamp_jax.models.lora import adapter_shapes, adapter_specs, draw_adapter
from lamp_jax.runs.processes import is_first, on_first
from lamp_jax.runs.remote import CHECKPOINTS
from lamp_jax.settings import AdapterTraining
from lamp_jax.sharding import on_cpu, own_rows, place_batch, put, shards
from lamp_jax.steps.adapters import AdapterState, MicrobatchArrays, Users, make_adapter_update, start_users
from lamp_jax.training.checkpoints import Checkpoints
from lamp_jax.training.loop import Log, NoLog

_FEW_LAYERS = 4  # a CPU copies all residuals of a loop over layers; an unrolled program takes longer to compile
_SAVE_SECONDS = 600.0  # between the checkpoints of users who are still in training


class LearnedAdapters(NamedTuple):
    """Trained adapters of users."""

    users: Sequence[UserExamples]
    adapters: dict[str, np.ndarray]
    """[n, ...]"""
    losses: np.ndarray
    """[n]: mean of the last epoch, nats per token; NaN for users whose training has diverged."""


class CohortStart(NamedTuple):
    """Position in a cohort's microbatches from which its training continues."""

    made: tuple[int, ...] = ()
    """Number of updates of each user before the first of the microbatches; empty for 0."""
    computed: int = 0
    """Number of microbatches already computed."""


class AdapterCohorts:
    """Cohorts of all users of a run, and their common base model, on the current mesh."""

    def __init__(self, options: AdapterTraining, model: Generator, users: Sequence[UserExamples]):
        self.options, self.rules, self.devices = options, model.rules, shards(model.rules.batch)
        self.shapes, self._specs = adapter_shapes(model, options.lora), adapter_specs(model, options.lora)
        if on_cpu() and model.depth <= _FEW_LAYERS:
            model.loop = "unrolled"
        graph, self._base = nnx.split(model)
        shared = options.shared != "no"
        self._update = make_adapter_update(
            graph, options.learning, options.lora, seed=options.seed, shared=shared, rules=self.rules
        )
        room = -(-min(options.users_per_step, len(users)) // self.devices) * self.devices
        batch = options.learning.batch_size
        most = -(-batch // self.devices) if shared else room // self.devices * batch
        rows = (row for one in users for row in one.examples)
        shapes = fit_shapes(rows, tokens=options.tokens_per_device, most=most)
        self.all = [
            Cohort(members, room, shapes, options.learning, options.seed, self.devices, shared)
            for members in make_cohorts(users, room, options.learning)
        ]
        self.computed, self.real = 0, 0  # this process's computed tokens, and those that are not padding

    def start(self, cohort: Cohort) -> AdapterState:
        """State before a cohort's first update. A user's initial values depend on the seed and the user's id alone."""
        adapters = {name: np.zeros((cohort.size, *shape), np.float32) for name, shape in self.shapes.items()}
        for place, one in zip(cohort.places, cohort.users, strict=True):
            rng = np.random.default_rng([self.options.seed, one.key])
            for name, values in draw_adapter(rng, self.shapes).items():
                adapters[name][slice(None) if cohort.shared else place] = values
        placed = {name: put(values, self._specs[name]) for name, values in adapters.items()}
        return start_users(placed, self.options.learning, self.rules)

    def form(self, cohort: Cohort) -> AdapterState:
        """Shapes and shardings of a cohort's state, which is replicated where its users do not divide over the
        devices."""
        mesh, divides = jax.sharding.get_mesh(), cohort.size % self.devices == 0

        def place(shape: tuple[int, ...], dtype: Any, spec: P) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec if divides else P()))

        def start() -> AdapterState:
            shapes = {name: (self.devices, *shape) for name, shape in self.shapes.items()}
            adapters = {
                name: jnp.zeros(one, jnp.float32, out_sharding=self._specs[name]) for name, one in shapes.items()
            }
            return start_users(adapters, self.options.learning, self.rules)

        return jax.tree.map(
            lambda leaf: place((cohort.size, *leaf.shape[1:]), leaf.dtype, leaf.sharding.spec), jax.eval_shape(start)
        )

    def move(self, state: AdapterState, old: Cohort, cohort: Cohort) -> AdapterState:
        """State of a cohort on another number of devices, without the gradients of incomplete updates."""
        sources, places = (slice(None) if one.shared else one.places for one in (old, cohort))

        def move(values: jax.Array, form: jax.ShapeDtypeStruct) -> jax.Array:
            if values.shape == form.shape:
                return values
            found = np.zeros(form.shape, form.dtype)
            found[places] = read(values)[:1] if cohort.shared else read(values)[sources]
            return put(found, form.sharding.spec)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]

        state = jax.tree.map(move, state, self.form(cohort))
        gradient = jax.tree.map(jnp.zeros_like, state.gradient)
        return state._replace(gradient=gradient, partial=jnp.zeros_like(state.partial))

    def compute(
        self, state: AdapterState, cohort: Cohort, microbatch: Microbatch, where: tuple[int, int, int]
    ) -> AdapterState:
        """State after one microbatch of a cohort; `where` identifies it among all of a run, for dropout."""
        users = (cohort.totals, cohort.warmups, microbatch.ends, microbatch.counts)
        arrays = cohort.fill(microbatch, own_rows)
        self.computed += arrays.source.size + arrays.target.size
        self.real += np.count_nonzero(arrays.source >= 0) + np.count_nonzero(arrays.target >= 0)
        placed = Users(*(put(values, self.rules.spec("batch")) for values in users))
        rows = MicrobatchArrays(*place_batch(tuple(arrays), rules=self.rules))
        return self._update(state, self._base, rows, placed, np.array(where, np.int32), np.bool_(microbatch.ends.any()))

    def finish(self, state: AdapterState, cohort: Cohort) -> LearnedAdapters:
        """Adapters and losses of a cohort's users."""
        adapters = {name: read(values)[cohort.places] for name, values in state.adapters.items()}
        losses = read(state.loss) / np.maximum(cohort.counted, 1)
        return LearnedAdapters(cohort.users, adapters, losses[cohort.places])

    @property
    def padding(self) -> float:
        """Share of padding in all computed tokens."""
        return 1 - self.real / self.computed if self.computed else 0.0


def adapt(
    output: Path,
    cohorts: AdapterCohorts,
    *,
    known: Callable[[Sequence[str]], Container[str]],
    keep: Callable[[LearnedAdapters], None],
) -> None:
    """Trains the users that are not `known`, and passes those of each cohort to `keep`; logs and checkpoints in
    `output`.

    `known` returns those of some users who need no training. A stopped cohort resumes after its newest checkpoint.
    Raises Preempted, with all progress on disk, after SIGTERM.
    """
    users = sum(len(cohort.users) for cohort in cohorts.all)
    with (
        watch() as must_stop,
        closing(Checkpoints(output / CHECKPOINTS)) as checkpoints,
        closing(Log(output) if is_first() else NoLog()) as log,
        tqdm(total=users, desc="adapters", unit="user", disable=None) as bar,
    ):
        made, stops = 0, map(must_stop, count(1))  # called with consecutive numbers
        for number, cohort in enumerate(cohorts.all):
            made += sum(one.updates(cohort.learning) for one in cohort.users)
            done = known([one.user for one in cohort.users])
            if all(one.user in done for one in cohort.users):
                bar.update(len(cohort.users))
            else:
                learned, stop = _learn(cohorts, number, checkpoints, stops, bar)
                keep(learned)
                losses = learned.losses[np.isfinite(learned.losses)]
                log.write(made, {"padding": cohorts.padding} | ({"loss": float(losses.mean())} if len(losses) else {}))
                if stop and number + 1 < len(cohorts.all):
                    raise Preempted


def _learn(
    cohorts: AdapterCohorts, number: int, checkpoints: Checkpoints, stops: Iterator[bool], bar: tqdm
) -> tuple[LearnedAdapters, bool]:
    """Trains a cohort; returns its adapters, and whether to stop after it."""
    cohort = cohorts.all[number]
    state, start = _resume(checkpoints, cohorts, number)
    left, stop, saved, steps = len(cohort.users), False, time.monotonic(), count(checkpoints.step + 1)
    for place, microbatch in enumerate(cohort.microbatches(start.made)):
        bar.update(left - microbatch.left)
        left = microbatch.left
        if place < start.computed:
            continue
        state = cohorts.compute(state, cohort, microbatch, (number, sum(start.made), place))
        stop = next(stops)
        if left and (stop or _is_due(saved)):
            progress = {"block": number, "users": cohort.size, "devices": cohort.devices, "part": place + 1}
            # Numbered consecutively: the number of microbatches depends on the mesh.
            checkpoints.save(next(steps), state, {**progress, "made": start.made})
            saved = time.monotonic()
        if left and stop:
            raise Preempted
    return cohorts.finish(state, cohort), stop


def _resume(checkpoints: Checkpoints, cohorts: AdapterCohorts, number: int) -> tuple[AdapterState, CohortStart]:
    """State and position of a cohort, from the newest checkpoint if that is of this cohort."""
    cohort, progress = cohorts.all[number], checkpoints.progress
    if progress is None or progress["block"] != number:
        return cohorts.start(cohort), CohortStart()
    old = replace(cohort, size=progress["users"], devices=progress["devices"])
    restored = checkpoints.restore(cohorts.form(old))
    assert restored is not None  # it has progress
    state, start = restored[0], CohortStart(tuple(progress["made"]), progress["part"])
    if old.devices != cohort.devices:  # other microbatches
        state = cohorts.move(state, old, cohort)
        start = CohortStart(tuple(read(state.step)[cohort.places].tolist()))
    print(f"resuming cohort {number + 1} of {len(cohorts.all)}")
    return state, start


def _is_due(saved: float) -> bool:
    return on_first(lambda: time.monotonic() - saved > _SAVE_SECONDS)
