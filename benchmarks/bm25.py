"""Speedup of ranking by BM25 against rank_bm25, question by question: `python benchmarks/bm25.py`.

500 questions with profiles of 200 items of 80 words (Zipf's law), in memory. The time of lamp includes reading the
items' documents, finding equal profiles, starting processes, and sending texts and scores. Runs are interleaved,
because the machine may be shared; the medians are printed, and the ratios of runs of the same round.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from rank_bm25 import BM25Okapi

from lamp_jax.data.files import Question
from lamp_jax.retrieval.bm25 import rank_bm25
from lamp_jax.retrieval.scored import best_first
from lamp_jax.runs.workers import available_cores
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-3")
VOCABULARY = 50_000
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def make_questions(count: int, *, items: int, words: int, query_words: int, per_profile: int) -> list[Question]:
    """LaMP-3 questions; `per_profile` of them in a row have the same profile."""
    rng = np.random.default_rng(0)
    vocabulary = np.array(["".join(rng.choice(LETTERS, rng.integers(2, 11))) for _ in range(VOCABULARY)])
    chances = 1 / np.arange(1, VOCABULARY + 1)
    chances /= chances.sum()

    def texts(number: int, length: int) -> list[str]:
        return [" ".join(row) for row in vocabulary[rng.choice(VOCABULARY, (number, length), p=chances)].tolist()]

    questions = []
    for first in range(0, count, per_profile):
        documents = texts(items, words)
        for number, query in enumerate(texts(per_profile, query_words), start=first):
            # New dictionaries each time, as from a file: equal profiles are recognized by their texts.
            profile = tuple({"id": f"{number}{place}", "text": text} for place, text in enumerate(documents))
            questions.append(Question(str(number), TASK.input_for(query), profile))
    return questions


def by_rank_bm25(questions: list[Question]) -> dict[str, list[str]]:
    rankings = {}
    for question in questions:
        index = BM25Okapi([item["text"].split() for item in question.profile])
        order = best_first(index.get_scores(TASK.query(question.input).split()))
        rankings[question.id] = [question.profile[place]["id"] for place in order]
    return rankings


def ours(questions: list[Question], workers: int) -> dict[str, list[str]]:
    return {ranked.question_id: ranked.item_ids for ranked in rank_bm25(questions, TASK, workers=workers)}


def compare(questions: list[Question], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat, by method; checks that every ranking equals rank_bm25's."""
    methods: dict[str, Callable[[], dict[str, list[str]]]] = {
        "rank_bm25": lambda: by_rank_bm25(questions),
        "1 worker": lambda: ours(questions, 1),
        f"{available_cores()} workers": lambda: ours(questions, available_cores()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    expected: dict[str, list[str]] = {}
    for _ in range(repeats):
        for name, method in methods.items():
            start = time.perf_counter()
            rankings = method()
            seconds[name].append(time.perf_counter() - start)
            expected = expected or rankings
            assert rankings == expected, f"{name} ranks differently from rank_bm25"
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--items", type=int, default=200, help="per profile")
    parser.add_argument("--words", type=int, default=80, help="per item")
    parser.add_argument("--query-words", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    sizes = {"items": options.items, "words": options.words, "query_words": options.query_words}
    for per_profile in (1, 2):
        questions = make_questions(options.questions, per_profile=per_profile, **sizes)
        seconds = compare(questions, options.repeats)
        print(f"{options.questions} questions, {sizes}, {per_profile} per profile")
        for name, runs in seconds.items():
            ratios = [theirs / own for theirs, own in zip(seconds["rank_bm25"], runs, strict=True)]
            print(
                f"  {name:10}  median {statistics.median(runs):6.2f} s   speedup against rank_bm25: "
                f"median {statistics.median(ratios):5.2f}, from {min(ratios):.2f} to {max(ratios):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
