"""Feedback: metrics of a generator's answers to prompts of single profile items or of retrievers, as sharded JSON
lines.

Feedback of items can also be read from and written to the public code's file.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.runs.journals import read_journal
from lamp_jax.runs.json_files import read_json, short_repr, write_json
from lamp_jax.tasks.catalog import Task, find_task

MetricValues = Mapping[str, float]
FeedbackKind = Literal["items", "retrievers"]
"""Contents of the prompts: each of a question's first items alone; or the first items of each retriever."""

_SHOWN = 5
_MAX_SHARDS = 100_000


class QuestionItem(NamedTuple):
    """A question and one of its items; `rank` is the item's index in the profile."""

    question: Question
    rank: int

    @property
    def item_id(self) -> str:
        return str(self.question.profile[self.rank]["id"])

    @property
    def names(self) -> dict[str, Any]:
        """Identifying fields of the pair's record."""
        return {"question": self.question.id, "item": self.item_id, "rank": self.rank}

    @property
    def reference_key(self) -> str:
        """Key of the pair in the public code's file."""
        return f"{self.question.id}-{self.item_id}"


def first_pairs(questions: Iterable[Question], profile_size: int) -> Iterator[QuestionItem]:
    """Every question with each of its first `profile_size` items, in order; repeated item ids are left out."""
    for question in questions:
        seen: set[str] = set()
        for rank in range(min(profile_size, len(question.profile))):
            pair = QuestionItem(question, rank)
            if pair.item_id not in seen:
                seen.add(pair.item_id)
                yield pair


def feedback_record(
    kind: FeedbackKind, names: Mapping[str, Any], prompt: str, output: str | None, metrics: MetricValues
) -> dict[str, Any]:
    """Record of one line of a feedback file; `output` is the generated text, None where nothing was generated.

    Prompts are kept for retrievers only, whose selectors read them.
    """
    kept = {"prompt": prompt} if kind == "retrievers" else {}
    return {**names, **kept, "output": output, "metrics": dict(metrics)}


def shard_file(kind: FeedbackKind, shard: int, shards: int) -> str:
    """File name of a shard in a feedback directory."""
    return f"{kind}-{shard}-of-{shards}.jsonl"


def read_settings(directory: str | Path, kind: FeedbackKind) -> dict[str, Any]:
    """Settings of finished feedback. LampError for any other directory."""
    path = Path(directory) / "run.json"
    run = read_json(path)
    if not isinstance(run, dict) or run.get("stage") != f"feedback{kind}":
        made = f"made by `lamp {run.get('stage')}`" if isinstance(run, dict) else "not a run record"
        raise LampError(f"{path}: {made}; give a directory of `lamp feedback {kind}`")
    if not run.get("finished"):
        raise LampError(f"{directory}: not finished; run the same `lamp feedback {kind}` command again for every shard")
    settings = run.get("settings")
    needed: dict[str, type] = {"task": str, "shards": int} | ({"pool": list} if kind == "retrievers" else {})
    if not isinstance(settings, dict):
        raise LampError(f"{path}: 'settings' is {short_repr(settings)}, expected an object; make the feedback again")
    for name, expected in needed.items():
        if type(settings.get(name)) is not expected:
            found = short_repr(settings.get(name))
            raise LampError(
                f"{path}: the setting {name!r} is {found}, not {expected.__name__}; make the feedback again"
            )
    if kind == "retrievers" and not (settings["pool"] and all(isinstance(entry, str) for entry in settings["pool"])):
        raise LampError(f"{path}: the setting 'pool' is {short_repr(settings['pool'])}; make the feedback again")
    if not 1 <= settings["shards"] <= _MAX_SHARDS:
        raise LampError(f"{path}: the setting 'shards' is {settings['shards']}; make the feedback again")
    return settings


def read_records(directory: str | Path, kind: FeedbackKind) -> Iterator[dict[str, Any]]:
    """Records of a feedback directory, shard after shard. LampError where a shard is missing or not finished."""
    yield from read_shards(directory, kind, read_settings(directory, kind)["shards"])


def read_shards(directory: str | Path, kind: FeedbackKind, shards: int) -> Iterator[dict[str, Any]]:
    """As read_records, of feedback whose run record is not finished yet."""
    for shard in range(shards):
        path = Path(directory) / shard_file(kind, shard, shards)
        if not path.exists():
            raise LampError(f"{path}: no such file, although the run is finished; copy the complete directory")
        for number, record in enumerate(read_journal(path), 1):
            _check_record(record, kind, f"{path}, line {number}")
            yield record


def _check_record(record: Any, kind: FeedbackKind, where: str) -> None:
    """LampError, with the field, for a record that differs from those of `feedback_record`."""
    if not isinstance(record, dict):
        raise LampError(f"{where}: expected an object, found {short_repr(record)}; make the feedback again")
    for name, fits in _FIELDS[kind].items():
        if not fits(record.get(name)):
            found = short_repr(record[name]) if name in record else "nothing"
            raise LampError(f"{where}: {name!r} cannot be {found}; make the feedback again")


