"""Grouping of the rows of a table into users' histories: parsing, dropping of unusable rows, ordering.

The rows come in any order and need not fit into memory. They are written to files, buckets, each of which has the
histories of consecutive users, numbered in order of first appearance.
"""

import hashlib
import heapq
import itertools
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from lamp_jax.data.files import is_id
from lamp_jax.datasets.columns import HistoryTable, open_history_table
from lamp_jax.datasets.dates import read_date
from lamp_jax.datasets.form import BenchmarkForm
from lamp_jax.datasets.tables import TableRow, UnusableValue
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import encode
from lamp_jax.runs.json_records import parse_record
from lamp_jax.runs.workers import count_processes, map_in_processes
from lamp_jax.tasks.catalog import Task, find_task

UserId = str | int

_ROUND = {"up": math.ceil, "down": math.floor, "nearest": lambda number: math.floor(number + 0.5)}
_BUCKET_USERS = 256
_BATCH_ROWS = 1024
_BUFFERED_BYTES = 2**27
_MAX_REFERENCES = 10_000
_SHOWN_ROWS = 5
_SHOWN_CHARACTERS = 60


class HistoryEntry(NamedTuple):
    """One item of a history: its sort key, its fields, and the further fields of a question about it."""

    order: tuple[float, ...]
    item: dict[str, str]
    question_fields: dict[str, str]

    @property
    def content(self) -> tuple[Any, ...]:
        """Key of equal items: the moment, in any notation, and `undated`.

        A day without a time equals its midnight, as other tables write it.
        """
        known = len(self.order)
        while known and not self.order[known - 1]:
            known -= 1
        return (self.order[:known], *self.undated)

    @property
    def undated(self) -> tuple[Any, ...]:
        """Key of items that are equal except for the date: all texts, with white space normalized."""
        texts = [*self.item.items(), *self.question_fields.items()]
        return tuple((name, " ".join(text.split())) for name, text in texts if name != "date")

    @property
    def can_be_target(self) -> bool:
        """Whether the item can be a target; otherwise it is used in profiles only."""
        return all(self.question_fields.values())


class History(NamedTuple):
    """Items of a user, the oldest first; simultaneous ones in the order of the file."""

    user: UserId
    entries: list[HistoryEntry]
    dropped: int = 0
    """Number of items left out as repetitions of earlier ones."""


class Bucket(NamedTuple):
    """File with the histories of consecutive users; `first` is the number of the first user."""

    path: Path
    first: int
    users: tuple[UserId, ...]

    def histories(self, *, duplicates: str = "keep") -> Iterator[History]:
        """History of each user, empty where no row was usable.

        Repeated items are left out unless `duplicates` is "keep". Where some items of a user have no date, all dates
        are removed.
        """
        lines: defaultdict[int, list[bytes]] = defaultdict(list)
        if self.path.exists():
            with open(self.path, "rb") as file:
                for line in file:
                    number, _, record = line.partition(b" ")
                    lines[int(number)].append(record)
        for number, user in enumerate(self.users, self.first):
            entries = [_parse_entry(record) for record in lines.pop(number, ())]
            if not all("date" in entry.item for entry in entries):
                entries = [_undated(entry) for entry in entries]
            kept = entries if duplicates == "keep" else _distinct(entries)
            yield History(user, sorted(kept, key=lambda entry: entry.order), len(entries) - len(kept))


def _distinct(entries: Iterable[HistoryEntry]) -> list[HistoryEntry]:
    """First item of each content."""
    found: dict[tuple[Any, ...], HistoryEntry] = {}
    for entry in entries:
        found.setdefault(entry.content, entry)
    return list(found.values())


def _undated(entry: HistoryEntry) -> HistoryEntry:
    return HistoryEntry((), {name: text for name, text in entry.item.items() if name != "date"}, entry.question_fields)


def _parse_entry(record: bytes) -> HistoryEntry:
    order, item, question_fields = parse_record(record)
    return HistoryEntry(tuple(order), item, question_fields)


@dataclass
class DroppedRows:
    """Number of rows dropped for one reason, and the numbers of the first of them, counted from 1."""

    count: int = 0
    first_rows: list[int] = field(default_factory=list)
    example: str = ""
    """Unusable value of the first row."""

    @property
    def described(self) -> str:
        example = f"; {self.example}" if self.example else ""
        return f"{self.count} (first rows {', '.join(map(str, self.first_rows))}{example})"

    @property
    def record(self) -> dict[str, Any]:
        """JSON object for the report."""
        return {"count": self.count, "first_rows": self.first_rows}

    def add(self, row: int, example: str = "") -> None:
        self.example = example if self.count == 0 else self.example
        self.count += 1
        if len(self.first_rows) < _SHOWN_ROWS:
            self.first_rows.append(row)


