"""Questions with profiles of random words, in LaMP-3's form."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lamp_jax.bench.models import SEED
from lamp_jax.data.files import Question, question_record
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-3")
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


class Words:
    """Random words of 2 to 10 letters, distributed by Zipf's law."""

    def __init__(self, vocabulary: int = 50_000, seed: int = SEED):
        self._rng = np.random.default_rng(seed)
        self._words = np.array(
            ["".join(self._rng.choice(_LETTERS, self._rng.integers(2, 11))) for _ in range(vocabulary)]
        )
        chances = 1 / np.arange(1, vocabulary + 1)
        self._sums = np.cumsum(chances / chances.sum())

    def texts(self, number: int, length: int) -> list[str]:
        """Texts of `length` words."""
        drawn = np.searchsorted(self._sums, self._rng.random((number, length)))
        return [" ".join(row) for row in self._words[np.minimum(drawn, len(self._words) - 1)].tolist()]


def draw_questions(count: int, *, items: int, words: int, vocabulary: int = 50_000) -> Iterator[Question]:
    """LaMP-3 questions whose profiles have `items` items of `words` words."""
    source = Words(vocabulary)
    for number in range(count):
        query, *documents = source.texts(1 + items, words)
        profile = tuple(
            {"id": f"{number}-{place}", "text": text, "score": str(1 + place % 5), "date": "2020-01-01"}
            for place, text in enumerate(documents)
        )
        yield Question(str(number), TASK.input_for(query), profile)


def write_questions(path: Path, questions: Iterator[Question]) -> None:
    """File of questions as the benchmark's own, one at a time."""
    with open(path, "w", encoding="utf-8") as file:
        for number, question in enumerate(questions):
            record: Any = question_record(question)
            file.write(("[" if not number else ",\n") + json.dumps(record))
        file.write("]")
