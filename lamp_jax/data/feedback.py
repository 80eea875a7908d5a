"""What a generator makes of single profile items: one record for each question and item, and the public code's file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lamp_jax.data.files import Question, read_json, write_json
from lamp_jax.data.records import read_journal
from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import Task, find_task

Metrics = Mapping[str, float]

_SHOWN = 5


class Pair(NamedTuple):
    """A question and one of its items: `rank` is the item's place in the profile, from 0."""

    question: Question
    rank: int

    @property
    def item_id(self) -> str:
        return str(self.question.profile[self.rank]["id"])

    @property
    def reference_key(self) -> str:
        """The pair's name in the public code's file."""
        return f"{self.question.id}-{self.item_id}"


def first_pairs(questions: Iterable[Question], profile_size: int) -> Iterator[Pair]:
    """Every question with each of its first `profile_size` items, in their order; an id counts where it is first."""
    for question in questions:
        seen: set[str] = set()
        for rank in range(min(profile_size, len(question.profile))):
            pair = Pair(question, rank)
            if pair.item_id not in seen:
                seen.add(pair.item_id)
                yield pair


def feedback_record(pair: Pair, output: str | None, metrics: Metrics) -> dict[str, Any]:
    """One line of a feedback file; `output` is what was generated, None where nothing was."""
    return {
        "question": pair.question.id,
        "item": pair.item_id,
        "rank": pair.rank,
        "output": output,
        "metrics": dict(metrics),
    }


def shard_file(shard: int, shards: int) -> str:
    """The name of one shard's file in a feedback directory."""
    return f"items-{shard}-of-{shards}.jsonl"


def read_records(directory: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a feedback directory, shard after shard. LampError where a shard is missing or not finished."""
    directory = Path(directory)
    run = read_json(directory / "run.json")
    if run.get("stage") != "feedbackitems":
        raise LampError(f"{directory}: made by `lamp {run.get('stage')}`; give a directory of `lamp feedback items`")
    if not run.get("finished"):
        raise LampError(f"{directory}: not finished; give the `lamp feedback items` command again, for every shard")
    for shard in range(run["settings"]["shards"]):
        path = directory / shard_file(shard, run["settings"]["shards"])
        if not path.exists():
            raise LampError(f"{path}: no such file, though the run was finished; copy the whole directory")
        yield from read_journal(path)


def read_feedback(
    sources: Sequence[str | Path], task: Task, questions: Sequence[Question], *, profile_size: int
) -> dict[str, list[Metrics]]:
    """For each question the metrics of its first `profile_size` items, in the profile's order.

    A source is a directory of `lamp feedback items`, or the public code's JSON file `{"qid-pid": {metric: value}}`.
    Raises LampError for another task's feedback, for pairs that are there twice or (with their count, the first ids
    and the command that makes them) not at all.
    """
    by_pair: dict[tuple[str, str], Metrics] = {}
    by_key: dict[str, Metrics] = {}
    for source in sources:
        if Path(source).is_dir():
            _add_records(by_pair, source, task)
        else:
            found_here = _read_reference(source)
            for key in by_key.keys() & found_here.keys():
                raise LampError(f"{source}: {key!r}: there twice, in another file too; give each run once")
            by_key |= found_here
    pairs = list(first_pairs(questions, profile_size))
    if by_key:
        _check_keys(pairs)
    found: dict[str, list[Metrics]] = {question.id: [] for question in questions}
    missing = []
    for pair in pairs:
        places = (by_pair.get((pair.question.id, pair.item_id)), by_key.get(pair.reference_key))
        metrics = [one for one in places if one is not None]
        if len(metrics) == 2:
            raise LampError(f"{pair.reference_key!r}: there twice, in a directory and in a file; give each run once")
        if metrics:
            found[pair.question.id].append(metrics[0])
        else:
            missing.append(pair.reference_key)
    if missing:
        raise LampError(
            f"{', '.join(map(str, sources))}: no feedback for {len(missing)} of {len(pairs)} question-item pairs "
            f"({', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}); make it with `lamp feedback "
            f"items --task {task.name} --profile-size {profile_size}` on the same questions, or give --profile-size"
        )
    return found


def write_reference(path: str | Path, questions: Sequence[Question], records: Iterable[Mapping[str, Any]]) -> None:
    """The public code's file. LampError where two pairs would have one name there."""
    by_id = {question.id: question for question in questions}
    records = list(records)
    _check_keys([Pair(by_id[record["question"]], record["rank"]) for record in records])
    write_json(path, {f"{one['question']}-{one['item']}": _as_they_say(one["metrics"]) for one in records})


def _as_they_say(metrics: Metrics) -> dict[str, float]:
    """The public code writes `mae`, but `rouge-L`."""
    return {"mae" if name == "MAE" else name: value for name, value in metrics.items()}


def _add_records(by_pair: dict[tuple[str, str], Metrics], directory: str | Path, task: Task) -> None:
    made_for = find_task(read_json(Path(directory) / "run.json")["settings"]["task"])
    if made_for != task:
        raise LampError(
            f"{directory}: feedback of {made_for.name}, where {task.name} is trained; give that of one task"
        )
    for record in read_records(directory):
        pair = record["question"], record["item"]
        if pair in by_pair:
            raise LampError(f"{directory}: question {pair[0]!r}, item {pair[1]!r}: there twice; give each run once")
        by_pair[pair] = record["metrics"]


def _read_reference(path: str | Path) -> dict[str, Metrics]:
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(metrics, dict) for metrics in content.values()):
        raise LampError(f'{path}: expected {{"question-item": {{metric: value}}}}, as the public code writes it')
    return content


def _check_keys(pairs: Iterable[Pair]) -> None:
    seen: dict[str, Pair] = {}
    for pair in pairs:
        other = seen.setdefault(pair.reference_key, pair)
        if (other.question.id, other.rank) != (pair.question.id, pair.rank):
            raise LampError(
                f"{pair.reference_key!r} would stand for two pairs: question {other.question.id!r}, item "
                f"{other.item_id!r} and question {pair.question.id!r}, item {pair.item_id!r}; rename one"
            )
