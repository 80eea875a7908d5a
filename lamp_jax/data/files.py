"""LaMP's files: questions, references (gold answers) and predictions in the official JSON formats."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lamp_jax.data.patches import ALL as ALL_PATCHES
from lamp_jax.data.patches import apply_patches
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import encode, short_repr, write_json, write_json_list
from lamp_jax.runs.json_records import RawRecord, RecordScanner, parse_record
from lamp_jax.tasks.catalog import Task

_SHOWN_IDS = 5
_SURROGATE = re.compile("[\ud800-\udfff]")
_ID = "a text (without lone surrogates) or an integer"
_TEXTS = {str, int, float}


@dataclass(frozen=True, slots=True, repr=False)
class Question:
    """One sample of a LaMP file. `profile` is in the file's order; `output` is the reference where it is known."""

    id: str
    input: str
    profile: tuple[Mapping[str, Any], ...]
    user_id: str | int | None = None
    output: str | None = None

    @property
    def user(self) -> str:
        """The user's id. In the user-based split, whose files have no user ids, each question has its own user."""
        return self.id if self.user_id is None else str(self.user_id)

    def __repr__(self) -> str:
        reference = "" if self.output is None else f", output={shorten(self.output)}"
        return f"{type(self).__name__}({self.id!r}, {len(self.profile)} items, {shorten(self.input)}{reference})"


def shorten(text: str, longest: int = 40) -> str:
    """A text as `repr` shows it, its end left out where it is long."""
    return repr(text if len(text) <= longest else f"{text[: longest - 3]}...")


class Outputs(NamedTuple):
    """Contents of an outputs or predictions file: the task (None in a plain list) and the text of each question id."""

    task: str | None
    by_id: dict[str, str]


def stream_questions(
    path: str | Path, *, task: Task | None = None, patches: Iterable[str] = ALL_PATCHES
) -> Iterator[Question]:
    """Questions of an official file (a list, or `{"task", "golds": [...]}`), one at a time, in the file's order.

    Known defects are fixed (`patches`). With `task`, every profile item is checked for the fields that the task needs.
    Raises LampError with the file, the record and the remedy for any other file, and for repeated question ids.
    """
    seen: set[str] = set()
    for raw in RecordScanner(path):
        question = question_in(raw, path, task=task, patches=patches)
        check_unique([question.id], seen, path)
        yield question
    if not seen:
        raise no_records(path)


@dataclass(frozen=True)
class QuestionFile:
    """Questions of a file, which is read again whenever they are iterated over. LampError as stream_questions."""

    path: str | Path
    task: Task | None = None
    patches: Iterable[str] = ALL_PATCHES

    def __iter__(self) -> Iterator[Question]:
        return stream_questions(self.path, task=self.task, patches=self.patches)


def read_questions(
    path: str | Path, *, task: Task | None = None, patches: Iterable[str] = ALL_PATCHES
) -> list[Question]:
    """All questions of a file, checked before any work begins. See stream_questions."""
    return list(stream_questions(path, task=task, patches=patches))


def question_in(
    raw: RawRecord, path: str | Path, *, task: Task | None = None, patches: Iterable[str] = ALL_PATCHES
) -> Question:
    """Question of a record of the file `path`. LampError as stream_questions."""
    where = f"{path}, record {raw.number}, byte {raw.offset}"
    question = _question(_parse(raw, path), where, patches)
    if task is not None:
        check_items(question, task, path)
    return question


def question_of(record: Any, where: str, *, task: Task | None = None, patches: Iterable[str] = ALL_PATCHES) -> Question:
    """Question of a record with an official file's fields. LampError, with `where`, as stream_questions."""
    question = _question(record, where, patches)
    if task is not None:
        check_items(question, task, where)
    return question


def is_id(value: Any) -> bool:
    """Whether a JSON value can be an id: a text without lone surrogates, or an integer; `true` is neither."""
    return type(value) is int or (type(value) is str and (value.isascii() or not _SURROGATE.search(value)))


def is_text(value: Any) -> bool:
    """Whether a JSON value is accepted as a text: a string or a number; not `true`, a list or an object."""
    return type(value) in _TEXTS


def check_items(question: Question, task: Task, path: str | Path) -> None:
    """LampError, with `path`, where a profile item lacks a field that the task needs."""
    kinds = {type(item.get(field)) for field in task.fields for item in question.profile}
    if kinds <= _TEXTS:
        return
    for item in question.profile:
        for field in task.fields:
            if not is_text(item.get(field)):
                found = short_repr(item[field]) if field in item else "nothing"
                needed = ", ".join(("id", *task.fields))
                raise LampError(
                    f"{path}, question {question.id!r}, profile item {item['id']!r}: {field!r} must be a text, found "
                    f"{found}; {task.name} needs the fields {needed} (is this a file of {task.name}?)"
                )


def check_unique(ids: Iterable[str], seen: set[str], path: str | Path) -> None:
    """Adds ids of a file to `seen`. LampError for an id that was seen before."""
    for key in ids:
        if key in seen:
            raise LampError(
                f"{path}, question {key!r}: this id occurs twice; ids must be unique: remove or rename one of the two"
            )
        seen.add(key)


def no_records(path: str | Path) -> LampError:
    return LampError(f"{path}: contains no records; expected a list, or an object with the list 'golds'")


