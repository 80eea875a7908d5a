"""Output locations: held by one command at a time, apart from every input, replaced only by complete new content.

A forced run (`--force`) over an existing output writes beside it, and `replace_output` exchanges the two at the end:

    directory `m`: writes to `m/run.unfinished/`; the old entries go through `m/run.replaced/`
    file `p.json`: writes to `p.json.unfinished`; each file is replaced by one rename

Both exchanges are a few renames. A kill between them is completed by the next command on the same output.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from lamp_jax.data import remote
from lamp_jax.data.files import read_json
from lamp_jax.errors import LampError

RECORD, STAGED, REPLACED = "run.json", "run.unfinished", "run.replaced"
_SHOWN = 5

_locks: dict[Path, tuple[IO[bytes], bool]] = {}
"""Of this process: the open file, and whether its directory was made for it. A second claim in the same process (a
retry in a notebook) shares the lock of the first."""


def record_path(output: Path) -> Path:
    """Path of the run record: `run.json` in a directory, `NAME.run.json` beside a file."""
    return output / RECORD if output.is_dir() else output.with_name(f"{output.name}.{RECORD}")


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + ".journal.jsonl")


def staged_path(output: Path, *, directory: bool) -> Path:
    """Where a forced run writes until it is complete."""
    return output / STAGED if directory else output.with_name(output.name + ".unfinished")


def read_record(output: Path) -> dict[str, Any] | None:
    """The run record of an output; None if there is none. LampError if the file is not a JSON object."""
    path = record_path(output)
    if not path.exists():
        return None
    record = read_json(path)
    if not isinstance(record, dict):
        raise LampError(f"{path}: not a run record of lamp (expected a JSON object); move it away")
    return record


def check_apart(written: Iterable[Path], inputs: Iterable[str]) -> None:
    """Raises LampError if a path that a command will write is one of its inputs, holds one or is inside one.

    Links are followed in both directions: an input is also each link on the way to it, and for a directory also the
    targets of the links in it. Inputs that are no local path (hub names) cannot be overwritten.
    """
    places = [Path(os.path.realpath(path)) for path in written]
    for name in dict.fromkeys(inputs):
        if not os.path.lexists(name):
            continue
        locations = _locations(Path(name))
        real = Path(os.path.realpath(name))
        for place in places:
            if place in (real, Path(os.path.realpath(Path(name).parent), Path(name).name)):
                raise LampError(f"{place}: is also the input {name}; give another output")
            if any(location.is_relative_to(place) for location in locations):
                raise LampError(f"{place}: contains the input {name}; give an output that is not above an input")
            if real.is_dir() and place.is_relative_to(real):
                raise LampError(f"{place}: is inside the input {name}; give an output outside of it")


def check_kind(output: Path, *, directory: bool) -> None:
    """Raises LampError if a file is at the place of an output directory, or the other way round."""
    if directory and output.exists() and not output.is_dir():
        raise LampError(f"{output}: a file, where this command writes a directory; give another --output")
    if not directory and output.is_dir():
        raise LampError(f"{output}: a directory, where this command writes a file; give another --output")


def lock_path(output: Path, *, directory: bool, part: str = "") -> Path:
    return output / f".lock{part}" if directory else output.with_name(f".{output.name}.lock{part}")


def lock_output(output: Path, *, directory: bool, part: str = "", holder: str) -> None:
    """Holds an output for this process until `unlock_output`. LampError, naming the holder, if another process has it.

    `part` names one of several commands that write to one directory together (shards of feedback). Locks work on one
    machine, and between machines if their file system supports them.
    """
    path = lock_path(output, directory=directory, part=part)
    if path in _locks:
        return
    made = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise LampError(f"{output}: a part of this path is a file, not a directory; give another --output") from None
    while True:
        file = open(path, "a+b")  # noqa: SIM115 (open for as long as it is locked)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            known = file.read().decode("utf-8", "replace").strip() or "another lamp command"
            file.close()
            raise LampError(f"{output}: {known} is writing to it; wait until it ends, or stop it") from None
        except OSError:
            pass  # a network file system without locks
        if _is_open_file(path, file):
            break
        file.close()  # the holder before this one removed the file in between
    file.truncate(0)
    file.write(f"{holder} (process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')})".encode())
    file.flush()
    _locks[path] = file, made


def unlock_output(output: Path, *, directory: bool, part: str = "") -> None:
    """Ends `lock_output`. A directory that was made for the lock, and holds nothing else, is removed with it."""
    path = lock_path(output, directory=directory, part=part)
    if path not in _locks:
        return
    file, made = _locks.pop(path)
    path.unlink(missing_ok=True)
    file.close()
    if made:
        with contextlib.suppress(OSError):  # not empty, or not there
            path.parent.rmdir()


@atexit.register
def _close_locks() -> None:
    for file, _ in _locks.values():
        file.close()


def entries(directory: Path) -> Iterator[Path]:
    """What a directory holds beside its record, locks, and the files of a forced run."""
    for path in sorted(directory.iterdir()):
        if path.name not in (RECORD, STAGED, REPLACED) and not path.name.startswith(".lock"):
            yield path


def unnamed_files(directory: Path) -> list[Path]:
    """Files in an output directory that its record does not name by one of the patterns in `makes`.

    `name/` in `makes` is the output directory of another command, with a record of its own.
    """
    record = read_record(directory) or {}
    makes = record.get("makes")
    patterns = [str(pattern) for pattern in makes] if isinstance(makes, list) else []
    found: list[Path] = []
    for entry in entries(directory):
        found += _unnamed(entry, directory, patterns)
    return found


def _unnamed(path: Path, directory: Path, patterns: Sequence[str]) -> Iterator[Path]:
    name = path.relative_to(directory).as_posix()
    if path.is_dir() and not path.is_symlink():
        if (path / RECORD).exists():
            yield from unnamed_files(path) if f"{name}/" in patterns else [path]
        else:
            for inner in sorted(path.iterdir()):
                yield from _unnamed(inner, directory, patterns)
    elif not (is_temporary(path) or any(fnmatchcase(name, pattern) for pattern in patterns)):
        yield path


def is_temporary(path: Path) -> bool:
    """Whether a file or directory is one that lamp renames or removes when it is complete."""
    return path.name.startswith(".") and (path.name.endswith(".unfinished") or ".lock" in path.name)


def check_replaceable(output: Path, record: Mapping[str, Any]) -> None:
    """Raises LampError if `--force` would remove something that no record of lamp names."""
    if not is_record(record):
        raise LampError(f"{record_path(output)}: not a run record of lamp, so --force removes nothing; move it away")
    if output.is_dir() and (found := unnamed_files(output)):
        names = ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
        raise LampError(f"{output}: --force removes only what lamp made, and no record names {names}; move it away")


def is_record(record: Any) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(name), str) for name in ("stage", "fingerprint"))


def replace_output(output: Path, *, directory: bool) -> bool:
    """Puts a complete forced run in the place of the old output; False if there is none.

    The record of the forced run is complete before this begins. What was interrupted is completed by a second call.
    """
    staged = staged_path(output, directory=directory)
    record = read_record(staged)
    if not (is_record(record) and record.get("finished")):  # pyright: ignore[reportOptionalMemberAccess]
        return False
    for path in map(Path, record.get("beside", {}).values()):  # pyright: ignore[reportOptionalMemberAccess]
        _move(staged_path(path, directory=False), path)
    if directory:
        _exchange(output, staged)
    else:
        journal_path(output).unlink(missing_ok=True)
        _move(staged, output)
        _move(record_path(staged), record_path(output))
    return True


def _exchange(output: Path, staged: Path) -> None:
    """The entries of an output directory give way to those of `staged`; each record is moved last."""
    replaced = output / REPLACED
    if (output / RECORD).exists():
        replaced.mkdir(exist_ok=True)
        for path in [*entries(output), output / RECORD]:
            os.replace(path, replaced / path.name)
    remote.move_checkpoints(staged, output)
    for path in [*entries(staged), staged / RECORD]:
        os.replace(path, output / path.name)
    shutil.rmtree(staged)
    shutil.rmtree(replaced, ignore_errors=True)


def discard(staged: Path) -> None:
    """Removes an unfinished forced run."""
    if staged.is_dir():
        remote.remove_checkpoints(staged)
        shutil.rmtree(staged)
    else:
        for path in (staged, record_path(staged), journal_path(staged)):
            path.unlink(missing_ok=True)


def remove_temporary(output: Path, *, directory: bool) -> None:
    """Removes temporary directories that killed runs left beside an output, or in it. Its lock must be held."""
    found = [*output.parent.glob(f".{output.name}.*.unfinished")]
    if directory:
        found += [*output.glob(".*.unfinished"), *([output / REPLACED] if (output / RECORD).exists() else [])]
        with contextlib.suppress(OSError):
            (output / STAGED).rmdir()  # empty: its files were moved, and then came the kill
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """A rename, and nothing where it was done before; the parents of `target` are made."""
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)


def _locations(path: Path) -> set[Path]:
    """Real path of a file or directory, of each link on the way to it, and of the targets of links inside it."""
    found = {Path(os.path.realpath(path))}
    absolute = Path(os.path.abspath(path))
    for part in (absolute, *absolute.parents):
        found.add(Path(os.path.realpath(part.parent)) / part.name)
    if path.is_dir():
        for folder, folders, files in os.walk(path):
            links = (Path(folder, name) for name in (*folders, *files))
            found |= {Path(os.path.realpath(link)) for link in links if link.is_symlink()}
    return found


def _is_open_file(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
