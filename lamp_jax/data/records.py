"""What made an output: by the record beside it the same command finds its work done, resumes, or refuses."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import lamp_jax
from lamp_jax.config import PLACEMENT
from lamp_jax.data import remote
from lamp_jax.data.files import read_json, write_json
from lamp_jax.errors import LampError
from lamp_jax.processes import agree, compare

_CHECKED = "adapters.bin"  # large, and the checksums of all its parts stand in a file beside it

State = Literal["new", "unfinished", "done"]


@dataclass(frozen=True)
class Record:
    """The claim of one command on one output. Of several processes all have it; the first reads and writes.

    For a file the record stands beside it (`P.json.run.json`), for a directory in it (`run.json`). `state` says what
    the command found: nothing, its own unfinished work, or its own finished output.
    """

    output: Path
    contents: Mapping[str, Any]
    state: State
    directory: bool = False
    force: bool = False

    @property
    def path(self) -> Path:
        return record_path(self.output)

    @property
    def journal(self) -> Path:
        """Where a long stage appends what it has finished so far."""
        return journal_path(self.output)

    def begin(self) -> None:
        """Says whose unfinished work will stand there. For commands that resume, once their checks have passed."""
        agree(self._begin)

    def _begin(self) -> None:
        if self.force:
            _remove(self.output)
        if self.directory:
            self.output.mkdir(parents=True, exist_ok=True)
        if self.state == "new":
            write_json(self.path, {**self.contents, "finished": False})

    def finish(self, **facts: Any) -> None:
        """Marks the output as whole; `facts` (counts, metrics) are kept in the record."""
        agree(lambda: self._finish(facts))

    def _finish(self, facts: Mapping[str, Any]) -> None:
        whole = {**self.contents, "finished": True, "output_sha256": _output_digest(self.output), **facts}
        write_json(self.path, whole)
        self.journal.unlink(missing_ok=True)


def record_path(output: Path) -> Path:
    return output / "run.json" if output.is_dir() else output.with_name(output.name + ".run.json")


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + ".journal.jsonl")


def claim(
    output: str | Path, options: Any, *, inputs: Iterable[str], ignore: Iterable[str] = (), directory: bool = False
) -> Record:
    """Claims `output` for a command with these `options` (a dataclass) and `inputs` (files, directories or hub names).

    `ignore` names options that do not change what is written (`output`, `force` and where arrays lie never do). Two
    commands are the same when their settings and the contents of their inputs are. Raises LampError when something
    else stands at `output`; with `options.force` that is replaced, once the command's checks have passed (`begin`,
    `finish`).
    """
    output = Path(output)
    settings = {key: value for key, value in asdict(options).items() if key not in {"output", "force", *ignore}}
    digests: dict[str, str] = {}

    def make_fingerprint() -> str:
        digests.update({name: digest(name) for name in dict.fromkeys(inputs)})
        # The fingerprint knows inputs by their contents alone: a moved file is the same file.
        known = json.dumps([type(options).__name__, _without(settings, digests), sorted(digests.values())], default=str)
        return hashlib.sha256(known.encode()).hexdigest()

    fingerprint = compare(f"{output}: the fingerprint of settings and inputs", make_fingerprint)
    contents = {
        "stage": type(options).__name__.lower(),
        "settings": settings,
        "inputs": digests,
        "version": lamp_jax.__version__,
        "fingerprint": fingerprint,
    }
    force = getattr(options, "force", False)
    state: State = agree(lambda: _check_removable(output) if force else _state(output, fingerprint))
    return Record(output, contents, state, directory, force)


def digest(name: str) -> str:
    """SHA-256 of a file, or of a directory's files with their names; a hub name stands for itself."""
    path = Path(name)
    if path.is_file():
        return _file_digest(path)
    if path.is_dir():
        parts = [
            f"{part.relative_to(path)} {_file_digest(part)}" for part in sorted(path.rglob("*")) if _is_content(part)
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return f"name {name}"


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
        self.entries: list[Any] = agree(self._open)

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


def lock(path: Path) -> IO[bytes]:
    """A file that is opened to append, and made where there is none, by this command alone until it is closed.

    LampError where another command has it. Nothing in it is changed.
    """
    file = open(path, "ab")  # noqa: SIM115 (open for as long as it is locked)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise LampError(f"{path}: another lamp command is writing to it; wait for its end, or stop it") from None
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
        except ValueError as error:
            raise LampError(f"{path}, line {number}: not whole JSON ({error}); make it again") from None


def _state(output: Path, fingerprint: str) -> State:
    path = record_path(output)
    if not path.exists():
        if output.exists() and (output.is_file() or any(output.iterdir())):
            raise LampError(f"{output}: exists, and no record says how it was made; move it away or give --force")
        return "new"
    found = read_json(path)
    if not _has_begun(output):
        return "new"
    if found.get("fingerprint") != fingerprint:
        raise LampError(
            f"{output}: stands there from other settings or inputs ({path} lists them); "
            "give another --output, or --force to start over"
        )
    if not found.get("finished"):
        return "unfinished"
    if found.get("output_sha256") != _output_digest(output):
        raise LampError(f"{output}: was changed after it was made; move it away, or give --force to make it again")
    return "done"


def _has_begun(output: Path) -> bool:
    """Whether anything but the record stands there: a command that failed in its checks leaves nothing to keep."""
    if output.is_dir():
        return any(path != record_path(output) for path in output.iterdir())
    return output.exists() or journal_path(output).exists()


def _without(settings: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """The settings with every input's path put aside, and where arrays lie."""
    if isinstance(settings, Mapping):
        return {key: _without(value, names) for key, value in settings.items() if key not in PLACEMENT}
    if isinstance(settings, list | tuple):
        return [_without(value, names) for value in settings]
    return "(input)" if isinstance(settings, str) and settings in names else settings


def _check_removable(output: Path) -> State:
    if output.is_dir() and any(output.iterdir()) and not record_path(output).exists():
        raise LampError(
            f"{output}: --force removes only what lamp made, and this directory has no run.json; move it away"
        )
    return "new"


def _remove(output: Path) -> None:
    for journal in [journal_path(output), *output.glob("*.jsonl")]:
        if journal.exists():
            lock(journal).close()  # nothing is removed that another command is writing
    remote.remove(output)
    for path in (record_path(output), journal_path(output)):
        path.unlink(missing_ok=True)
    if output.is_dir():
        shutil.rmtree(output)
    output.unlink(missing_ok=True)


def _is_content(path: Path) -> bool:
    return path.is_file() and path.name not in {"run.json", _CHECKED} and not path.name.startswith(".")


def _output_digest(output: Path) -> str:
    """A directory's own outputs may be large and move on (logs); its record vouches for it."""
    return _file_digest(output) if output.is_file() else "directory"


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
