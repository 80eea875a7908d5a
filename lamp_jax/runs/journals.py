"""Append-only files of JSON lines with one writer, which survive a kill."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from lamp_jax.errors import LampError
from lamp_jax.runs import remote
from lamp_jax.runs.processes import on_first


class Journal:
    """Append-only file of JSON lines that survives a kill: an incomplete last line is ignored.

    LampError where another command is writing to it and, with the line, where a line is not JSON. Opening changes
    nothing in the file. Of several processes the first writes; all hold the same entries and append the same ones.
    """

    def __init__(self, path: Path):
        self.path, self._throttle = path, remote.PublishThrottle()
        self._file: IO[bytes] | None = None
        self._size = 0
        self.entries: list[Any] = on_first(self._open)

    def _open(self) -> list[Any]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_locked(self.path)
        try:
            lines = complete_lines(self.path)
            self._size = sum(map(len, lines))
            return list(_parse_lines(lines, self.path))
        except LampError:
            self._file.close()
            raise

    def keep(self, count: int) -> None:
        """Drops all entries after the first `count`, and an incomplete last line."""
        if self._file:
            self._size = sum(map(len, complete_lines(self.path)[:count]))
            self._file.truncate(self._size)
        del self.entries[count:]

    def append(self, entries: Iterable[Any]) -> None:
        """Appends entries; they are on disk when this returns."""
        entries = list(entries)
        if self._file:
            self._file.truncate(self._size)  # an incomplete line, after a kill or on a full disk
            self._size += self._file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._throttle.publish()
        self.entries += entries

    def close(self) -> None:
        if self._file:
            self._file.close()


def read_journal(path: Path) -> Iterator[Any]:
    """Entries of a finished journal. LampError, with the line, for one that is not JSON."""
    return _parse_lines(complete_lines(path), path)


def count_entries(path: Path) -> int:
    """Number of entries of a journal. LampError as read_journal; FileNotFoundError without a file."""
    path.stat()  # another machine may not see the file
    return sum(1 for _ in read_journal(path))


def open_locked(path: Path, *, name: Path | None = None) -> IO[bytes]:
    """A file opened to append, created where missing, and locked for this command until it is closed.

    LampError, with `name` or the path, where another command holds the lock. The file's contents are not changed.
    """
    file = open(path, "ab")  # noqa: SIM115 (open for as long as it is locked)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise LampError(
            f"{name or path}: another lamp command is writing to it; wait until that command ends, or stop it"
        ) from None
    except OSError:
        pass  # some network file systems have no locks: the command continues without one
    return file


def complete_lines(path: Path) -> list[bytes]:
    """Lines of a file without an incomplete last one; none where there is no file."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _parse_lines(lines: Iterable[bytes], path: Path) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LampError(f"{path}, line {number}: invalid JSON ({error}); make the file again") from None
