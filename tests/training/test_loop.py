"""Training loop: kept models and states, and its end."""

import json
from contextlib import closing, nullcontext
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from lamp_jax.config import Learning
from lamp_jax.errors import LampError
from lamp_jax.sharding import make_mesh
from lamp_jax.training.divergence import DivergedError
from lamp_jax.training.loop import Log, Progress, check_learning, train


class Run:
    """A training whose state is the number of updates, with given scores."""

    def __init__(self, tmp_path, scores, **settings):
        self.scores, self.kept, self.saved = iter(scores), [], []
        self.made, ends, every = 0, settings.pop("ends", None), settings.pop("every", 5.0)
        defaults = {"total_steps": 10, "evaluate_every": 2, "higher_is_better": True, "patience": 0}
        defaults["batches"] = range(settings.pop("begin", 0), 100)

        def update(state, batch):
            self.made += 1
            return state + 1, {"loss": jnp.float32(batch)}

        with closing(Log(tmp_path, every=every)) as log, pytest.raises(ends) if ends else nullcontext() as found:
            self.state, self.progress = train(
                settings.pop("state", 0),
                settings.pop("progress", Progress()),
                update=update,
                evaluate=lambda state: {"validation": next(self.scores)},
                keep_best=self.kept.append,
                save=lambda step, state, progress: self.saved.append((step, state, progress)),
                log=log,
                **(defaults | settings),
            )
        self.error = found.value if found else None


def test_the_best_state_is_kept_and_every_evaluation_is_saved(tmp_path):
    run = Run(tmp_path, [0.1, 0.5, 0.3, 0.5, 0.2])
    assert run.kept == [2, 4]
    assert [step for step, _, _ in run.saved] == [2, 4, 6, 8, 10]
    assert run.progress == Progress(step=10, best=0.5, best_step=4, since_best=3)


def test_lower_is_better_for_errors(tmp_path):
    assert Run(tmp_path, [0.5, 0.4, 0.6, 0.3, 0.9], higher_is_better=False).kept == [2, 4, 8]


def test_patience_ends_the_run(tmp_path):
    run = Run(tmp_path, [0.5, 0.4, 0.3, 0.9, 0.9], patience=2)
    assert run.state == 6


def test_a_run_always_ends_with_an_evaluation_and_a_save(tmp_path):
    run = Run(tmp_path, [0.1, 0.2, 0.3], total_steps=5)
    assert [step for step, _, _ in run.saved] == [2, 4, 5]


def test_a_resumed_run_ends_like_an_uninterrupted_run(tmp_path):
    complete = Run(tmp_path, [0.1, 0.5, 0.3, 0.5, 0.2])
    step, state, saved = complete.saved[2]
    rest = Run(tmp_path, [0.5, 0.2], state=state, progress=Progress(**saved), begin=step)
    assert (rest.state, rest.progress) == (complete.state, complete.progress)


def test_resuming_a_finished_run_does_nothing(tmp_path):
    run = Run(tmp_path, [], state=10, progress=Progress(step=10, best=0.5), begin=10)
    assert run.state == 10
    assert run.saved == []


def test_a_run_stopped_by_patience_stays_stopped(tmp_path):
    run = Run(tmp_path, [], state=6, progress=Progress(step=6, best=0.5, since_best=2), begin=6, patience=2)
    assert run.state == 6


def test_evaluations_are_in_the_log(tmp_path):
    Run(tmp_path, [0.1, 0.5, 0.3, 0.5, 0.2])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().split("\n") if line]
    assert [line["validation"] for line in lines] == [0.1, 0.5, 0.3, 0.5, 0.2]
    assert any((tmp_path / "tensorboard").iterdir())


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("score", [NAN, INF, -INF])
def test_a_score_that_is_not_finite_ends_the_run_before_it_is_kept(tmp_path, score):
    run = Run(tmp_path, [0.1, score, 0.3], ends=DivergedError)
    assert str(run.error) == f"step 4: validation is {score}"
    assert (run.kept, [step for step, _, _ in run.saved]) == ([2], [2])


@pytest.mark.parametrize("every", [0.0, 1e9])
@pytest.mark.parametrize("evaluate_every", [5, 50])
@pytest.mark.parametrize("bad", [1, 7, 20, 45])
def test_the_first_loss_that_is_not_finite_ends_the_run(tmp_path, bad, evaluate_every, every):
    losses = [float(step) for step in range(bad - 1)] + [INF] + [NAN] * 100
    run = Run(
        tmp_path,
        [0.1] * 20,
        batches=losses,
        total_steps=50,
        evaluate_every=evaluate_every,
        every=every,
        ends=DivergedError,
    )
    assert (run.error.step, str(run.error)) == (bad, f"step {bad}: loss is inf")
    assert [step for step, _, _ in run.saved] == list(range(evaluate_every, bad, evaluate_every))
    assert run.made <= bad + 15  # detected soon


def test_a_loss_that_is_not_finite_is_detected_before_saving_a_stopping_run(tmp_path):
    run = Run(
        tmp_path,
        [],
        batches=[1.0, 1.0, NAN, 1.0],
        must_stop=lambda step: step == 4,
        evaluate_every=10,
        ends=DivergedError,
    )
    assert (run.error.step, run.saved) == (3, [])


def test_measures_of_the_state_are_checked_before_saving(tmp_path):
    run = Run(tmp_path, [0.1], measure=lambda state: {"norm": INF if state > 3 else 1.0}, ends=DivergedError)
    assert str(run.error) == "step 4: norm is inf"
    assert (run.kept, [step for step, _, _ in run.saved]) == ([2], [2])


def test_the_log_of_a_run_that_diverges_is_json(tmp_path):
    Run(tmp_path, [], batches=[NAN, NAN], every=0.0, ends=DivergedError)
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [None, None]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        *(({"learning_rate": rate}, "--learning-rate") for rate in (NAN, INF, -1.0)),
        *(({"epochs": epochs}, "--epochs") for epochs in (NAN, INF, 0.0)),
        *(({"clip": clip}, "--clip") for clip in (NAN, 0.0)),
        *(({"weight_decay": decay}, "--weight-decay") for decay in (NAN, INF, -1.0)),
        *(({"warmup_ratio": ratio}, "--warmup-ratio") for ratio in (NAN, 1.5)),
        ({"batch_size": 0}, "--batch-size"),
    ],
    ids=str,
)
def test_invalid_optimization_options_are_an_error(change, name):
    with pytest.raises(LampError, match=f"^{name} .*: must be"):
        check_learning(replace(Learning(), **change), make_mesh(devices=jax.devices()[:1]))