@dataclass
class GatheredHistories:
    """Result of grouping the rows. `references` are drawn from those of all users (LaMP-1)."""

    rows: int = 0
    dropped: defaultdict[str, DroppedRows] = field(default_factory=lambda: defaultdict(DroppedRows))
    undated: DroppedRows = field(default_factory=DroppedRows)
    """Rows kept without their date, which is unreadable and not needed."""
    buckets: list[Bucket] = field(default_factory=list)
    references: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return self.rows - sum(dropped.count for dropped in self.dropped.values())

    @property
    def users(self) -> int:
        return sum(len(bucket.users) for bucket in self.buckets)

    @property
    def size(self) -> int:
        """Size of all histories in bytes."""
        return sum(os.path.getsize(bucket.path) for bucket in self.buckets if bucket.path.exists())


def gather(rows: Iterable[TableRow], *, folder: Path, options: BenchmarkForm) -> GatheredHistories:
    """Writes the rows of the histories to buckets in `folder`. LampError where there is no usable row."""
    found, users = GatheredHistories(), _UserNumbers()
    writer, reservoir = _BucketWriter(folder), Reservoir(_MAX_REFERENCES, seed=options.seed)
    for read in itertools.chain.from_iterable(_read_all(rows, options)):
        found.rows += 1
        number = None if read.user is None else users.number_of(read.user)
        if number is None or read.reason:
            found.dropped[read.reason].add(found.rows, read.example)
            continue
        if read.no_date:
            found.undated.add(found.rows, read.no_date)
        writer.add(number, read.record)
        if read.reference:
            reservoir.offer(read.reference)
    writer.flush()
    _check_kept(found, options.histories)
    found.buckets = writer.buckets(users.all)
    found.references = reservoir.texts
    return found


class _UserNumbers:
    """Numbers of users. 1 and "1" are the same user, whose id is kept as first written."""

    def __init__(self):
        self.all: list[UserId] = []
        self._numbers: dict[str, int] = {}

    def number_of(self, user: UserId) -> int:
        number = self._numbers.setdefault(str(user), len(self.all))
        if number == len(self.all):
            self.all.append(user)
        return number


class _ReadRow(NamedTuple):
    """Parsed row: its user (None where missing), and the encoded item or the reason for dropping the row."""

    user: UserId | None
    record: bytes = b""
    reason: str = ""
    reference: str = ""
    example: str = ""
    no_date: str = ""
    """Unreadable date that is not needed."""


def _read_all(rows: Iterable[TableRow], options: BenchmarkForm) -> Iterator[list[_ReadRow]]:
    """Parsed rows in batches, in order, read in parallel."""
    _reader.cache_clear()  # the tables to join may have changed
    rest = iter(rows)
    batches = iter(lambda: list(itertools.islice(rest, _BATCH_ROWS)), [])
    processes = count_processes(options.work, os.path.getsize(options.histories))
    return map_in_processes(partial(_read_batch, options=options), batches, processes=processes)


def _read_batch(rows: Iterable[TableRow], *, options: BenchmarkForm) -> list[_ReadRow]:
    return [_read_row(row, _reader(options)) for row in rows]


def _read_row(row: TableRow, reader: "RowReader") -> _ReadRow:
    user = None
    try:
        user = reader.user(row)
        entry, no_date = reader.entry(row)
    except UnusableValue as reason:
        return _ReadRow(user, reason=str(reason), example=reason.example)
    except LampError as error:
        raise LampError(f"{reader.path}: {error}") from None
    return _ReadRow(user, encode([*entry]), reference=entry.question_fields.get("reference", ""), no_date=no_date)


@lru_cache(maxsize=1)
def _reader(options: BenchmarkForm) -> "RowReader":
    """Reader of this process, which opens the tables to join once."""
    return RowReader(open_history_table(options), options)


def _check_kept(found: GatheredHistories, path: str) -> None:
    if not found.rows:
        raise LampError(f"{path}: contains no rows")
    if not found.kept:
        reasons = "; ".join(f"{reason}: {rows.described}" for reason, rows in found.dropped.items())
        raise LampError(f"{path}: none of its {found.rows} rows is usable; {reasons}")


