"""Questions of long files with only the profile items that a command uses: files are read in chunks on all cores.

A file of 20,000 questions with 185 items of 80 words takes 1.8 GB, and several times as much as Python objects.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from lamp_jax.config import Work
from lamp_jax.data.chunks import Chunk, map_chunks, questions_of
from lamp_jax.data.files import Question, check_unique
from lamp_jax.data.patches import ALL as ALL_PATCHES
from lamp_jax.errors import LampError
from lamp_jax.inputs.generator import PromptOptions, retrieved_items
from lamp_jax.tasks.catalog import Task

_Shorten = Callable[[Sequence[Question]], list[Question]]


def read_retrieved(path: str | Path, task: Task, options: PromptOptions, *, retriever: str) -> list[Question]:
    """Questions of a file whose profiles are the items of their prompts, best first.

    Their prompts with the retriever `file` are those of the file's questions with `retriever`. LampError as
    read_questions, and where the retriever raises it.
    """
    return _read(path, task, partial(_retrieve, task, options, retriever), options.compatibility.patches)


def read_first(
    path: str | Path, task: Task | None, count: int, *, patches: Iterable[str] = ALL_PATCHES
) -> list[Question]:
    """Questions of a file with the first `count` items of their profiles. LampError as read_questions."""
    return _read(path, task, partial(_cut, count), patches)


def _read(path: str | Path, task: Task | None, shorten: _Shorten, patches: Iterable[str]) -> list[Question]:
    seen: set[str] = set()
    questions = []
    read = partial(_read_chunk, task=task, shorten=shorten, patches=tuple(patches))
    for question in chain.from_iterable(map_chunks(read, path, Work())):
        check_unique([question.id], seen, path)
        questions.append(question)
    return questions


def _read_chunk(chunk: Chunk, *, task: Task | None, shorten: _Shorten, patches: tuple[str, ...]) -> list[Question]:
    questions = list(questions_of(chunk, task=task, patches=patches))
    try:
        return shorten(questions)
    except LampError as error:
        raise LampError(f"{chunk.path}: {error}") from error


def _retrieve(task: Task, options: PromptOptions, retriever: str, questions: Sequence[Question]) -> list[Question]:
    items = retrieved_items(questions, task, options, retriever=retriever)
    return [replace(question, profile=tuple(some)) for question, some in zip(questions, items, strict=True)]


def _cut(count: int, questions: Sequence[Question]) -> list[Question]:
    return [replace(question, profile=question.profile[:count]) for question in questions]
