"""Selector candidates of questions, one per retriever, and their JSON file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import read_json, write_json
from lamp_jax.tasks.catalog import Task, find_task

_SHOWN = 5


@dataclass(frozen=True)
class Candidate:
    """The generator's prompt and output for one retriever's items, and the output's reward."""

    prompt: str
    output: str
    reward: float | None = None
    """Higher is better; None where the reference is not known."""
    predictors: Mapping[str, float] = field(default_factory=dict)
    """Requested values of query performance predictors (QPP), by name."""


@dataclass(frozen=True)
class QuestionCandidates:
    """A question and its candidates by retriever, in the set's order; some may be missing."""

    id: str
    input: str
    gold: str | None
    candidates: Mapping[str, Candidate]


@dataclass(frozen=True)
class CandidateSet:
    """Questions of one task with their candidates."""

    task: Task
    metric: str
    """The metric of the rewards."""
    names: tuple[str, ...]
    """The retrievers, in their order."""
    questions: Sequence[QuestionCandidates]

    @property
    def rewarded(self) -> bool:
        """Whether every candidate has a reward."""
        return all(
            candidate.reward is not None for question in self.questions for candidate in question.candidates.values()
        )

    def restrict(self, names: Sequence[str], path: str | Path) -> "CandidateSet":
        """The set restricted to some of its retrievers. LampError, with the file, for an unknown retriever."""
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise LampError(
                f"{path}: no candidates of {', '.join(unknown)}; the file's retrievers are {', '.join(self.names)}"
            )
        names = tuple(dict.fromkeys(names))
        questions = [
            replace(
                question, candidates={name: question.candidates[name] for name in names if name in question.candidates}
            )
            for question in self.questions
        ]
        return replace(self, names=names, questions=_checked(questions, path))


def write_candidates(path: str | Path, data: CandidateSet) -> None:
    """Writes the JSON file, atomically."""
    write_json(
        path,
        {
            "task": data.task.name,
            "metric": data.metric,
            "pool": list(data.names),
            "questions": [
                {
                    "id": question.id,
                    "input": question.input,
                    "gold": question.gold,
                    "candidates": {name: vars(question.candidates[name]) for name in question.candidates},
                }
                for question in data.questions
            ],
        },
    )


def read_candidates(path: str | Path) -> CandidateSet:
    """Candidates in a file of `lamp selector-data`. LampError, with the file and the question, for other contents."""
    content = read_json(path)
    kinds = {"task": str, "metric": str, "pool": list, "questions": list}
    if not isinstance(content, dict) or any(type(content.get(key)) is not kind for key, kind in kinds.items()):
        raise LampError(f"{path}: not a file of candidates; make it with `lamp selector-data`")
    try:
        task = find_task(content["task"])
    except LampError as error:
        raise LampError(f"{path}: {error}") from error
    names = tuple(map(str, content["pool"]))
    questions: dict[str, QuestionCandidates] = {}
    for number, record in enumerate(content["questions"]):
        where = f"{path}, question {record.get('id', number)!r}" if isinstance(record, dict) else f"{path}, {number}"
        question = _question(record, names, where)
        if question.id in questions:
            raise LampError(f"{where}: this id occurs twice; make the file again")
        questions[question.id] = question
    return CandidateSet(task, content["metric"], names, _checked(list(questions.values()), path))


def check_same_candidates(one: CandidateSet, other: CandidateSet, left: str | Path, right: str | Path) -> None:
    """LampError, with both values, unless two files have the same task, metric and retrievers."""
    for what, first, second in (
        ("task", one.task.name, other.task.name),
        ("metric", one.metric, other.metric),
        ("pool", ", ".join(one.names), ", ".join(other.names)),
    ):
        if first != second:
            raise LampError(
                f"{left} and {right} differ in their {what}: {first} and {second}; make both with the same settings"
            )


def _question(record: Any, names: Sequence[str], where: str) -> QuestionCandidates:
    try:
        given = {name: _candidate(record["candidates"][name]) for name in record["candidates"]}
        if not (type(record["id"]) is type(record["input"]) is str and isinstance(record["gold"], str | None)):
            raise TypeError("'id' and 'input' must be texts, 'gold' a text or null")
        candidates = {name: given[name] for name in names if name in given}
        question = QuestionCandidates(record["id"], record["input"], record["gold"], candidates)
    except (KeyError, TypeError, AttributeError) as error:
        raise LampError(f"{where}: not a question of `lamp selector-data` ({error}); make the file again") from error
    unknown = [name for name in given if name not in names]
    if unknown:
        raise LampError(
            f"{where}: candidates of {', '.join(unknown)}, but 'pool' lists {', '.join(names)}; make the file again"
        )
    return question


def _candidate(values: Mapping[str, Any]) -> Candidate:
    """Candidate of a JSON object. TypeError for invalid values."""
    candidate = Candidate(**values)
    numbers = [*candidate.predictors.values(), *([] if candidate.reward is None else [candidate.reward])]
    if not (
        type(candidate.prompt) is type(candidate.output) is str
        and all(type(value) in (int, float) for value in numbers)
    ):
        raise TypeError("a candidate's prompt and output must be texts, its reward and predictors numbers")
    return candidate


def _checked(questions: Sequence[QuestionCandidates], path: str | Path) -> Sequence[QuestionCandidates]:
    if not questions:
        raise LampError(f"{path}: contains no questions; make the file with `lamp selector-data`")
    empty = [question.id for question in questions if not question.candidates]
    if empty:
        raise LampError(f"{path}: {len(empty)} questions have no candidates ({', '.join(empty[:_SHOWN])})")
    return questions
