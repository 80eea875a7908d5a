"""Diverging trainings of every kind, on all devices: they stop, stop again when repeated, and keep good checkpoints."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from lamp_jax import cli
from lamp_jax.artifacts.selector import write_candidates
from lamp_jax.training.divergence import DIVERGED
from tests.stages.test_selector import MODEL, SMALL, informative_candidates
from tests.stages.test_train_retriever import make_feedback, make_questions
from tests.stages.test_train_retriever import words as retriever_words

pytestmark = pytest.mark.slow

# The first update's learning rate is 0; the second's is so large that no parameter remains finite.
DIVERGING = ("--epochs", 4, "--learning-rate", "1e30", "--warmup-ratio", 0.5, "--log-every", "1e9")
DIVERGING += ("--batch-size", 8, "--accumulation", 1)
EVERY_UPDATE = ("--evaluate-every", "1e-9")
KINDS = ("train", "kd", "rl", "selector")


def lamp(*words) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "questions.json").write_text(json.dumps(list(make_questions())))
    (folder / "feedback.json").write_text(json.dumps(make_feedback()))
    write_candidates(folder / "pool.json", informative_candidates(16, seed=0, shuffled=False))
    return folder


def words(kind, data, output, *more):
    given = {
        "train": (
            *("train", "--task", "LaMP-2", "--train", data / "questions.json", "--validation", data / "questions.json"),
            *("--model", MODEL, "--validation-size", 8, "--decode", "labels", "--max-length", 64),
            *("--output", output),
        ),
        "kd": retriever_words(data, output),
        "rl": retriever_words(data, output, "--method", "rl"),
        "selector": (
            *("train-selector", "--train", data / "pool.json", "--validation", data / "pool.json", *SMALL),
            *("--model", "scratch", "--max-length", 16, "--attention-window", 16, "--output", output),
        ),
    }
    return (*given[kind], *DIVERGING, *more)


@pytest.mark.parametrize("kind", KINDS)
def test_good_checkpoints_are_kept_and_the_same_command_names_the_remedy(kind, data, tmp_path, capsys):
    output = tmp_path / "run"
    assert lamp(*words(kind, data, output, *EVERY_UPDATE)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{output}: the training has diverged at step 2: norm of the parameters is inf" in error
    assert "the checkpoint of step 1 is kept, and the best model, of step 1; try a --learning-rate below 1e+30" in error
    assert [path.name for path in (output / "checkpoints").iterdir() if path.name.isdigit()] == ["1"]
    assert all(np.isfinite(values).all() for values in load_file(output / "model.safetensors").values())

    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert lamp(*words(kind, data, output, *EVERY_UPDATE)) == 1
    assert error.removeprefix("lamp: ") in capsys.readouterr().err
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert not json.loads((output / "run.json").read_text())["finished"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_that_is_not_finite_is_named_long_before_an_evaluation(kind, data, tmp_path, capsys):
    output = tmp_path / "run"
    assert lamp(*words(kind, data, output, "--evaluate-every", 4)) == 1
    error = capsys.readouterr().err
    assert re.search(rf"{output}: the training has diverged at step 3: (gradient_norm|loss) is (nan|inf)", error)
    assert "nothing had been saved before; try a --learning-rate below 1e+30" in error
    assert not (output / "model.safetensors").exists()
    assert not any(path.name.isdigit() for path in (output / "checkpoints").iterdir())


def test_force_and_a_lower_learning_rate_repeat_the_training(data, tmp_path):
    output = tmp_path / "run"
    assert lamp(*words("kd", data, output)) == 1
    assert (output / DIVERGED).exists()
    assert lamp(*words("kd", data, output, "--learning-rate", "1e-3", "--force")) == 0
    assert not (output / DIVERGED).exists()
    assert json.loads((output / "run.json").read_text())["finished"]


def test_a_diverged_forced_run_is_reported_again_and_not_resumed(data, tmp_path, capsys):
    output = tmp_path / "run"
    assert lamp(*words("kd", data, output, "--learning-rate", "1e-3")) == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert lamp(*words("kd", data, output, *EVERY_UPDATE, "--force")) == 1
    first = capsys.readouterr().err.splitlines()[-1]
    assert lamp(*words("kd", data, output, *EVERY_UPDATE, "--force")) == 1
    printed = capsys.readouterr()
    assert first.removeprefix("lamp: ") in printed.err
    assert "resuming after" not in printed.out
    assert {path: path.read_bytes() for path in before} == before


def test_the_training_is_repeated_if_the_divergence_note_is_removed(data, tmp_path, capsys):
    output = tmp_path / "run"
    assert lamp(*words("kd", data, output, *EVERY_UPDATE)) == 1
    first = capsys.readouterr().err.splitlines()[-1]
    (output / DIVERGED).write_text("[]")
    assert lamp(*words("kd", data, output, *EVERY_UPDATE)) == 1
    assert f"to try the same again, remove {output / DIVERGED}" in capsys.readouterr().err
    (output / DIVERGED).unlink()
    assert lamp(*words("kd", data, output, *EVERY_UPDATE)) == 1
    printed = capsys.readouterr()
    assert "resuming after step 1" in printed.out
    assert printed.err.splitlines()[-1] == first
