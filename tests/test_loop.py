"""What the training loop keeps, and when it ends."""

import json

import jax.numpy as jnp

from lamp_jax.loop import Log, Progress, train


class Run:
    """A run whose state counts its updates and whose scores are given."""

    def __init__(self, tmp_path, scores, **settings):
        self.scores, self.kept, self.saved = iter(scores), [], []
        log = Log(tmp_path)
        defaults = {"total_steps": 10, "evaluate_every": 2, "higher_is_better": True, "patience": 0}
        self.state, self.progress = train(
            settings.pop("state", 0),
            settings.pop("progress", Progress()),
            update=lambda state, batch: (state + 1, {"loss": jnp.float32(batch)}),
            batches=range(settings.pop("begin", 0), 100),
            evaluate=lambda state: {"validation": next(self.scores)},
            keep_best=self.kept.append,
            save=lambda step, state, progress: self.saved.append((step, state, progress)),
            log=log,
            **(defaults | settings),
        )
        log.close()


def test_the_best_is_kept_and_every_evaluation_saved(tmp_path):
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


def test_a_resumed_run_ends_as_the_undisturbed_one(tmp_path):
    whole = Run(tmp_path, [0.1, 0.5, 0.3, 0.5, 0.2])
    step, state, saved = whole.saved[2]
    rest = Run(tmp_path, [0.5, 0.2], state=state, progress=Progress(**saved), begin=step)
    assert (rest.state, rest.progress) == (whole.state, whole.progress)


def test_a_finished_run_resumes_to_nothing(tmp_path):
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


def test_a_score_that_is_no_number_is_never_better(tmp_path):
    score = float("nan")
    assert Run(tmp_path, [0.1, score, 0.3, score, 0.2]).kept == [2, 6]
