"""Processor time of commands that mostly start: `lamp --help`, and `lamp evaluate` of many questions."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lamp_jax.bench.cases import Case, Run, Side, Size
from lamp_jax.bench.commands import run_lamp
from lamp_jax.bench.models import SEED
from lamp_jax.bench.workers import Workers

QUESTIONS: dict[Size, int] = {"smoke": 20, "full": 2500}


def cases(size: Size, folder: Path, workers: Workers) -> Iterator[Case]:
    """Cases of the size, without peers; files are written to `folder`."""
    rounds = 5 if size == "full" else 1
    yield Case("lamp --help", Side("lamp", partial(command, ["--help"])), unit="CPU s", rounds=rounds)
    for task in ("LaMP-3", "LaMP-4"):
        words = ["evaluate", "--task", task, "--output", str(folder / f"{task}-scores.json"), "--force"]
        for name in ("golds", "predictions"):
            words += [f"--{name}", write_answers(folder / f"{task}-{name}.json", task, QUESTIONS[size], name)]
        title = f"lamp evaluate, {task}, {QUESTIONS[size]:,} questions"
        yield Case(title, Side("lamp", partial(command, words)), unit="CPU s", rounds=rounds)


def command(words: Sequence[str]) -> Run:
    return partial(run_lamp, words)


def write_answers(path: Path, task: str, count: int, name: str) -> str:
    """Writes a file of references or predictions: scores, or headlines of 4 to 12 words."""
    rng = np.random.default_rng([SEED, len(name)])

    def answer() -> str:
        if task == "LaMP-3":
            return str(rng.integers(1, 6))
        return " ".join(f"w{number}" for number in rng.integers(0, 99, rng.integers(4, 13)))

    golds = [{"id": str(number), "output": answer()} for number in range(count)]
    path.write_text(json.dumps({"task": task.replace("-", "_"), "golds": golds}))
    return str(path)
