"""Questions of long files with only the profile items that a command uses: files are read in chunks on all cores.

A file of 20,000 questions with 185 items of 80 words takes 1.8 GB, and several times as much as Python objects.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from lamp_jax.config import Work
from lamp_jax.data.chunks import Chunk, questions_of, stream_read
from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.inputs.generator import PromptOptions, retrieved_items
from lamp_jax.tasks.catalog import Task


def read_retrieved(path: str | Path, task: Task, options: PromptOptions, *, retriever: str) -> list[Question]:
    """Questions of a file whose profiles are the items of their prompts, best first.

    Their prompts with the retriever `file` are those of the file's questions with `retriever`. LampError as
    read_questions, and where the retriever raises it.
    """
    return list(stream_read(partial(_retrieve, task=task, options=options, retriever=retriever), path, Work()))


def _retrieve(chunk: Chunk, *, task: Task, options: PromptOptions, retriever: str) -> list[Question]:
    questions = list(questions_of(chunk, task=task, patches=tuple(options.compatibility.patches)))
    try:
        items = retrieved_items(questions, task, options, retriever=retriever)
        return [replace(question, profile=tuple(some)) for question, some in zip(questions, items, strict=True)]
    except LampError as error:
        raise LampError(f"{chunk.path}: {error}") from error
