"""Segments of a store of adapters: immutable files of consecutive users, merged as the store grows.

Shards hold the users' ids, the entries of their adapters, and the adapters' numbers. Index segments hold the users'
rows in the store, sorted by hashes of the ids. Every row and every chunk of an index has a checksum.
"""

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lamp_jax.artifacts.tensor_files import DTYPES, TensorFile, TensorSpecs, damaged, write_tensors

ROW = np.dtype(
    [("end", "<u8"), ("items", "<i8"), ("updates", "<i8"), ("loss", "<f8"), ("numbers", "<u4"), ("crc32", "<u4")]
)
"""A user in the tensor `rows` of a shard: the end of the id in the tensor `users`; the fields of the entry, NaN for no
loss; checksums of the numbers, and of the id with the fields before it."""
POSTING = np.dtype([("hash", "<u8"), ("row", "<u4")])
"""A user in the tensor `postings` of an index segment."""
CHUNK = 256
"""Postings per checksum."""
_PACKED, _CHECKED = struct.Struct("<QqqdII"), slice(8, 36)
_NAME = re.compile(r"(adapters|index)-\d{12}-\d{12}\.safetensors")
_TEMPORARY = re.compile(rf"\.{_NAME.pattern}\.\d+\.unfinished")


@dataclass(frozen=True)
class AdapterEntry:
    """Facts about one user's adapter."""

    user: str
    items: int
    """Number of training examples."""
    updates: int
    loss: float | None
    """Mean of the last epoch, nats per token; None for an imported adapter."""


class SegmentKind(NamedTuple):
    """Name prefix and merge rules of a kind of segments."""

    name: str
    fan_in: int
    """Number of segments of one level that are merged into one of the next; the ratio of users between levels."""
    bytes: int
    """The size above which segments are not merged."""


SHARDS, INDEX = SegmentKind("adapters", 16, 2**27), SegmentKind("index", 4, 2**26)


@dataclass(frozen=True)
class Segment:
    """File of the users in the rows from `first` to `stop`."""

    kind: SegmentKind
    first: int
    stop: int
    size: int
    """Bytes of the file."""
    digest: str
    """Hash of all but the numbers (shard), whose checksums are inside, or of the fences and checksums (index)."""

    @cached_property
    def name(self) -> str:
        return f"{self.kind.name}-{self.first:012}-{self.stop:012}.safetensors"

    @property
    def users(self) -> int:
        return self.stop - self.first


def is_segment(name: str, *, temporary: bool = False) -> bool:
    """Whether a file name is that of a segment or, with `temporary`, of an incomplete one."""
    return bool(_NAME.fullmatch(name) or (temporary and _TEMPORARY.fullmatch(name)))


def count_merged(segments: Sequence[Segment], kind: SegmentKind, users: int, row_bytes: int) -> int:
    """Number of the last segments to merge with `users` new users of `row_bytes` each.

    Segments of a lower level are merged, and `fan_in` of the same level: so segments are few, levels never rise along
    the list, and a user is written about as often as there are levels.
    """
    merged = 0
    while True:
        level = _level(kind, users)
        last = segments[: len(segments) - merged]
        same = next(
            (index for index, segment in enumerate(reversed(last)) if _level(kind, segment.users) >= level), len(last)
        )
        if not same:
            same = kind.fan_in - 1
            if len(last) < same or any(_level(kind, segment.users) != level for segment in last[-same:]):
                return merged
        users += sum(segment.users for segment in last[-same:])
        if users * row_bytes > kind.bytes:
            return merged
        merged += same


def _level(kind: SegmentKind, users: int) -> int:
    """Number of digits of `users` to the base `fan_in`."""
    level = 0
    while users:
        users, level = users // kind.fan_in, level + 1
    return level


def user_bytes(user: str) -> bytes:
    return user.encode("utf-8", "surrogatepass")


def hash_user(user: bytes) -> int:
    """64-bit hash of an id, by which the index is sorted."""
    return int.from_bytes(hashlib.blake2b(user, digest_size=8).digest(), "little")


# --- shards


