"""Reading of stores of adapters of the first version, for conversion.

`users.jsonl` has a line for each user, and `adapters.bin` the users' numbers in the same order, contiguously.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamp_jax.artifacts.segments import AdapterEntry
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import short_repr

USERS, NUMBERS = FILES = ("users.jsonl", "adapters.bin")

_LINE_TYPES: dict[str, tuple[type, ...]] = {
    "user": (str,),
    "items": (int,),
    "updates": (int,),
    "loss": (float, int, type(None)),
    "crc32": (int,),
}


def is_old(directory: Path) -> bool:
    """Whether a directory with a form and without a list of segments is a store of the first version."""
    return any((directory / name).exists() for name in FILES)


def read_users(directory: Path, size: int, *, first: int = 0) -> Iterator[tuple[AdapterEntry, np.ndarray]]:
    """Entries of the users from the row `first` on, with their numbers, uint8 [size].

    Users of an incomplete append, without a complete line or without numbers, are left out. LampError for an invalid
    line, and for damaged numbers.
    """
    path = directory / NUMBERS
    complete = path.stat().st_size // size if path.exists() else 0
    if not complete:
        return
    with open(directory / USERS, "rb") as lines, open(path, "rb") as numbers:
        numbers.seek(first * size)
        for row, line in enumerate(lines):
            if row >= complete or not line.endswith(b"\n"):
                return
            if row < first:
                continue
            entry, checksum = _parse_user(line, f"{directory / USERS}, line {row + 1}")
            record = np.frombuffer(numbers.read(size), np.uint8)
            if zlib.crc32(record.data) != checksum:
                raise LampError(
                    f"{path}: the adapter of user {entry.user!r} is damaged; copy the store again, or make it again"
                )
            yield entry, record


def append_users(directory: Path, entries: Sequence[AdapterEntry], numbers: np.ndarray) -> None:
    """Appends users with their numbers [n, ...], as the first version did: for tests and measurements."""
    with open(directory / NUMBERS, "ab") as file:
        file.write(numbers.view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    sums = [zlib.crc32(row.data) for row in numbers.view(np.uint8)]
    lines = [vars(entry) | {"crc32": checksum} for entry, checksum in zip(entries, sums, strict=True)]
    with open(directory / USERS, "ab") as file:
        file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def read_entries(directory: Path) -> Iterator[AdapterEntry]:
    """Entries of all users in `users.jsonl`, with or without their numbers."""
    with open(directory / USERS, "rb") as lines:
        for number, line in enumerate(lines, 1):
            yield _parse_user(line, f"{directory / USERS}, line {number}")[0]


def count_lines(directory: Path) -> int:
    """Number of lines in `users.jsonl`, of which the last may be incomplete."""
    path = directory / USERS
    if not path.exists():
        return 0
    with open(path, "rb") as lines:
        return sum(1 for _ in lines)


def _parse_user(line: bytes, where: str) -> tuple[AdapterEntry, int]:
    try:
        contents: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LampError(f"{where}: invalid JSON ({error}); copy the store again, or make it again") from None
    if not isinstance(contents, dict):
        raise LampError(f"{where}: expected an object, found {short_repr(contents)}; copy the store again")
    for name, allowed in _LINE_TYPES.items():
        if type(contents.get(name)) not in allowed:
            found = short_repr(contents[name]) if name in contents else "nothing"
            raise LampError(f"{where}: {name!r} cannot be {found}; copy the store again, or make it again")
    loss = contents["loss"]
    entry = AdapterEntry(
        contents["user"], contents["items"], contents["updates"], None if loss is None else float(loss)
    )
    return entry, contents["crc32"]
