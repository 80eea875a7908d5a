"""Adapters trained by two processes: equal to those of one process, also after SIGTERM."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from lamp_jax.artifacts.adapters import open_store
from tests.hosts.conftest import wait_for

pytestmark = pytest.mark.slow

MODEL = Path(__file__).parents[1] / "cases" / "tiny" / "t5_ft"
USERS_PER_STEP, UPDATES = 4, 10
"""40 users in ten cohorts."""


def train_words(data, store) -> tuple:
    files = ("--task", "LaMP-2", "--questions", data / "train.json", "--model", MODEL, "--output", store)
    size = ("--users-per-step", USERS_PER_STEP, "--tokens-per-device", 256, "--max-length", 32, "--target-length", 8)
    learning = ("--epochs", UPDATES, "--batch-size", 16, "--learning-rate", 1e-2, "--rank", 2, "--alpha", 8)
    return ("train-adapters", *files, *size, *learning)


def generate_words(data, store, output) -> tuple:
    files = ("--task", "LaMP-2", "--questions", data / "train.json", "--model", MODEL, "--output", output)
    size = ("--batch-size", 8, "--max-length", 64, "--num-retrieved", 0, "--decode", "labels")
    return ("generate", *files, *size, *(("--adapters", store) if store else ()))


@pytest.fixture(scope="module")
def runs(data, start, tmp_path_factory) -> dict[int, tuple[Path, str]]:
    """Output folder and printed output, for one and for two processes."""
    made = {}
    for number in (1, 2):
        folder = tmp_path_factory.mktemp(f"by{number}")
        commands = [train_words(data, folder / "store"), generate_words(data, folder / "store", folder / "own.json")]
        if number == 1:
            commands.append(generate_words(data, "", folder / "base.json"))
        statuses, printed = start(number, *commands).end()
        assert statuses == [[0] * len(commands)] * number, printed
        made[number] = folder, printed
    return made


def test_two_processes_train_the_same_users_to_the_same_adapters(runs):
    alone, together = (open_store(runs[number][0] / "store") for number in (1, 2))
    assert len(alone.entries) == 40
    assert list(together.entries) == list(alone.entries)
    users = list(alone.entries)
    for one, other in zip(alone.entries.values(), together.entries.values(), strict=True):
        assert (other.items, other.updates) == (one.items, one.updates)
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
    expected, found = alone.read(users), together.read(users)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)
    # Users differ by far more than the tolerance.
    assert max(np.abs(values[0] - values[1]).max() for name, values in expected.items() if name.endswith(".up")) > 1e-2


def test_two_processes_give_the_same_answers(runs):
    alone, together = (runs[number][0] / "own.json" for number in (1, 2))
    assert together.read_bytes() == alone.read_bytes()
    assert alone.read_bytes() != (runs[1][0] / "base.json").read_bytes()
    record = json.loads((runs[2][0] / "own.json.run.json").read_text())
    assert record["adapted"] == 40


def test_only_the_first_process_reports_results(runs):
    printed = runs[2][1].splitlines()
    for what in ("adapters of 40 users", "40 of 40 questions have an adapter"):
        assert [line.partition(":")[0] for line in printed if what in line] == ["0"]


def test_two_preempted_processes_resume_to_the_same_bytes(data, start, runs, tmp_path):
    store = tmp_path / "store"
    started = start(2, train_words(data, store))
    # jax checks for signals once a second, so the signal must come early.
    wait_for(lambda: (store / "run.json").exists(), started)
    started.kill(1, signal.SIGTERM)
    statuses, printed = started.end()
    assert statuses == [[0], [0]], printed
    assert printed.count("run the same command again") == 2
    assert not json.loads((store / "run.json").read_text())["finished"]
    assert len(open_store(store).entries) < 40
    statuses, printed = start(2, train_words(data, store)).end()
    assert statuses == [[0], [0]], printed
    assert json.loads((store / "run.json").read_text())["finished"]
    undisturbed = runs[2][0] / "store"
    names = sorted(path.name for path in undisturbed.iterdir() if path.suffix == ".safetensors")
    assert sorted(path.name for path in store.iterdir() if path.suffix == ".safetensors") == names
    for name in ("adapters.json", *names):
        assert (store / name).read_bytes() == (undisturbed / name).read_bytes()
