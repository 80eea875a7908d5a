"""One, two and four processes: the same result of a command."""

import json
import shutil
from pathlib import Path

import pytest

from lamp_jax.artifacts.selector import read_candidates
from tests.hosts.conftest import losses, train

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
TINY = ("--hidden-size", 16, "--intermediate-size", 32, "--num-layers", 1, "--num-heads", 2, "--vocab-size", 300)
LEARN = (
    "--dropout",
    0,
    "--batch-size",
    8,
    "--accumulation",
    1,
    "--epochs",
    2,
    "--learning-rate",
    1e-2,
    "--log-every",
    0,
)


def commands(data: Path, folder: Path) -> dict[str, tuple]:
    """All commands whose work several processes share, in pipeline order."""
    asked = ("--task", "LaMP-2", "--model", folder / "model", "--batch-size", 8)
    brief = ("--decode", "labels", "--num-retrieved", 2, "--max-length", 128)
    pool = ("none", f"file={data / 'dev.json'}")
    items = ("--merged", data / "train.json", "--max-length", 192, "--profile-size", 2)
    known = ("--questions", data / "train.json", "--feedback", folder / "likelihoods", "--profile-size", 2)
    learned = ("--task", "LaMP-2", "--encoder", "scratch", *TINY, *LEARN, "--max-length", 32, "--no-use-date")
    chosen = ("--train", folder / "pool.json", "--validation", folder / "pool.json", "--model", "scratch")
    named = {"feedback": folder / "retrievers", "questions": data / "dev.json"}
    return {
        "train": train(data, folder / "model"),
        "generate": ("generate", *asked, *brief, "--questions", data / "dev.json", "--output", folder / "answers.json"),
        "items": (
            *("feedback items", *asked, *items, "--decode", "labels"),
            *("--output", folder / "items"),
        ),
        "likelihoods": (
            *("feedback items", *asked, *items, "--reward", "likelihood", "--output", folder / "likelihoods"),
        ),
        "retrievers": (
            "feedback retrievers",
            *asked,
            *brief,
            "--pool",
            *pool,
            "--output",
            folder / "retrievers",
        ),
        "selector-data": (
            *("selector-data", "--feedback", named["feedback"], "--questions", named["questions"]),
            *("--golds", data / "raw" / "dev_outputs.json", "--output", folder / "pool.json"),
        ),
        "train-retriever": (
            *("train-retriever", *known, *learned, "--reward", "likelihood", "--held-out", 0.2),
            *("--output", folder / "encoder"),
        ),
        "train-selector": (
            *("train-selector", *chosen, *TINY, *LEARN, "--max-length", 64, "--attention-window", 16),
            *("--output", folder / "selector"),
        ),
        "rank": (
            *("rank", "--task", "LaMP-2", "--questions", data / "dev.json", "--ranker", "dense"),
            *("--encoder", folder / "encoder", "--max-length", 32, "--output", folder / "ranking.json"),
        ),
        "select": ("select", "--selector", folder / "selector", "--data", folder / "pool.json"),
        "another": train(data, folder / "another", "--seed", "{index}"),
    }


@pytest.fixture(scope="session")
def runs(data, start, uninterrupted, tmp_path_factory):
    """Function from a number of processes to output folder, statuses and printed output; each number runs once."""
    made = {}

    def run(number: int):
        assert made.get(number, True), "these processes have failed already"
        if number not in made:
            made[number] = ()
            folder = tmp_path_factory.mktemp(f"by{number}")
            named = commands(data, folder)
            if number == 1:
                shutil.copytree(uninterrupted, folder / "model")
            named["select"] += ("--output", folder / "selected.json")
            left_out = {1: {"rank", "select", "another"}, 2: set(), 4: named.keys() - {"train", "generate", "items"}}
            named = {stage: words for stage, words in named.items() if stage not in left_out[number]}
            statuses, output = start(number, *named.values()).end()
            made[number] = folder, [dict(zip(named, one, strict=True)) for one in statuses], output
        return made[number]

    return run


SEVERAL = pytest.mark.parametrize("number", [2, 4])
"""Four processes run only some of the commands, because starting them takes long."""


@pytest.mark.parametrize("number", [1, 2, 4])
def test_every_stage_exits_with_status_0_in_every_process(runs, number):
    _, statuses, output = runs(number)
    for one in statuses:
        assert not {stage for stage, status in one.items() if status and stage != "another"}, output


@pytest.mark.parametrize(("number", "trained"), [(2, "model"), (2, "encoder"), (2, "selector"), (4, "model")])
def test_losses_do_not_depend_on_the_number_of_processes(runs, number, trained):
    alone, together = (losses(runs(one)[0] / trained) for one in (1, number))
    assert len(alone) == len(together) > 3
    assert together == pytest.approx(alone, abs=TOLERANCE, rel=TOLERANCE)


FILES = ["answers.json", "items/items-0-of-1.jsonl", "retrievers/retrievers-0-of-1.jsonl"]


@pytest.mark.parametrize(("number", "file"), [*((2, file) for file in FILES), *((4, file) for file in FILES[:2])])
def test_answers_and_feedback_are_the_same_bytes(runs, number, file):
    alone, together = (runs(one)[0] / file for one in (1, number))
    assert together.read_bytes() == alone.read_bytes()


def test_likelihoods_are_the_same(runs):
    alone, together = (
        [json.loads(line) for line in (runs(one)[0] / "likelihoods/items-0-of-1.jsonl").read_text().splitlines()]
        for one in (1, 2)
    )
    for one, other in zip(alone, together, strict=True):
        assert (one["question"], one["item"]) == (other["question"], other["item"])
        assert other["metrics"] == pytest.approx(one["metrics"], rel=1e-4)


def test_two_processes_use_a_trained_selector_and_encoder(runs):
    folder = runs(2)[0]
    chosen = json.loads((folder / "selected.json").read_text())["golds"]
    assert len(chosen) == len(read_candidates(folder / "pool.json").questions)
    assert len(json.loads((folder / "ranking.json").read_text())) == len(chosen)


@SEVERAL
def test_only_the_first_process_prints(runs, number):
    lines = runs(number)[2].splitlines()
    printed = [line for line in lines if "best accuracy" in line]
    assert [line.partition(":")[0] for line in printed] == ["0"]


def test_a_process_that_waits_for_the_first_reports_it(runs):
    waiting = [line for line in runs(2)[2].splitlines() if "selector-data runs on the first process only" in line]
    assert [line.partition(":")[0] for line in waiting] == ["1"]


def test_processes_with_other_options_are_refused(runs):
    folder, statuses, output = runs(2)
    assert [one["another"] for one in statuses] == [1, 1]
    assert "give every process the same command" in output
    assert not (folder / "another").exists()
