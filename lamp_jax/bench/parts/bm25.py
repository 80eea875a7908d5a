"""BM25 against rank-bm25-rs and rank_bm25, in processor time: equal scores, bit for bit, and equal rankings."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from lamp_jax.bench.cases import Case, Run, Side, Size, same_rows
from lamp_jax.bench.commands import run_lamp
from lamp_jax.bench.texts import TASK, draw_questions, write_questions
from lamp_jax.bench.workers import Workers
from lamp_jax.data.files import Question
from lamp_jax.retrieval.bm25 import rank_bm25
from lamp_jax.retrieval.scored import best_first

PEERS = {"rank-bm25-rs": "rank_bm25_rs", "rank_bm25": "rank_bm25"}
"""Modules with a class BM25Okapi, by the name of their distribution."""


@dataclass(frozen=True)
class Profiles:
    """Questions in memory, each with a profile of its own; and questions in a file."""

    questions: int
    items: int
    in_file: int
    items_in_file: int
    words: int = 80


SIZES: dict[Size, Profiles] = {"smoke": Profiles(8, 20, 4, 10), "full": Profiles(100, 200, 1000, 185)}


def cases(size: Size, folder: Path, workers: Workers) -> Iterator[Case]:
    """Cases of the size; the file is written to `folder`."""
    form = SIZES[size]
    memory = partial(draw, form.questions, form.items, form.words)
    yield Case(
        f"index, one query: {form.questions} profiles of {form.items} x {form.words} words",
        Side("lamp", partial(rank_in_memory, memory)),
        [Side(name, partial(rank_one_by_one, module, memory)) for name, module in PEERS.items()],
        same_rows,
        unit="CPU s",
        rounds=5,
    )
    path = folder / "questions.json"
    write_questions(path, draw_questions(form.in_file, items=form.items_in_file, words=form.words))
    yield Case(
        f"`lamp rank`, a file: {form.in_file} x {form.items_in_file} x {form.words} words",
        Side("lamp", partial(rank_file, path)),
        [Side("rank-bm25-rs", partial(rank_file_by_peer, PEERS["rank-bm25-rs"], path))],
        same_rows,
        unit="CPU s",
    )


def draw(count: int, items: int, words: int) -> list[Question]:
    return list(draw_questions(count, items=items, words=words))


def rank_in_memory(questions: Callable[[], list[Question]]) -> Run:
    """Rankings with their scores, by lamp."""
    drawn = questions()
    return lambda: [(one.item_ids, list(map(float, one.scores))) for one in rank_bm25(drawn, TASK)]


def rank_one_by_one(module: str, questions: Callable[[], list[Question]]) -> Run:
    """Rankings with their scores, by a peer's class."""
    okapi, drawn = _okapi(module), questions()
    return lambda: [_rank(okapi, one.input, one.profile) for one in drawn]


def rank_file(path: Path) -> Run:
    """Rankings in the file that `lamp rank` writes."""
    output = path.with_name("ranking.json")

    def run() -> list[tuple[str, Any]]:
        run_lamp(["rank", "--task", TASK.name, "--questions", str(path), "--output", str(output), "--force"])
        return sorted(orjson.loads(output.read_bytes()).items())

    return run


def rank_file_by_peer(module: str, path: Path) -> Run:
    """The same rankings in a file, by a plain loop over the peer's class in one process that is already running."""
    okapi, output = _okapi(module), path.with_name(f"{module}.json")

    def run() -> list[tuple[str, Any]]:
        records = orjson.loads(path.read_bytes())
        found = {record["id"]: _rank(okapi, record["input"], record["profile"])[0] for record in records}
        output.write_bytes(orjson.dumps(found))
        return sorted(found.items())

    return run


def _okapi(module: str) -> Any:
    return importlib.import_module(module).BM25Okapi


def _rank(okapi: Any, text: str, profile: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[float]]:
    """Item ids, best first, and their scores."""
    scores = okapi([TASK.document_of(item).split() for item in profile]).get_scores(TASK.query(text).split())
    order = best_first(scores)
    return [str(profile[place]["id"]) for place in order], [float(scores[place]) for place in order]