class ShardFile:
    """Reader of single users of a shard. LampError for damaged bytes."""

    def __init__(self, directory: Path, segment: Segment, dtype: str, size: int):
        wanted: TensorSpecs = {
            "numbers": (dtype, (segment.users, size)),
            "rows": ("U8", (segment.users, ROW.itemsize)),
            "users": ("U8", (None,)),
        }
        self.segment, self.file = segment, TensorFile(directory / segment.name, wanted)

    def entry(self, file: Any, row: int) -> tuple[AdapterEntry, int] | None:
        """Entry of a row of the store, with the checksum of the numbers; None for a damaged row."""
        index = row - self.segment.first
        rows = self.file.read(file, "rows", max(index - 1, 0), index + 1)
        start, stop = _end(rows) if index else 0, _end(rows[-ROW.itemsize :])
        if not start <= stop <= self.file.length("users"):
            return None
        return _entry(self.file.read(file, "users", start, stop), rows[-ROW.itemsize :])

    def numbers(self, file: Any, row: int) -> bytes:
        index = row - self.segment.first
        return self.file.read(file, "numbers", index, index + 1)

    def entries(self) -> Iterator[AdapterEntry]:
        """Entries of all users in order."""
        with self.file.open() as file:
            rows = self.file.read(file, "rows", 0, self.segment.users)
            users = self.file.read(file, "users", 0, self.file.length("users"))
        start = 0
        for index in range(self.segment.users):
            row = rows[index * ROW.itemsize : (index + 1) * ROW.itemsize]
            stop = _end(row)
            found = _entry(users[start:stop], row) if start <= stop <= len(users) else None
            if found is None:
                raise damaged(self.file.path, f"the user of row {self.segment.first + index}")
            yield found[0]
            start = stop


def write_shard(
    directory: Path, merged: Sequence[ShardFile], first: int, entries: Sequence[AdapterEntry], numbers: np.ndarray
) -> Segment:
    """Writes the users of other shards, and new ones with numbers [n, size] after them, as one shard."""
    first = merged[0].segment.first if merged else first
    kept = [np.array(shard.file.map("rows", DTYPES["U8"])).view(ROW)[:, 0] for shard in merged]
    ids = [user_bytes(entry.user) for entry in entries]
    rows, users = [*kept, _rows(entries, ids, numbers)], [shard.file.map("users", DTYPES["U8"]) for shard in merged]
    users.append(np.frombuffer(b"".join(ids), np.uint8))
    before = 0
    for part, names in zip(rows, users, strict=True):
        part["end"] += np.uint64(before)
        before += len(names)
    packed = [part.view(np.uint8).reshape(len(part), ROW.itemsize) for part in rows]
    stop = first + sum(map(len, rows))
    name = Segment(SHARDS, first, stop, 0, "").name
    mapped = [shard.file.map("numbers", numbers.dtype) for shard in merged]
    size = write_tensors(directory / name, {"numbers": [*mapped, numbers], "rows": packed, "users": users})
    return Segment(SHARDS, first, stop, size, _digest([*packed, *users]))


def _rows(entries: Sequence[AdapterEntry], ids: Sequence[bytes], numbers: np.ndarray) -> np.ndarray:
    rows = np.zeros(len(entries), ROW)
    rows["end"] = np.cumsum([len(user) for user in ids])
    rows["items"] = [entry.items for entry in entries]
    rows["updates"] = [entry.updates for entry in entries]
    rows["loss"] = [np.nan if entry.loss is None else entry.loss for entry in entries]
    rows["numbers"] = [zlib.crc32(row.data) for row in numbers.view(np.uint8)]
    rows["crc32"] = [_checksum(user, row.tobytes()) for user, row in zip(ids, rows, strict=True)]
    return rows


def _end(row: bytes) -> int:
    return int.from_bytes(row[:8], "little")


def _entry(user: bytes, row: bytes) -> tuple[AdapterEntry, int] | None:
    """Entry and checksum of the numbers in a packed row; None for a damaged row."""
    _, items, updates, loss, numbers, checksum = _PACKED.unpack(row)
    if _checksum(user, row) != checksum:
        return None
    return AdapterEntry(user.decode("utf-8", "surrogatepass"), items, updates, None if loss != loss else loss), numbers


