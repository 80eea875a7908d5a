"""Splitting of users' histories into questions of train, dev and test with their profiles, and writing of the files."""

import contextlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import IO, Any, NamedTuple

from lamp_jax.config import Part
from lamp_jax.data.files import Question, question_record
from lamp_jax.data.layout import PARTS, FileKind, TreeFile
from lamp_jax.datasets.form import BenchmarkForm
from lamp_jax.datasets.histories import Bucket, GatheredHistories, History, UserId, stable_hash
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import atomic_write, atomic_write_bytes, encode
from lamp_jax.runs.workers import parallel_map
from lamp_jax.tasks.catalog import Task, find_task

_KINDS: tuple[FileKind, ...] = ("questions", "outputs")
_FILES = tuple(product(PARTS, _KINDS))
FILES = (*(f"{part}_{kind}.json" for part, kind in _FILES), "report.json")
"""Names of the files of `write_parts`."""
_COPIED_BYTES = 2**20


class Target(NamedTuple):
    """Item to ask about: its position in the history, and the positions of its profile's items."""

    part: Part
    position: int
    profile: Sequence[int]


@dataclass
class SplitCounts:
    """Counts over histories: profile sizes, and targets and users without a question, by reason."""

    sizes: dict[Part, Counter[int]] = field(default_factory=lambda: {part: Counter() for part in PARTS})
    dropped_targets: Counter[str] = field(default_factory=Counter)
    idle_users: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    """Repeated items of a history: `equal` ones, and those `at another date`."""

    @property
    def questions(self) -> dict[Part, int]:
        return {part: sizes.total() for part, sizes in self.sizes.items()}

    @property
    def profile_items(self) -> int:
        return sum(size * count for sizes in self.sizes.values() for size, count in sizes.items())

    @classmethod
    def total(cls, counts: Iterable["SplitCounts"]) -> "SplitCounts":
        total = cls()
        for bucket_counts in counts:
            for part, sizes in bucket_counts.sizes.items():
                total.sizes[part].update(sizes)
            total.dropped_targets.update(bucket_counts.dropped_targets)
            total.idle_users.update(bucket_counts.idle_users)
            total.duplicates.update(bucket_counts.duplicates)
        return total


def find_targets(history: History, options: BenchmarkForm) -> list[Target]:
    """Targets of a history, the oldest first, including those with small profiles.

    `--split time`: of the items that can be targets, the last is the test target, the one before it the dev target, and
    earlier ones are train targets. `--split user`: all targets belong to the user's part.
    """
    candidates = [position for position, entry in enumerate(history.entries) if entry.can_be_target]
    if options.split == "time":
        roles: tuple[Part, ...] = ("train",) * options.targets_per_user + ("dev", "test")
        positions = candidates[-len(roles) :]
        chosen = zip(roles[len(roles) - len(positions) :], positions, strict=True)
        return [Target(part, position, _newest(range(position), options)) for part, position in chosen]
    part = part_of(history.user, options)
    if options.targets == "last":
        positions = candidates[-options.targets_per_user :]
        return [Target(part, position, _newest(range(position), options)) for position in positions]
    rng = random.Random(stable_hash(options.seed, "targets", history.user))
    positions = sorted(rng.sample(candidates, min(options.targets_per_user, len(candidates))))
    others = range(len(history.entries))
    return [
        Target(part, position, _newest([other for other in others if other != position], options))
        for position in positions
    ]


def _newest(positions: Sequence[int], options: BenchmarkForm) -> Sequence[int]:
    return positions[-options.max_profile :]  # all of them for 0


def part_of(user: UserId, options: BenchmarkForm) -> Part:
    """Part of all questions of a user (`--split user`), which depends on the user and the seed alone."""
    drawn = stable_hash(options.seed, "part", user) / 2**64
    if drawn < options.test_share:
        return "test"
    return "dev" if drawn < options.test_share + options.dev_share else "train"


def count_splits(buckets: Sequence[Bucket], options: BenchmarkForm, *, size: int) -> list[SplitCounts]:
    """Counts of each bucket; `size` is the buckets' total size in bytes."""
    return list(parallel_map(partial(_count_bucket, options=options), buckets, options.work, size=size))


def _count_bucket(bucket: Bucket, *, options: BenchmarkForm) -> SplitCounts:
    found = SplitCounts()
    for history in bucket.histories(duplicates=options.duplicates):
        distinct = len({entry.content for entry in history.entries})
        found.duplicates["equal"] += history.dropped + len(history.entries) - distinct
        found.duplicates["at another date"] += distinct - len({entry.undated for entry in history.entries})
        targets = find_targets(history, options)
        kept = _drop_small(targets, options)
        if len(kept) < len(targets):
            found.dropped_targets[f"fewer than {options.min_profile} profile items"] += len(targets) - len(kept)
        if not history.entries:
            found.idle_users["no usable row"] += 1
        elif not targets:
            found.idle_users["no row that can be a target"] += 1
        elif not kept:
            found.idle_users["too few items"] += 1
        for target in kept:
            found.sizes[target.part][len(target.profile)] += 1
    return found


