"""Chunks of a LaMP file's records, which workers parse independently."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from lamp_jax.config import Work
from lamp_jax.data.files import Question, check_unique, no_records, question_in
from lamp_jax.data.patches import ALL as ALL_PATCHES
from lamp_jax.errors import LampError
from lamp_jax.runs.json_records import RawRecord, RecordScanner
from lamp_jax.runs.workers import parallel_map
from lamp_jax.tasks.catalog import Task

Result = TypeVar("Result")

_CHUNK_BYTES = 2**21


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records of a file: record `first + i` is its bytes from `starts[i]` to `ends[i]`."""

    path: str
    first: int
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def read(self) -> Iterator[RawRecord]:
        """The chunk's unparsed records."""
        with open(self.path, "rb") as file:
            file.seek(self.starts[0])
            content = file.read(self.ends[-1] - self.starts[0])
        for number, (start, end) in enumerate(zip(self.starts, self.ends, strict=True), self.first):
            yield RawRecord(number, start, content[start - self.starts[0] : end - self.starts[0]])


def questions_of(chunk: Chunk, *, task: Task | None = None, patches: Iterable[str] = ALL_PATCHES) -> Iterator[Question]:
    """Questions of a chunk. LampError as stream_questions, but not for repeated ids."""
    return (question_in(raw, chunk.path, task=task, patches=patches) for raw in chunk.read())


def cut_chunks(path: str | Path) -> Iterator[Chunk]:
    """Chunks of a file, in order. LampError, after the complete records, where the file is incomplete or not a list."""
    starts: list[int] = []
    ends: list[int] = []
    number, broken = -1, None
    try:
        for number, offset, raw in RecordScanner(path):
            starts.append(offset)
            ends.append(offset + len(raw))
            if ends[-1] - starts[0] >= _CHUNK_BYTES:
                yield Chunk(str(path), number + 1 - len(starts), tuple(starts), tuple(ends))
                starts, ends = [], []
    except LampError as error:
        broken = error
    if starts:
        yield Chunk(str(path), number + 1 - len(starts), tuple(starts), tuple(ends))
    if broken:
        raise broken
    if number < 0:
        raise no_records(path)


def stream_first_items(
    path: str | Path, size: int, *, task: Task | None, patches: Iterable[str] = ALL_PATCHES, work: Work
) -> Iterator[Question]:
    """Questions of a file, in order, each with only the first `size` items of its profile. LampError as
    stream_questions."""
    return stream_read(partial(_first_items, size=size, task=task, patches=tuple(patches)), path, work)


def _first_items(chunk: Chunk, *, size: int, task: Task | None, patches: tuple[str, ...]) -> list[Question]:
    questions = questions_of(chunk, task=task, patches=patches)
    return [replace(question, profile=question.profile[:size]) for question in questions]


def stream_read(read: Callable[[Chunk], list[Question]], path: str | Path, work: Work) -> Iterator[Question]:
    """Questions that `read` returns for the chunks of a file, in the file's order. LampError for repeated ids."""
    seen: set[str] = set()
    for questions in map_chunks(read, path, work):
        check_unique([question.id for question in questions], seen, path)
        yield from questions


def map_chunks(function: Callable[[Chunk], Result], path: str | Path, work: Work) -> Iterator[Result]:
    """Results of `function` for every chunk of a file, in the file's order. See parallel_map."""
    size = os.path.getsize(path) if os.path.exists(path) else 0
    return parallel_map(function, cut_chunks(path), work, size=size)
