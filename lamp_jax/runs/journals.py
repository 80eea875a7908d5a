"""Append-only files of JSON lines, which survive a kill and have one writer at a time."""

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
    """An append-only file of JSON lines that survives a kill: a line broken off at the end is none of its entries.

    One command has it at a time. LampError where another is writing to it, and, with the line, where one is no JSON;
    opening changes nothing in the file. Of several processes the first has it; all have the entries, which all append
    alike.
    """

    def __init__(self, path: Path):
        self.path, self._pace = path, remote.Pace()
        self._file: IO[bytes] | None = None
        self._size = 0
        self.entries: list[Any] = on_first(self._open)

    def _open(self) -> list[Any]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = lock(self.path)
        try:
            lines = whole_lines(self.path)
            self._size = sum(map(len, lines))
            return list(_parsed(lines, self.path))
        except LampError:
            self._file.close()
            raise

    def keep(self, count: int) -> None:
        """Drops all entries but the first `count`, and what is broken off behind them."""
        if self._file:
            self._size = sum(map(len, whole_lines(self.path)[:count]))
            self._file.truncate(self._size)
        del self.entries[count:]

    def append(self, entries: Iterable[Any]) -> None:
        """Adds entries, on disk before this returns."""
        entries = list(entries)
        if self._file:
            self._file.truncate(self._size)  # a line that a kill or a full disk broke off
            self._size += self._file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._pace.publish()
        self.entries += entries

    def close(self) -> None:
        if self._file:
            self._file.close()


def read_journal(path: Path) -> Iterator[Any]:
    """The entries of a journal that nobody writes to any more. LampError, with the line, for one that is broken."""
    return _parsed(whole_lines(path), path)


def lock(path: Path, *, name: Path | None = None) -> IO[bytes]:
    """A file that is opened to append, and made where there is none, by this command alone until it is closed.

    LampError where another command has it, which names the file, or `name`. Nothing in it is changed.
    """
    file = open(path, "ab")  # noqa: SIM115 (open for as long as it is locked)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise LampError(
            f"{name or path}: another lamp command is writing to it; wait for its end, or stop it"
        ) from None
    except OSError:
        pass  # some network file systems know no locks: work there goes on as unguarded as it has to be
    return file


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file but one that is broken off at its end; none where there is no file."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _parsed(lines: Iterable[bytes], path: Path) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LampError(f"{path}, line {number}: not whole JSON ({error}); make it again") from None