class RowReader:
    """Reads users and items from the rows of a source. Its methods raise UnusableValue."""

    def __init__(self, source: HistoryTable, options: BenchmarkForm):
        self._options, self._task = options, find_task(options.task)
        self.path, self._joins = source.path, source.joins
        self._form = options.date_form
        self._needs_date = options.split == "time" or options.targets == "last"
        self._user = source.patterns["user"]
        self._user_column = self._user.column
        user_paths = [join.path for join in source.joins if set(self._user.columns) & set(join.columns)]
        self._user_is_joined = bool(user_paths)
        # Integers with missing values are floats in parquet files of pandas.
        self._floats_are_users = all(path.lower().endswith(".parquet") for path in user_paths or [source.path])
        self._patterns = {name: pattern for name, pattern in source.patterns.items() if name != "user"}
        self._fields = self._task.fields
        self._needed = [self._task.source] if self._task.cites else [self._task.source, self._task.target]

    def user(self, row: TableRow) -> UserId:
        """User id of a row, str or int as in the table."""
        if self._user_is_joined:
            row = self._join(row)
        value = self._user.fill(row) if self._user_column is None else row.get(self._user_column)
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise UnusableValue("no user")
        if isinstance(value, str | int) and is_id(value):
            return value
        if type(value) is float and value.is_integer() and self._floats_are_users:
            return int(value)
        if isinstance(value, str):
            raise UnusableValue("a lone surrogate in the user id")
        kind = type(value).__name__
        raise UnusableValue(f"a user id of type {kind}, neither a text nor an integer", repr(value)[:_SHOWN_CHARACTERS])

    def entry(self, row: TableRow) -> tuple[HistoryEntry, str]:
        """Entry of a row with its joined columns; and its date if that is unreadable and not needed, else ""."""
        row = self._join(row)
        texts = {name: pattern.fill(row) for name, pattern in self._patterns.items()}
        item = {name: texts[name] for name in self._fields}
        for name in self._needed:
            if not item[name].strip():
                raise UnusableValue(f"no {name}")
        if self._task.labels and not self._task.cites:
            target = self._task.target
            item[target] = read_label(item[target], self._task, rounding=self._options.round_scores)
        order: tuple[float, ...] = ()
        no_date = ""
        if "date" in texts:
            try:
                order, item["date"] = read_date(texts["date"], form=self._form, format=self._options.date_format)
            except (UnusableValue, LampError):
                if self._needs_date:
                    raise
                no_date = texts["date"] or "(empty)"
        question_fields = {name: texts[name].strip() for name in ("input", "reference") if name in texts}
        return HistoryEntry(order, item, question_fields), no_date

    def _join(self, row: TableRow) -> TableRow:
        for join in self._joins:
            row = join.add_to(row)
        return row


def read_label(text: str, task: Task, *, rounding: str) -> str:
    """Task label of a value: "4" for "4.0", and with `rounding` "up" for 3.5. Raises UnusableValue for other values."""
    label = text.strip()
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        if rounding == "no" and not number.is_integer():
            raise UnusableValue(f"{task.target} between two labels (see --round-scores)")
        label = str(int(number) if rounding == "no" else _ROUND[rounding](number))
    if label not in task.labels:
        raise UnusableValue(f"{task.target} is not a label of {task.name}")
    return label


class _BucketWriter:
    """Buffered writer that appends many lines to one bucket's file at a time, so that few files are open."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._lines: defaultdict[int, list[bytes]] = defaultdict(list)
        self._size = 0

    def add(self, user: int, record: bytes) -> None:
        """Adds a record to the history of the user with this number."""
        self._lines[user // _BUCKET_USERS].append(b"%d %b\n" % (user, record))
        self._size += len(record)
        if self._size > _BUFFERED_BYTES:
            self.flush()

    def flush(self) -> None:
        for bucket, lines in self._lines.items():
            with open(self._path(bucket), "ab") as file:
                file.writelines(lines)
        self._lines.clear()
        self._size = 0

    def buckets(self, users: Sequence[UserId]) -> list[Bucket]:
        """Buckets of all users, who are listed by number."""
        starts = range(0, len(users), _BUCKET_USERS)
        return [
            Bucket(self._path(number), start, tuple(users[start : start + _BUCKET_USERS]))
            for number, start in enumerate(starts)
        ]

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket}.jsonl"


class Reservoir:
    """Random sample of the offered texts, which depends on neither their order nor their frequency."""

    def __init__(self, size: int, *, seed: int):
        self._size, self._seed = size, seed
        self._heap: list[tuple[int, str]] = []  # the largest draw first, by its negative
        self._kept: set[str] = set()

    @property
    def texts(self) -> list[str]:
        return [text for _, text in sorted(self._heap, reverse=True)]

    def offer(self, text: str) -> None:
        if text in self._kept:
            return
        self._kept.add(text)
        heapq.heappush(self._heap, (-stable_hash(self._seed, text), text))
        if len(self._heap) > self._size:
            self._kept.remove(heapq.heappop(self._heap)[1])


def stable_hash(*parts: object) -> int:
    """64-bit hash of the parts as texts, the same in every process."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