def _is_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(
        type(number) in (int, float) and math.isfinite(number) for number in value.values()
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_FIELDS: Mapping[FeedbackKind, Mapping[str, Callable[[Any], bool]]] = {
    "items": {
        "question": _is_text,
        "item": _is_text,
        "rank": lambda value: type(value) is int and value >= 0,
        "output": lambda value: value is None or _is_text(value),
        "metrics": _is_metrics,
    },
    "retrievers": {
        "question": _is_text,
        "retriever": _is_text,
        "prompt": _is_text,
        "output": _is_text,
        "metrics": _is_metrics,
    },
}
"""Check of each field of a record."""


def read_feedback(
    sources: Sequence[str | Path], task: Task, questions: Sequence[Question], *, profile_size: int
) -> dict[str, list[MetricValues]]:
    """Metrics of the first `profile_size` items of each question, in the profile's order, by question id.

    A source is a directory of `lamp feedback items`, or the public code's JSON file `{"qid-pid": {metric: value}}`.
    Raises LampError for another task's feedback, for repeated pairs, and for missing pairs (with their count, the first
    ids and the command that makes them).
    """
    by_pair: dict[tuple[str, str], MetricValues] = {}
    by_key: dict[str, MetricValues] = {}
    for source in sources:
        if Path(source).is_dir():
            _add_records(by_pair, source, task)
        else:
            pairs = _read_reference(source)
            for key in by_key.keys() & pairs.keys():
                raise LampError(f"{source}: the pair {key!r} is in another file too; give each run once")
            by_key |= pairs
    if by_key:
        _check_keys(pair.names for pair in first_pairs(questions, profile_size))

    def look_up(pair: QuestionItem) -> MetricValues | None:
        sources_of_pair = (by_pair.get((pair.question.id, pair.item_id)), by_key.get(pair.reference_key))
        metrics = [values for values in sources_of_pair if values is not None]
        if len(metrics) == 2:
            raise LampError(f"the pair {pair.reference_key!r} is both in a directory and in a file; give each run once")
        return metrics[0] if metrics else None

    name = ", ".join(map(str, sources))
    return match_feedback(look_up, task, questions, profile_size=profile_size, name=name)


def match_feedback(
    look_up: Callable[[QuestionItem], MetricValues | None],
    task: Task,
    questions: Sequence[Question],
    *,
    profile_size: int,
    name: str,
) -> dict[str, list[MetricValues]]:
    """For each question the metrics of its first items, as `look_up` finds them. LampError for pairs without any."""
    pairs = list(first_pairs(questions, profile_size))
    found: dict[str, list[MetricValues]] = {question.id: [] for question in questions}
    missing = []
    for pair in pairs:
        metrics = look_up(pair)
        if metrics is None:
            missing.append(pair.reference_key)
        else:
            found[pair.question.id].append(metrics)
    if missing:
        raise LampError(
            f"{name}: no feedback for {len(missing)} of {len(pairs)} question-item pairs "
            f"({', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}); make it with `lamp feedback "
            f"items --task {task.name} --profile-size {profile_size}` on the same questions, or give --profile-size"
        )
    return found


def read_retriever_feedback(
    directory: str | Path, task: Task, questions: Iterable[Question]
) -> tuple[list[str], dict[str, dict[str, dict[str, Any]]]]:
    """Names of the retrievers in order, and the records of `lamp feedback retrievers` by question id and retriever.

    LampError for another task's feedback, and where a question lacks that of a retriever.
    """
    settings = read_settings(directory, "retrievers")
    _check_task(settings, directory, task)
    names = [entry.partition("=")[0] for entry in settings["pool"]]
    found: dict[str, dict[str, dict[str, Any]]] = {question.id: {} for question in questions}
    for record in read_records(directory, "retrievers"):
        of_question = found.get(record["question"])
        if of_question is None:
            continue
        if record["retriever"] in of_question:
            raise LampError(
                f"{directory}: question {record['question']!r}, retriever {record['retriever']!r}: occurs twice; "
                "make the feedback again"
            )
        of_question[record["retriever"]] = record
    for name in names:
        missing = [key for key, records in found.items() if name not in records]
        if missing:
            raise LampError(
                f"{directory}: no feedback of {name!r} for {len(missing)} of {len(found)} questions "
                f"({', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}); give the questions "
                f"from which the feedback was made, or make it again with `lamp feedback retrievers --task {task.name}`"
            )
    return names, found


def write_reference(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes the public code's file. LampError where two pairs would have the same key."""
    records = list(records)
    _check_keys(records)
    write_json(
        path, {f"{record['question']}-{record['item']}": _public_metric_names(record["metrics"]) for record in records}
    )


def _public_metric_names(metrics: MetricValues) -> dict[str, float]:
    """Metrics under the public code's names, which writes `mae`, but `rouge-L`."""
    return {"mae" if name == "MAE" else name: value for name, value in metrics.items()}


def _add_records(by_pair: dict[tuple[str, str], MetricValues], directory: str | Path, task: Task) -> None:
    _check_task(read_settings(directory, "items"), directory, task)
    for record in read_records(directory, "items"):
        pair = record["question"], record["item"]
        if pair in by_pair:
            raise LampError(f"{directory}: question {pair[0]!r}, item {pair[1]!r}: occurs twice; give each run once")
        by_pair[pair] = record["metrics"]


def _check_task(settings: Mapping[str, Any], directory: str | Path, task: Task) -> None:
    made_for = find_task(settings["task"])
    if made_for != task:
        raise LampError(
            f"{directory}: feedback of {made_for.name}, but the task is {task.name}; give feedback of the same task"
        )


def _read_reference(path: str | Path) -> dict[str, MetricValues]:
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(metrics, dict) for metrics in content.values()):
        raise LampError(f'{path}: expected {{"question-item": {{metric: value}}}}, as the public code writes it')
    return content


def _check_keys(pairs: Iterable[Mapping[str, Any]]) -> None:
    """LampError where two pairs, given by their identifying fields, have the same key in the public code's file."""
    seen: dict[str, Mapping[str, Any]] = {}
    for pair in pairs:
        key = f"{pair['question']}-{pair['item']}"
        other = seen.setdefault(key, pair)
        if (other["question"], other["rank"]) != (pair["question"], pair["rank"]):
            raise LampError(
                f"{key!r} would be the key of two pairs: question {other['question']!r}, item {other['item']!r} and "
                f"question {pair['question']!r}, item {pair['item']!r}; rename an item"
            )