def read_outputs(path: str | Path) -> Outputs:
    """References or predictions: the official `{"task", "golds": [{"id", "output"}]}`, or a plain list of such
    records."""
    scanner = RecordScanner(path)
    by_id = outputs_by_id((_parse(raw, path) for raw in scanner), str(path))
    if not by_id:
        raise no_records(path)
    task = scanner.envelope.get("task") if isinstance(scanner.envelope, dict) else None
    return Outputs(None if task is None else str(task), by_id)


def outputs_by_id(records: Iterable[Any], name: str) -> dict[str, str]:
    """Text of each question id in the records of the file `name`. LampError for an invalid record."""
    by_id: dict[str, str] = {}
    for number, record in enumerate(records):
        where = f"{name}, record {number}"
        if not isinstance(record, dict) or "id" not in record or record.get("output") is None:
            raise LampError(f"{where}: expected an object with 'id' and 'output', found {short_repr(record)}")
        if not is_id(record["id"]):
            raise LampError(f"{where}: 'id' must be {_ID}, found {short_repr(record['id'])}")
        key = str(record["id"])
        if not is_text(record["output"]):
            found = short_repr(record["output"])
            raise LampError(f"{where}, id {key!r}: 'output' must be a text or a number, found {found}")
        if key in by_id:
            raise LampError(f"{where}: the id {key!r} occurs twice; ids must be unique: remove one of the two records")
        by_id[key] = str(record["output"])
    return by_id


def add_outputs(
    questions: Iterable[Question],
    outputs: Mapping[str, str],
    *,
    left: str = "the questions",
    right: str = "the outputs",
) -> list[Question]:
    """Questions with their references. LampError, with the names of both sides, unless both have the same ids."""
    questions = list(questions)
    check_same_ids([q.id for q in questions], outputs, left=left, right=right)
    return [replace(q, output=outputs[q.id]) for q in questions]


def check_same_ids(left_ids: Iterable[str], right_ids: Iterable[str], *, left: str, right: str) -> None:
    """Raises LampError, with counts and the first ids, unless both sides have the same ids."""
    in_left, in_right = dict.fromkeys(left_ids), dict.fromkeys(right_ids)
    missing = [key for key in in_left if key not in in_right]
    extra = [key for key in in_right if key not in in_left]
    if missing or extra:
        parts = [f"{len(missing)} ids of {left} are not in {right} ({_first(missing)})"] if missing else []
        parts += [f"{len(extra)} ids of {right} are not in {left} ({_first(extra)})"] if extra else []
        raise LampError("; ".join(parts) + "; give files of the same split")


def write_predictions(path: str | Path, task: Task, outputs: Mapping[str, str]) -> None:
    """Writes predictions in the official format, in the mapping's order."""
    records = [{"id": key, "output": text} for key, text in outputs.items()]
    write_json(path, {"task": task.official_name, "golds": records})


def write_questions(path: str | Path, questions: Iterable[Question]) -> int:
    """Writes questions as an official list, streamed; `output` and `user_id` where known. Returns their number."""
    return write_json_list(path, (encode(question_record(question)) for question in questions))


def question_record(question: Question) -> dict[str, Any]:
    """JSON object of a question in an official file."""
    record: dict[str, Any] = {"id": question.id, "input": question.input, "profile": list(question.profile)}
    if question.user_id is not None:
        record["user_id"] = question.user_id
    if question.output is not None:
        record["output"] = question.output
    return record


def _parse(raw: RawRecord, path: str | Path) -> Any:
    try:
        return parse_record(raw.content)
    except ValueError as error:
        where = f"{path}, record {raw.number}, byte {raw.offset}"
        raise LampError(f"{where}: invalid JSON ({error}); fix the record, or make the file again") from None


def _question(record: Any, where: str, patches: Iterable[str]) -> Question:
    if not isinstance(record, dict):
        raise LampError(f"{where}: expected an object, found {short_repr(record)}")
    for field, fits, kind in (
        ("id", is_id(record.get("id")), _ID),
        ("input", isinstance(record.get("input"), str), "a text"),
        ("profile", isinstance(record.get("profile"), list), "a list"),
        ("user_id", record.get("user_id") is None or is_id(record["user_id"]), _ID),
        ("output", record.get("output") is None or is_text(record["output"]), "a text or a number"),
    ):
        if not fits:
            found = short_repr(record[field]) if field in record else "nothing"
            raise LampError(f"{where}: {field!r} must be {kind}, found {found}")
    _check_ids(record["profile"], where)
    record = apply_patches(record, patches)
    output = record.get("output")
    return Question(
        id=str(record["id"]),
        input=record["input"],
        profile=tuple([{**item, "id": str(item["id"])} for item in record["profile"]]),
        user_id=record.get("user_id"),
        output=None if output is None else str(output),
    )


def _check_ids(profile: list[Any], where: str) -> None:
    for index, item in enumerate(profile):
        if not isinstance(item, dict) or "id" not in item:
            raise LampError(f"{where}: profile item {index} has no 'id'")
        if not is_id(item["id"]):
            raise LampError(f"{where}: profile item {index}: 'id' must be {_ID}, found {short_repr(item['id'])}")


def _first(ids: list[str]) -> str:
    return ", ".join(ids[:_SHOWN_IDS]) + (", ..." if len(ids) > _SHOWN_IDS else "")