def _checksum(user: bytes, row: bytes) -> int:
    return zlib.crc32(row[_CHECKED], zlib.crc32(user))


# --- the index


class IndexFile:
    """Reader of an index segment: rows of users by the hashes of their ids. Only the fences are in memory.

    A fence is the first hash of a chunk. LampError for a damaged chunk.
    """

    def __init__(self, directory: Path, segment: Segment):
        chunks = -(-segment.users // CHUNK)
        wanted: TensorSpecs = {
            "fences": ("U64", (chunks,)),
            "postings": ("U32", (segment.users, POSTING.itemsize // 4)),
            "crc32": ("U32", (chunks,)),
        }
        self.segment, self._file = segment, TensorFile(directory / segment.name, wanted)
        with self._file.open() as file:
            self._fences = np.frombuffer(self._file.read(file, "fences", 0, chunks), "<u8")
            self._sums = np.frombuffer(self._file.read(file, "crc32", 0, chunks), "<u4")
        if _digest([self._fences, self._sums]) != segment.digest:
            raise damaged(self._file.path)

    def find(self, hashes: np.ndarray) -> Iterator[tuple[int, int]]:
        """Rows with one of these hashes, each with the index of the hash; a row may be another user's of equal hash."""
        firsts = np.maximum(np.searchsorted(self._fences, hashes, "left") - 1, 0).tolist()
        stops = np.searchsorted(self._fences, hashes, "right").tolist()
        read, postings = -1, b""
        with self._file.open() as file:
            for index in np.argsort(hashes).tolist():  # each chunk is read once
                wanted = hashes[index].tobytes()
                for chunk in range(firsts[index], stops[index]):
                    if chunk != read:
                        read, postings = chunk, self._chunk(file, chunk)
                    for row in _rows_with_hash(wanted, postings):
                        yield index, row

    def _chunk(self, file: Any, chunk: int) -> bytes:
        stop = min((chunk + 1) * CHUNK, self.segment.users)
        data = self._file.read(file, "postings", chunk * CHUNK, stop)
        if zlib.crc32(data) != self._sums[chunk]:
            raise damaged(self._file.path)
        return data

    def postings(self) -> np.ndarray:
        """All postings, sorted by hash."""
        with self._file.open() as file:
            return np.frombuffer(b"".join(self._chunk(file, chunk) for chunk in range(len(self._sums))), POSTING)


def _rows_with_hash(wanted: bytes, postings: bytes) -> Iterator[int]:
    """Rows of postings with this hash."""
    offset = postings.find(wanted)
    while offset >= 0:
        if offset % POSTING.itemsize == 0:
            yield int.from_bytes(postings[offset + 8 : offset + 12], "little")
        offset = postings.find(wanted, offset + 1)


def write_index(directory: Path, merged: Sequence[IndexFile], first: int, users: Sequence[str]) -> Segment:
    """Writes the users of other index segments and new ones, whose rows begin with `first`, as one index segment."""
    new = np.zeros(len(users), POSTING)
    new["hash"] = [hash_user(user_bytes(user)) for user in users]
    new["row"] = np.arange(first, first + len(users))
    postings = np.concatenate([*(index.postings() for index in merged), new])
    postings = postings[np.argsort(postings["hash"], kind="stable")]
    fences = np.ascontiguousarray(postings["hash"][::CHUNK])
    chunks = (postings[start : start + CHUNK] for start in range(0, len(postings), CHUNK))
    sums = np.array([zlib.crc32(chunk.view(np.uint8).data) for chunk in chunks], "<u4")
    first, stop = (merged[0].segment.first if merged else first), first + len(users)
    name = Segment(INDEX, first, stop, 0, "").name
    words = postings.view("<u4").reshape(len(postings), POSTING.itemsize // 4)
    size = write_tensors(directory / name, {"fences": [fences], "postings": [words], "crc32": [sums]})
    return Segment(INDEX, first, stop, size, _digest([fences, sums]))


def _digest(arrays: Sequence[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).view(np.uint8).data)
    return found.hexdigest()[:16]
