"""Stores of adapters: one directory for the adapters of many users, with random access by user id.

`adapters.json` has the form of all adapters and the list of segments: shards, which hold the users in order, and index
segments, which map a user to a row (see `segments`). An append writes a shard and an index segment, into which
preceding small ones are merged, and then replaces the list: a killed append leaves the store unchanged.
"""

import contextlib
import math
import os
import re
import zlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeVar

import ml_dtypes
import numpy as np

from lamp_jax.artifacts import old_store
from lamp_jax.artifacts.segments import (
    INDEX,
    POSTING,
    ROW,
    SHARDS,
    AdapterEntry,
    IndexFile,
    Segment,
    SegmentKind,
    ShardFile,
    count_merged,
    hash_user,
    is_segment,
    user_bytes,
    write_index,
    write_shard,
)
from lamp_jax.artifacts.tensor_files import damaged
from lamp_jax.config import Lora
from lamp_jax.errors import LampError
from lamp_jax.runs.journals import open_locked
from lamp_jax.runs.json_files import check_fetched, read_json, short_repr, write_json
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.remote import PublishThrottle

EVERYBODY = "everybody"
"""User id of the adapter that is shared by all users without their own."""

FORM = "adapters.json"
CHECKED = ("adapters-*.safetensors", "index-*.safetensors")
"""Patterns of the files whose checksums are in `FORM`."""
FILES = (FORM, *CHECKED)
"""Patterns of the names of a store's files."""
VERSION = 2
_LOCK = ".adapters.lamp.lock"

