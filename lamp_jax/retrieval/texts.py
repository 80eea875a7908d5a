"""Texts that a retriever reads of a question: one query, and one document per profile item."""

from lamp_jax.config import CORRECT, Compatibility
from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import MissingMarker, Task


def query_of(question: Question, task: Task, *, compatibility: Compatibility = CORRECT) -> str:
    """Query text. Raises MissingMarker, with the question's id, for an input that does not fit the task's template."""
    try:
        return task.query(question.input, reference=compatibility.lamp1_query == "quotes")
    except MissingMarker as error:
        remedy = "fix the input, remove the question, or choose the file's own task"
        raise MissingMarker(error.text, f"question {question.id!r}: {error}; {remedy}") from None


def documents_of(question: Question, task: Task, *, use_date: bool = False) -> tuple[str, ...]:
    """Documents of the complete profile, in its order. Raises LampError for an item without a required field."""
    try:
        return tuple(task.documents_of(question.profile, use_date=use_date))
    except KeyError:
        raise _missing_field(question, task, use_date) from None


def _missing_field(question: Question, task: Task, use_date: bool) -> LampError:
    needed = (*task.document, "date") if use_date else task.document
    lacking = ((item, field) for item in question.profile for field in needed if field not in item)
    item, field = next(lacking)
    remedy = "rank without dates in the documents" if field == "date" else f"is this a file of {task.name}?"
    return LampError(f"question {question.id!r}, profile item {item.get('id')!r}: no {field!r}; {remedy}")