def _drop_small(targets: Iterable[Target], options: BenchmarkForm) -> list[Target]:
    return [target for target in targets if len(target.profile) >= options.min_profile]


def write_parts(
    output: Path,
    gathered: GatheredHistories,
    counts: Sequence[SplitCounts],
    *,
    options: BenchmarkForm,
    report: Mapping[str, Any],
) -> None:
    """Writes questions and outputs of each non-empty part, and `report.json`, atomically."""
    task, total = find_task(options.task), SplitCounts.total(counts)
    write = partial(_write_bucket, options=options, references=gathered.references)
    pieces = zip(gathered.buckets, _starts(counts), strict=True)
    size = gathered.size // gathered.kept * total.profile_items
    with contextlib.ExitStack() as stack:
        files: dict[tuple[Part, FileKind], IO[bytes]] = {}
        for part, kind in _FILES:
            if total.questions[part]:
                path = output / TreeFile(task, options.split, part, kind).name
                files[part, kind] = stack.enter_context(atomic_write_bytes(path))
                files[part, kind].write(_opening(kind, task))
        for written in parallel_map(write, pieces, options.work, size=size):
            for key, path in written.items():
                if key in files:
                    _append(files[key], path)
                path.unlink()
        for (_, kind), file in files.items():
            file.write(b"\n]\n" if kind == "questions" else b"\n]}\n")
        json.dump(report, stack.enter_context(atomic_write(output / "report.json")), ensure_ascii=False, indent=1)


def _starts(counts: Iterable[SplitCounts]) -> Iterator[dict[Part, int]]:
    """Number of the first question of each bucket in each part."""
    starts = dict.fromkeys(PARTS, 0)
    for found in counts:
        yield dict(starts)
        for part, count in found.questions.items():
            starts[part] += count


def _opening(kind: FileKind, task: Task) -> bytes:
    return b"[" if kind == "questions" else b'{"task": %b, "golds": [' % encode(task.official_name)


def _append(target: IO[bytes], path: Path) -> None:
    with open(path, "rb") as file:
        shutil.copyfileobj(file, target, _COPIED_BYTES)


def _write_bucket(
    piece: tuple[Bucket, Mapping[Part, int]], *, options: BenchmarkForm, references: Sequence[str]
) -> dict[tuple[Part, FileKind], Path]:
    """Writes the list members of a bucket's questions and outputs, commas included. Returns their files."""
    bucket, numbers = piece[0], dict(piece[1])
    task = find_task(options.task)
    written: dict[tuple[Part, FileKind], Path]
    written = {(part, kind): bucket.path.with_suffix(f".{part}.{kind}") for part, kind in _FILES}
    with contextlib.ExitStack() as stack:
        files = {key: stack.enter_context(open(path, "wb")) for key, path in written.items()}
        for history in bucket.histories(duplicates=options.duplicates):
            maker = QuestionMaker(task, history, references, options.seed)
            for target in _drop_small(find_targets(history, options), options):
                question = maker.ask(target, number=numbers[target.part])
                comma = b",\n" if numbers[target.part] else b"\n"
                numbers[target.part] += 1
                record = question_record(replace(question, output=None))
                files[target.part, "questions"].write(comma + encode(record))
                files[target.part, "outputs"].write(comma + encode({"id": question.id, "output": question.output}))
    return written


@dataclass(frozen=True)
class QuestionMaker:
    """Maker of questions from the items of a history. `references` are those of all users (LaMP-1)."""

    task: Task
    history: History
    references: Sequence[str]
    seed: int

    def ask(self, target: Target, *, number: int) -> Question:
        """Question about an item, with its reference answer; `number` is its index in the part."""
        key = f"{self.task.id_prefix}{PARTS.index(target.part)}{number}"
        items = (self.history.entries[position].item for position in target.profile)
        profile = tuple({"id": f"{key}{index}", **item} for index, item in enumerate(items))
        entry = self.history.entries[target.position]
        text = entry.question_fields.get("input", entry.item[self.task.source])
        if self.task.cites:
            text, reference = self._offer_references(text, entry.question_fields["reference"])
        else:
            text, reference = self.task.input_for(text), entry.item[self.task.target]
        return Question(key, text, profile, self.history.user, reference)

    def _offer_references(self, title: str, right: str) -> tuple[str, str]:
        """LaMP-1's input and answer: the cited paper beside one that the user never cites, in random order."""
        rng = random.Random(stable_hash(self.seed, "reference", self.history.user, title, right))
        own = {entry.question_fields["reference"] for entry in self.history.entries}
        start = rng.randrange(len(self.references))
        wrong = next((ref for ref in chain(self.references[start:], self.references[:start]) if ref not in own), None)
        if wrong is None:
            raise LampError(
                f"user {self.history.user!r}: cites all the papers that others cite, so that there is no wrong "
                "reference to offer; leave this user out, or give more users' histories"
            )
        label = rng.randrange(2)
        pair = (right, wrong) if label == 0 else (wrong, right)
        return self.task.template.format(title=title, ref1=pair[0], ref2=pair[1]), self.task.labels[label]