_TYPES = {"float32": np.dtype("<f4"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_TENSOR_TYPES = {"float32": "F32", "bfloat16": "BF16"}
_FORM_TYPES: dict[str, tuple[type, ...]] = {
    "base": (str,),
    "base_name": (str,),
    "rank": (int,),
    "alpha": (float, int),
    "targets": (list, tuple),
    "shapes": (dict,),
    "dtype": (str,),
}
_LIST_TYPES: dict[str, tuple[type, ...]] = {"version": (int,), "segments": (list,), "crc32": (int,)}
_SEGMENT = re.compile(r"(adapters|index)-(\d{12})-(\d{12})\.safetensors (\d{1,18}) ([0-9a-f]{16})")
_LIMIT = 2**63
_SHOWN = 5


@dataclass(frozen=True)
class AdapterForm:
    """Common properties of all adapters of a store."""

    base: str
    """Fingerprint of the base model's weights."""
    base_name: str
    """Name by which the base model was given: for messages only, never compared."""
    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Names of projections, in any order."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each array of one adapter, such as `encoder.attention.query.down`, in the order of the file."""
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def bytes_per_user(self) -> int:
        return _TYPES[self.dtype].itemsize * sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def lora(self) -> Lora:
        """Settings for applying the adapters, without dropout."""
        return Lora(self.rank, self.alpha, self.targets, dropout=0.0)

    def spans(self) -> Iterator[tuple[str, tuple[int, ...], slice]]:
        """Name and shape of each array, and its slice of a user's numbers."""
        start = 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            yield name, shape, slice(start, stop)
            start = stop


class StoreSegments(NamedTuple):
    """Segment files of a store, in the order of their rows."""

    shards: tuple[Segment, ...] = ()
    index: tuple[Segment, ...] = ()

    @property
    def users(self) -> int:
        return self.shards[-1].stop if self.shards else 0

    @property
    def names(self) -> set[str]:
        return {segment.name for segment in (*self.shards, *self.index)}


class _LocatedAdapter(NamedTuple):
    """Row of a user in the store, the adapter's entry, and the checksum of its numbers."""

    row: int
    entry: AdapterEntry
    checksum: int


Value = TypeVar("Value")


class AdapterStore:
    """Store of adapters in a directory. One of `create_store` can be appended to, one of `open_store` is read-only.

    Of several processes the first writes, and all make the same appends; each reads the files itself. A reader sees the
    state at opening, or a later one if another command appends.
    """

    def __init__(
        self,
        directory: Path,
        form: AdapterForm,
        segments: StoreSegments,
        *,
        lock_files: Sequence[IO[bytes]] | None = None,
    ):
        self.directory, self.form = directory, form
        self.entries: Mapping[str, AdapterEntry] = _Entries(self)
        """By user, in the order of the rows."""
        self.segments = segments
        self._lock_files, self._throttle = lock_files, PublishThrottle()
        self._opened: dict[str, Any] = {}

    def append(self, entries: Sequence[AdapterEntry], adapters: Mapping[str, np.ndarray]) -> None:
        """Appends users; they are on disk when this returns. `adapters` has each array of the form, [users, *its
        shape].

        Numbers of any float type are converted to the form's. After a kill, the store has all of these users or none.
        Raises LampError, without adding any user, for users who are in the store, for arrays or shapes other than the
        form's, for numbers that are not finite, and for adapters without effect.
        """
        if self._lock_files is None:
            raise ValueError(f"{self.directory}: opened read-only; open the store with create_store to append")
        self._check_new(entries)
        numbers = self._concatenate(len(entries), adapters)
        self._check_numbers([entry.user for entry in entries], numbers)
        if entries:
            self.segments = _parse_segments(on_first(lambda: self._write(entries, numbers)), self.directory / FORM)

    def read(self, users: Sequence[str]) -> dict[str, np.ndarray]:
        """Adapters of these users, in this order: each array of the form, [n, *its shape], in the form's type.

        LampError for users without an adapter, with their number, and for a damaged adapter.
        """
        records = self._with_current_segments(lambda: self._records(users, self._locate(users)))
        return self.arrays(records)

    def known(self, users: Sequence[str]) -> set[str]:
        """Users among these who have their own adapter; the same in all processes of a store opened to append."""

        def locate() -> list[str]:
            return list(self._with_current_segments(lambda: self._locate(users)))

        return set(locate() if self._lock_files is None else on_first(locate))

    def find(self, users: Sequence[str]) -> dict[str, AdapterEntry]:
        """Entries of those users who have an adapter."""
        return {user: found.entry for user, found in self._with_current_segments(lambda: self._locate(users)).items()}

    def serving(self, users: Sequence[str | None]) -> list[str | None]:
        """User whose adapter serves each user: the user, or else EVERYBODY; None where the store has neither."""
        known = self.known([EVERYBODY, *(user for user in users if user is not None)])
        others = EVERYBODY if EVERYBODY in known else None
        return [None if user is None else user if user in known else others for user in users]

    def read_for(self, users: Sequence[str | None]) -> dict[str, np.ndarray]:
        """As `read`, the adapter that serves each user; zeros, which have no effect, where there is none."""
        serving = self.serving(users)
        indices = [index for index, user in enumerate(serving) if user is not None]
        found = self.read([user for user in serving if user is not None])
        rows = {name: np.zeros((len(users), *values.shape[1:]), values.dtype) for name, values in found.items()}
        for name, values in found.items():
            rows[name][indices] = values
        return rows

    def scan(self) -> Iterator[AdapterEntry]:
        """Entries of all users in order, read shard by shard. LampError for a damaged one."""
        row = 0
        while row < self.segments.users:
            entries = self._with_current_segments(partial(self._entries_from, row))
            yield from entries
            row += len(entries)

    def close(self) -> None:
        for file in self._lock_files or ():
            (self.directory / _LOCK).unlink(missing_ok=True)
            file.close()
        self._lock_files = None

    def check_files(self) -> None:
        """LampError where a segment is missing, or does not have its recorded size."""
        self._with_current_segments(self._check_sizes)

    def sweep(self) -> None:
        """Removes files that killed appends left: segments that are not listed, and temporary files of segments."""
        for path in self.directory.iterdir():
            if is_segment(path.name, temporary=True) and path.name not in self.segments.names:
                path.unlink()

    def _with_current_segments(self, function: Callable[[], Value]) -> Value:
        """Value of `function`, which is repeated with the newest list of segments where some were merged meanwhile."""
        while True:
            try:
                return function()
            except FileNotFoundError as error:
                before, self.segments = self.segments, read_segments(self.directory)
                if before == self.segments:
                    raise LampError(
                        f"{error.filename}: no such file; copy the store again, or make it again (--force)"
                    ) from None

    def _check_sizes(self) -> None:
        for segment in (*self.segments.shards, *self.segments.index):
            path = self.directory / segment.name
            if (size := path.stat().st_size) != segment.size:
                check_fetched(path)
                raise LampError(
                    f"{path}: has {size} of {segment.size} bytes; copy the store again, or make it again (--force)"
                )

    def _open(self, segment: Segment) -> Any:
        """Reader of a segment. Readers of segments that are no longer listed are dropped."""
        if segment.name not in self._opened:
            listed = self.segments.names
            self._opened = {name: opened for name, opened in self._opened.items() if name in listed}
            self._opened[segment.name] = self._open_segment(segment)
        return self._opened[segment.name]

    def _open_segment(self, segment: Segment) -> ShardFile | IndexFile:
        if segment.kind == INDEX:
            return IndexFile(self.directory, segment)
        size = self.form.bytes_per_user // _TYPES[self.form.dtype].itemsize
        return ShardFile(self.directory, segment, _TENSOR_TYPES[self.form.dtype], size)

    def _shard_of(self, row: int) -> ShardFile:
        shards = self.segments.shards
        return self._open(shards[bisect_right(shards, row, key=lambda segment: segment.first) - 1])

    def _entries_from(self, row: int) -> list[AdapterEntry]:
        """Entries of a row and of the rows after it in its shard."""
        shard = self._shard_of(row)
        return list(shard.entries())[row - shard.segment.first :]

    def _locate(self, users: Iterable[str]) -> dict[str, _LocatedAdapter]:
        """Located adapters of those users who have one."""
        wanted, found = list(dict.fromkeys(users)), {}
        hashes = np.array([hash_user(user_bytes(user)) for user in wanted], np.uint64)
        for segment in sorted(self.segments.index, key=lambda segment: -segment.users):
            left = [index for index, user in enumerate(wanted) if user not in found]
            if not left:
                break
            candidates = [(row, wanted[left[index]]) for index, row in self._open(segment).find(hashes[left])]
            for (row, user), shard, file in self._visit(candidates):
                entry = shard.entry(file, row)
                if entry is None:
                    raise damaged(shard.file.path, f"the adapter of user {user!r}")
                if entry[0].user == user:
                    found[user] = _LocatedAdapter(row, *entry)
        return found

    def _records(self, users: Sequence[str], found: Mapping[str, _LocatedAdapter]) -> np.ndarray:
        """Checked bytes of the users' adapters, uint8 [n, bytes per user]."""
        unknown = [user for user in users if user not in found]
        if unknown:
            raise LampError(
                f"{self.directory}: no adapters for {len(unknown)} of {len(users)} users ({_first(unknown)}); train or "
                "import their adapters, or leave these users out"
            )
        records = np.empty((len(users), self.form.bytes_per_user), np.uint8)
        for (row, index), shard, file in self._visit([(found[user].row, index) for index, user in enumerate(users)]):
            data = shard.numbers(file, row)  # a memory map would be read from disk page by page
            if zlib.crc32(data) != found[users[index]].checksum:
                raise damaged(shard.file.path, f"the adapter of user {users[index]!r}")
            records[index] = np.frombuffer(data, np.uint8)
        return records

    def _visit(self, rows: Iterable[tuple[int, Value]]) -> Iterator[tuple[tuple[int, Value], ShardFile, IO[bytes]]]:
        """Rows in ascending order, each with its value, its shard and the shard's open file."""
        ordered = sorted(rows, key=lambda pair: pair[0])
        for shard, group in groupby(ordered, key=lambda pair: self._shard_of(pair[0])):
            with shard.file.open() as file:
                yield from ((pair, shard, file) for pair in group)

    def arrays(self, records: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays of the form, [n, *its shape], from the users' bytes, uint8 [n, bytes per user]."""
        numbers = records.view(_TYPES[self.form.dtype])
        return {name: numbers[:, span].reshape(len(records), *shape) for name, shape, span in self.form.spans()}

    def _check_new(self, entries: Sequence[AdapterEntry]) -> None:
        known, seen = self.known([entry.user for entry in entries]), set[str]()
        for entry in entries:
            if entry.user in known:
                raise LampError(f"{self.directory}: user {entry.user!r} has an adapter already; leave this user out")
            if entry.user in seen:
                raise LampError(f"{self.directory}: user {entry.user!r} is given twice; give each user once")
            if max(abs(entry.items), abs(entry.updates)) >= _LIMIT:
                raise LampError(f"{self.directory}: user {entry.user!r}: {entry.items} items; give fewer than 2**63")
            seen.add(entry.user)

    def _concatenate(self, count: int, adapters: Mapping[str, np.ndarray]) -> np.ndarray:
        """Concatenated arrays: [count, ...] of each -> [count, numbers per user] in the form's type."""
        missing = [name for name in self.form.shapes if name not in adapters]
        extra = [name for name in adapters if name not in self.form.shapes]
        if missing or extra:
            parts = [f"{what} {_first(names)}" for what, names in (("without", missing), ("with", extra)) if names]
            raise LampError(f"{self.directory}: adapters {' and '.join(parts)}; give the arrays of the store's form")
        size = sum(math.prod(shape) for shape in self.form.shapes.values())
        numbers = np.empty((count, size), _TYPES[self.form.dtype])
        for name, shape, span in self.form.spans():
            values = np.asarray(adapters[name])
            if values.shape != (count, *shape):
                raise LampError(
                    f"{self.directory}: {name} has the shape {list(values.shape)}, where {count} users of the store "
                    f"have {[count, *shape]}; give adapters of the store's form"
                )
            with np.errstate(over="ignore", invalid="ignore"):  # the result is checked
                numbers[:, span] = values.reshape(count, math.prod(shape))
        return numbers

    def faults(self, adapters: Mapping[str, np.ndarray]) -> list[str]:
        """Reason for which `append` would refuse each of these adapters [n, ...]; "" for a valid one."""
        return self._faults(self._concatenate(len(next(iter(adapters.values()))), adapters))

    def _faults(self, numbers: np.ndarray) -> list[str]:
        """Faults of converted numbers, [n, numbers per user]: rounding can produce infinities and zeros."""
        faults = [""] * len(numbers)
        for kind in ("up", "down"):
            spans = [span for name, _, span in self.form.spans() if name.endswith(f".{kind}")]
            effect = np.any([(numbers[:, span] != 0).any(axis=1) for span in spans], axis=0) if spans else ()
            for index in np.flatnonzero(np.logical_not(effect)):
                faults[index] = f"has no effect: all of its `{kind}` matrices are 0"
        for index in np.flatnonzero(~np.isfinite(numbers).all(axis=1)):
            faults[index] = f"has numbers that are not finite as {self.form.dtype}"
        return faults

    def _check_numbers(self, users: Sequence[str], numbers: np.ndarray) -> None:
        for user, fault in zip(users, self._faults(numbers), strict=True):
            if fault:
                raise LampError(
                    f"{self.directory}: adapter of user {user!r} {fault}; train it again, or leave the user out"
                )

    def _write(self, entries: Sequence[AdapterEntry], numbers: np.ndarray) -> list[str]:
        """Writes new segments, then the list of segments, and removes merged segments last."""
        (shards, index), start, names = self.segments, self.segments.users, self.segments.names
        count = count_merged(shards, SHARDS, len(entries), self.form.bytes_per_user + ROW.itemsize)
        kept, merged = shards[: len(shards) - count], [self._open(shard) for shard in shards[len(shards) - count :]]
        shards = (*kept, write_shard(self.directory, merged, start, entries, numbers))
        count = count_merged(index, INDEX, len(entries), POSTING.itemsize)
        kept, merged = index[: len(index) - count], [self._open(segment) for segment in index[len(index) - count :]]
        index = (*kept, write_index(self.directory, merged, start, [entry.user for entry in entries]))
        segments = StoreSegments(shards, index)
        write_json(self.directory / FORM, _contents(self.form, segments))
        for name in names - segments.names:
            (self.directory / name).unlink(missing_ok=True)
        self._throttle.publish()
        return _segment_lines(segments)


class _Entries(Mapping[str, AdapterEntry]):
    """The entries of a store by user, read on request."""

    def __init__(self, store: AdapterStore):
        self._store = store

    def __len__(self) -> int:
        return self._store.segments.users

    def __iter__(self) -> Iterator[str]:
        return (entry.user for entry in self._store.scan())

    def __contains__(self, user: object) -> bool:
        return isinstance(user, str) and bool(self._store.known([user]))

    def __getitem__(self, user: str) -> AdapterEntry:
        return self._store.find([user])[user]

    def values(self) -> ValuesView[AdapterEntry]:
        return _EntryValues(self)


class _EntryValues(ValuesView[AdapterEntry]):
    def __iter__(self) -> Iterator[AdapterEntry]:
        return self._mapping._store.scan()  # pyright: ignore[reportAttributeAccessIssue]


def create_store(directory: str | Path, form: AdapterForm) -> AdapterStore:
    """Store opened to append: a new one, or the existing one, if it has this form (check_form).

    LampError while another command appends to it, which is checked first, and for a store with missing files, which is
    left unchanged.
    """
    directory = Path(directory)
    lock_files: list[IO[bytes]] = []

    def prepare() -> dict[str, Any]:
        lock_files.append(_lock_store(directory))
        return _prepare_form(directory, form)

    def check(store: AdapterStore) -> None:
        store.check_files()
        store.sweep()

    store = AdapterStore(directory, form, StoreSegments(), lock_files=lock_files)
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        contents = on_first(prepare)
        path = directory / FORM
        store.form, store.segments = _parse_form(contents, path), _parse_segments(contents["segments"], path)
        on_first(lambda: check(store))
        stack.pop_all()
    return store


def open_store(directory: str | Path) -> AdapterStore:
    """Store opened read-only. LampError where there is no store, or an incomplete one."""
    directory, contents = Path(directory), _read_contents(Path(directory))
    path = directory / FORM
    if contents is None:
        raise LampError(f"{path}: no such file; give the directory of a store, as `lamp train-adapters` makes it")
    store = AdapterStore(directory, _parse_form(contents, path), _parse_segments(contents["segments"], path))
    store.check_files()
    return store


def read_store_form(directory: str | Path) -> AdapterForm | None:
    """Form of a store; None where there is no store. LampError for an invalid form."""
    contents = _read_contents(Path(directory))
    return None if contents is None else _parse_form(contents, Path(directory) / FORM)


def read_old_form(directory: str | Path) -> AdapterForm:
    """Form of a store of an earlier version. LampError for an invalid form."""
    path = Path(directory) / FORM
    return _parse_form(read_json(path), path)


def read_segments(directory: Path) -> StoreSegments:
    """Segments listed in a store. LampError where there is no store."""
    contents = _read_contents(directory)
    if contents is None:
        raise LampError(f"{directory / FORM}: no such file; copy the store again, or make it again")
    return _parse_segments(contents["segments"], directory / FORM)


def check_form(store: AdapterForm, wanted: AdapterForm, *, where: str | Path = "the store") -> None:
    """LampError, with every difference and both values, unless two forms describe the same adapters.

    The name of the base and the order of targets and arrays are ignored.
    """
    problems, remedy = [], "give the store's values, or another store"
    if store.base != wanted.base:
        remedy = "give the model that it was made with, or another store"
        problems.append(f"its base model is {store.base_name}, not {wanted.base_name} (their weights differ)")
    problems += [
        f"{name} {stored} in the store, {requested} requested"
        for name, stored, requested in _properties(store, wanted)
        if stored != requested
    ]
    if problems:
        raise LampError(f"{where}: {'; '.join(problems)}; {remedy}")


def count_users(users: Collection[str]) -> str:
    """Number of users and the first few ids, for messages."""
    return f"{len(users)} users" + (f" ({_first(users)})" if users else "")


def _properties(store: AdapterForm, wanted: AdapterForm) -> Iterator[tuple[str, Any, Any]]:
    """Name and both values of each property but the base; of differing shapes the first few."""
    for name in ("rank", "alpha", "dtype"):
        yield name, getattr(store, name), getattr(wanted, name)
    yield "targets", " ".join(sorted(set(store.targets))), " ".join(sorted(set(wanted.targets)))
    shapes = [
        (f"shape of {name}", store.shapes.get(name, "none"), wanted.shapes.get(name, "none"))
        for name in {**store.shapes, **wanted.shapes}
    ]
    yield from [shape for shape in shapes if shape[1] != shape[2]][:_SHOWN]


def _lock_store(directory: Path) -> IO[bytes]:
    """Lock of a store, released when it is closed. LampError where another command holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _LOCK
    while True:
        file = open_locked(path, name=directory)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the previous holder removed the lock file before it was locked here


def _prepare_form(directory: Path, form: AdapterForm) -> dict[str, Any]:
    """Contents of the store's `adapters.json`, which is written where missing."""
    path, contents = directory / FORM, _read_contents(directory)
    if contents is not None:
        check_form(_parse_form(contents, path), form, where=directory)
        return contents
    for file in sorted(directory.iterdir()):
        if is_segment(file.name) or (file.name in old_store.FILES and file.stat().st_size):
            raise LampError(f"{file}: exists without {FORM}; restore {FORM}, or move this file away")
    contents = _contents(form, StoreSegments())
    _parse_form(contents, path)
    write_json(path, contents)
    return contents


def _contents(form: AdapterForm, segments: StoreSegments) -> dict[str, Any]:
    listed = _segment_lines(segments)
    common = {field.name: getattr(form, field.name) for field in fields(form)} | {"shapes": dict(form.shapes)}
    return {"version": VERSION, **common, "segments": listed, "crc32": _checksum(listed)}


def _segment_lines(segments: StoreSegments) -> list[str]:
    every = (*segments.shards, *segments.index)
    return [f"{segment.name} {segment.size} {segment.digest}" for segment in every]


def _checksum(listed: Sequence[str]) -> int:
    return zlib.crc32("\n".join(listed).encode())


def _read_contents(directory: Path) -> dict[str, Any] | None:
    """Contents of a store's `adapters.json`; None where there is none. LampError for another version's."""
    path = directory / FORM
    if not path.exists():
        return None
    contents = read_json(path)
    _check_types(contents, _FORM_TYPES, str(path))
    if "version" not in contents and old_store.is_old(directory):
        raise LampError(
            f"{directory}: a store of an earlier version of lamp; convert it to this version: "
            f"lamp convert-store --store {directory} --output NEW"
        )
    _check_types(contents, _LIST_TYPES, str(path))
    if contents["version"] != VERSION:
        raise LampError(
            f"{path}: store version {contents['version']}, but this lamp reads version {VERSION}; install a newer lamp"
        )
    if (
        not all(isinstance(line, str) for line in contents["segments"])
        or _checksum(contents["segments"]) != contents["crc32"]
    ):
        raise damaged(path, "the list of segments")
    return contents


def _parse_segments(listed: Sequence[str], path: Path) -> StoreSegments:
    """Segments in a list of lines. LampError unless those of each kind cover all users."""
    found: dict[str, list[Segment]] = {SHARDS.name: [], INDEX.name: []}
    for line in listed:
        match = _SEGMENT.fullmatch(line)
        if match is None:
            raise damaged(path, f"the segment {short_repr(line)}")
        name, first, stop, size, digest = match.groups()
        kind: SegmentKind = {SHARDS.name: SHARDS, INDEX.name: INDEX}[name]
        before = found[name][-1].stop if found[name] else 0
        segment = Segment(kind, int(first), int(stop), int(size), digest)
        if not before == segment.first < segment.stop:
            raise damaged(path, "the list of segments")
        found[name].append(segment)
    segments = StoreSegments(*(tuple(found[kind.name]) for kind in (SHARDS, INDEX)))
    if segments.users != (segments.index[-1].stop if segments.index else 0):
        raise damaged(path, "the list of segments")
    return segments


def _parse_form(contents: Any, path: Path) -> AdapterForm:
    _check_types(contents, _FORM_TYPES, str(path))
    targets, shapes, dtype = contents["targets"], contents["shapes"], contents["dtype"]
    sizes = [size for shape in shapes.values() for size in (shape if isinstance(shape, list | tuple) else (None,))]
    for name, valid in (
        ("targets", all(type(target) is str for target in targets)),
        ("shapes", bool(shapes) and all(type(size) is int and size > 0 for size in sizes)),
        ("dtype", dtype in _TYPES),
        ("rank", contents["rank"] >= 1),
        ("alpha", 0 < contents["alpha"] < math.inf),
    ):
        if not valid:
            raise _invalid_field(str(path), name, contents[name])
    return AdapterForm(
        base=contents["base"],
        base_name=contents["base_name"],
        rank=contents["rank"],
        alpha=float(contents["alpha"]),
        targets=tuple(targets),
        shapes={name: tuple(shape) for name, shape in shapes.items()},
        dtype=dtype,
    )


def _check_types(contents: Any, types: Mapping[str, tuple[type, ...]], where: str) -> None:
    if not isinstance(contents, dict):
        raise LampError(f"{where}: expected an object, found {short_repr(contents)}; copy the store again")
    for name, allowed in types.items():
        if name not in contents:
            raise LampError(f"{where}: {name!r} is missing; copy the store again, or make it again")
        if type(contents[name]) not in allowed:
            raise _invalid_field(where, name, contents[name])


def _invalid_field(where: str, name: str, value: Any) -> LampError:
    return LampError(f"{where}: {name!r} cannot be {short_repr(value)}; copy the store again, or make it again")


def _first(names: Collection[str]) -> str:
    return ", ".join(islice(names, _SHOWN)) + (", ..." if len(names) > _SHOWN else "")
