"""Output locations: locked by one command at a time, distinct from every input, replaced only by complete contents.

A forced run (`--force`) over an existing output writes beside it, and `replace_output` exchanges the two at the end:

    directory `m`: writes to `m/run.unfinished/`; the old entries are moved to `m/run.replaced/` and removed
    file `p.json`: writes to `p.json.unfinished`; each file is replaced by one rename

Both exchanges are a few renames. A kill between them is completed by the next command on the same output.
"""

import atexit
import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import IO, Any

from lamp_jax.errors import LampError
from lamp_jax.runs import remote
from lamp_jax.runs.json_files import read_json
from lamp_jax.runs.urls import url_of

RECORD, STAGED, REPLACED = "run.json", "run.unfinished", "run.replaced"
_LOCK, _HOLDER = ".lamp.lock", b"lamp "
_SHOWN = 5
_MAX_LINKS = 40  # symbolic links on the way to a file: the limit of Linux
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}

# Names of temporary files: they contain the process id, or a random part made by Python's tempfile.
_RANDOM_NAME = r"[a-z0-9_]{8}"
_TEMPORARY = re.compile(rf"\.(.+\.(\d+|{_RANDOM_NAME})|building)\.unfinished")
_TEMPORARY_INSIDE = re.compile(rf"\.(tokenizer\.{_RANDOM_NAME}|building)\.unfinished")

_locks: dict[Path, tuple[IO[bytes], bool]] = {}
"""Locks of this process: the open file, and whether its directory was made for it. A second command in the process (a
retry in a notebook) shares the lock of the first."""


def record_path(output: Path) -> Path:
    """Path of the run record: `run.json` in a directory, `NAME.run.json` beside a file."""
    return output / RECORD if output.is_dir() else output.with_name(f"{output.name}.{RECORD}")


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + ".journal.jsonl")


def staged_path(output: Path, *, directory: bool) -> Path:
    """Path to which a forced run writes until it is complete."""
    return output / STAGED if directory else output.with_name(output.name + ".unfinished")


def read_record(output: Path) -> dict[str, Any] | None:
    """Run record of an output; None if there is none. LampError if the file is not a JSON object."""
    path = record_path(output)
    if not path.exists():
        return None
    record = read_json(path)
    if not isinstance(record, dict):
        raise LampError(f"{path}: not a run record of lamp (expected a JSON object); move this file away")
    return record


def check_apart(written: Iterable[Path], inputs: Iterable[str]) -> None:
    """Raises LampError if an output path of a command is one of its inputs, contains one or is inside one.

    Links are followed in both directions: each link on the way to an input counts as the input, and so do the targets
    of the links in an input directory. Inputs that are not local paths (hub names) cannot be overwritten.
    """
    written, inputs = list(written), list(inputs)
    remote.check_apart(written, inputs)
    outputs = [Path(os.path.realpath(path)) for path in written]
    for name in dict.fromkeys(inputs):
        if not os.path.lexists(name):
            continue
        locations = _locations(Path(name))
        real = Path(os.path.realpath(name))
        for output in outputs:
            if output in (real, Path(os.path.realpath(Path(name).parent), Path(name).name)):
                raise LampError(f"{output}: is also the input {name}; give another output")
            if any(location.is_relative_to(output) for location in locations):
                raise LampError(f"{output}: contains the input {name}; give an output that is not above an input")
            if real.is_dir() and output.is_relative_to(real):
                raise LampError(f"{output}: is inside the input {name}; give an output outside of it")


def check_distinct(output: Path, beside: Iterable[Path], written: Iterable[Path], *, directory: bool) -> None:
    """Raises LampError if two files that a command writes would have the same path."""
    seen: set[str] = set()
    for path in written:
        real = url_of(path) or os.path.join(os.path.realpath(path.parent), path.name)
        if real in seen:
            raise LampError(f"{path}: this command would write two files to this path; give each output its own path")
        seen.add(real)
    for path in beside:
        if directory and _real(path).is_relative_to(_real(output)):
            raise LampError(f"{path}: is inside the output {output}; give a path outside of that directory")
        if path.is_dir():
            raise LampError(f"{path}: a directory, where this command writes a file; give another path")


def _real(path: Path) -> PurePath:
    return PurePath(url_of(path) or os.path.realpath(path))


def check_kind(output: Path, *, directory: bool) -> None:
    """Raises LampError if an output directory is an existing file, or an output file an existing directory."""
    if directory and output.exists() and not output.is_dir():
        raise LampError(f"{output}: a file, where this command writes a directory; give another --output")
    if not directory and output.is_dir():
        raise LampError(f"{output}: a directory, where this command writes a file; give another --output")


def lock_path(output: Path, *, directory: bool, shard: str = "") -> Path:
    return output / f"{_LOCK}{shard}" if directory else output.with_name(f".{output.name}{_LOCK}{shard}")


def lock_output(output: Path, *, directory: bool, shard: str = "", holder: str) -> Path:
    """Locks an output for this process, until `unlock` of the path that is returned.

    LampError, with the holder, if another process has locked it.

    `shard` names one of several commands that write to one directory together (shards of feedback). Locks work on one
    machine, and between machines if their file system supports them. A read-only output is not locked.
    """
    path = lock_path(output, directory=directory, shard=shard)
    if path in _locks:
        return path
    made = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise LampError(f"{output}: a part of this path is a file, not a directory; give another --output") from None
    while True:
        try:
            file = open(path, "a+b")  # noqa: SIM115 (open for as long as it is locked)
        except OSError as error:
            if error.errno in _READ_ONLY and output.exists():
                return path
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                raise _locked_error(output, file) from None
        except OSError:
            pass  # a network file system without locks
        if _is_open_file(path, file):
            break
        file.close()  # the previous holder removed the file before it was locked here
    file.seek(0)
    contents = file.read(len(_HOLDER))
    if contents not in (b"", _HOLDER):
        file.close()
        raise LampError(f"{path}: not a lock file of lamp, which needs this path for its lock; move this file away")
    try:
        file.truncate(0)
        since = f"since {time.strftime('%F %T')}"
        file.write(f"{holder} (process {os.getpid()} on {socket.gethostname()}, {since})".encode())
        file.flush()
    except OSError as error:
        path.unlink()
        with contextlib.suppress(OSError):
            file.close()
        raise LampError(
            f"{path}: cannot be written ({error.strerror}); free disk space or give another --output"
        ) from error
    _locks[path] = file, made
    if directory:
        try:
            _check_shards(output, [lock_path(output, directory=True)] if shard else output.glob(f"{_LOCK}-*"))
        except LampError:
            unlock([path])
            raise
    return path


def _check_shards(output: Path, others: Iterable[Path]) -> None:
    """LampError where one command writes to a directory alone and another as a shard: their locks differ."""
    for path in others:
        if path in _locks:
            continue
        with contextlib.suppress(OSError), open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _locked_error(output, file) from None


def _locked_error(output: Path, lock: IO[bytes]) -> LampError:
    lock.seek(0)
    holder = lock.read().decode("utf-8", "replace").strip() or "another lamp command"
    return LampError(f"{output}: {holder} is writing to it; wait until that command ends, or stop it")


def unlock(paths: Iterable[Path]) -> None:
    """Releases locks of `lock_output`. A directory that was made for a lock and is otherwise empty is removed."""
    for path in paths:
        if path not in _locks:
            continue
        file, made = _locks.pop(path)
        path.unlink(missing_ok=True)
        file.close()
        if made:
            with contextlib.suppress(OSError):  # not empty, or missing
                path.parent.rmdir()


@atexit.register
def _close_locks() -> None:
    for file, _ in _locks.values():
        file.close()


def entries(directory: Path) -> Iterator[Path]:
    """Entries of a directory other than its record, locks, and the files of a forced run."""
    for path in sorted(directory.iterdir()):
        if path.name not in (RECORD, STAGED, REPLACED) and not path.name.startswith(_LOCK):
            yield path


def unnamed_files(directory: Path) -> list[Path]:
    """Files in an output directory that match none of the patterns in its record's `makes`.

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
            inside = sorted(path.iterdir())
            if not inside and not any(pattern.startswith(f"{name}/") for pattern in patterns):
                yield path
            for inner in inside:
                yield from _unnamed(inner, directory, patterns)
    elif not (is_temporary(path) or any(fnmatchcase(name, pattern) for pattern in patterns)):
        yield path


def is_temporary(path: Path) -> bool:
    """Whether a file or directory is a temporary one, which lamp renames or removes on completion."""
    return bool(_TEMPORARY.fullmatch(path.name)) or (path.name.startswith(".") and _LOCK in path.name)


def check_replaceable(output: Path, record: Mapping[str, Any]) -> None:
    """Raises LampError if `--force` would remove a file that no run record names."""
    if not is_record(record):
        raise LampError(
            f"{record_path(output)}: not a run record of lamp, so --force removes nothing; move this file away"
        )
    if output.is_dir() and (found := unnamed_files(output)):
        names = ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
        raise LampError(
            f"{output}: --force removes only files that a run record names, not {names}; move these files away"
        )


def is_record(record: Any) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(name), str) for name in ("stage", "fingerprint"))


def replace_output(output: Path, *, directory: bool) -> bool:
    """Replaces the old output by a complete forced run; False if there is none.

    The record of the forced run is complete before this begins. A second call completes an interrupted one.
    """
    staged = staged_path(output, directory=directory)
    record = read_record(staged)
    if not (is_record(record) and record.get("finished")):  # pyright: ignore[reportOptionalMemberAccess]
        return False
    for path, digest in beside_of(record or {}, output).values():
        if digest is None:  # not written by this run
            path.unlink(missing_ok=True)
        else:
            _move(staged_path(path, directory=False), path)
    if directory:
        _exchange(output, staged)
    else:
        journal_path(output).unlink(missing_ok=True)
        _move(staged, output)
        _move(record_path(staged), record_path(output))
    return True


def _exchange(output: Path, staged: Path) -> None:
    """Replaces the entries of an output directory by those of `staged`; each record is moved last."""
    output, staged = output.absolute(), staged.absolute()  # the working directory may be moved
    replaced = output / REPLACED
    if (output / RECORD).exists():
        replaced.mkdir(exist_ok=True)
        for path in [*entries(output), output / RECORD]:
            os.replace(path, replaced / path.name)
    remote.move_checkpoints(staged, output)
    for path in [*entries(staged), staged / RECORD]:
        os.replace(path, output / path.name)
    shutil.rmtree(staged)
    _remove_replaced(replaced)


def _remove_replaced(replaced: Path) -> None:
    """Removes an old output that was replaced."""
    if is_record(_try_record(replaced)):
        _remove_made(replaced)


def _remove_made(directory: Path) -> None:
    """Removes a directory, its record last: without the record the other files could not be attributed to lamp."""
    for path in directory.iterdir():
        if path.name != RECORD:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.rmtree(directory)


def _try_record(directory: Path) -> Any:
    try:
        return read_json(directory / RECORD)
    except (LampError, OSError):
        return None


def check_staged(output: Path, *, directory: bool) -> None:
    """Raises LampError if a file exists where a forced run would write or move one, and no run record names it."""
    staged = staged_path(output, directory=directory)
    record = read_record(staged)
    known = {path for path, _ in beside_of(record or {}, output).values()} if is_record(record) else set()
    if directory and staged.is_dir() and (record is None or is_record(record)):
        foreign = unnamed_files(staged)  # without a record: a kill before it was written
    else:
        foreign = [staged] if staged.exists() and not is_record(record) else []
    if directory and (output / REPLACED).exists() and not is_record(_try_record(output / REPLACED)):
        foreign.append(output / REPLACED)
    for path, _ in beside_of(read_record(output) or {}, output).values():
        if staged_path(path, directory=False).exists() and path not in known:
            foreign.append(staged_path(path, directory=False))
    if foreign:
        raise LampError(f"{foreign[0]}: is where --force writes, and no run record names it; move it away")


def beside_of(record: Mapping[str, Any], output: Path) -> dict[str, tuple[Path, str | None]]:
    """Additional output files that a record names, and the digest of each; None for one that was not written.

    Their paths are recorded relative to the output's directory, so that the files can be moved together.
    """
    paths, digests = record.get("beside"), record.get("beside_sha256")
    digests = digests if isinstance(digests, dict) else {}
    parent = os.path.realpath(output.parent)
    return {
        name: (Path(os.path.normpath(os.path.join(parent, path))), digests.get(name))
        for name, path in (paths.items() if isinstance(paths, dict) else ())
        if isinstance(path, str)
    }


def relative_to_output(path: Path, output: Path) -> str:
    """Path of an additional output file as a record has it."""
    absolute = os.path.join(os.path.realpath(path.parent), path.name)
    return os.path.relpath(absolute, os.path.realpath(output.parent))


def discard(staged: Path) -> None:
    """Removes an unfinished forced run."""
    for path, _ in beside_of(read_record(staged) or {}, staged.parent if staged.is_dir() else staged).values():
        staged_path(path, directory=False).unlink(missing_ok=True)
    if staged.is_dir():
        remote.remove_checkpoints(staged)
        _remove_made(staged)
    else:
        for path in (staged, record_path(staged), journal_path(staged)):
            path.unlink(missing_ok=True)


def remove_temporary(output: Path, *, directory: bool) -> None:
    """Removes temporary directories that killed runs left beside or in an output. The output must be locked."""
    own = re.compile(rf"\.{re.escape(output.name)}\.{_RANDOM_NAME}\.unfinished")
    found = [path for path in output.parent.iterdir() if own.fullmatch(path.name)] if output.parent.is_dir() else []
    for folder in (output, output / STAGED) if directory else ():
        if is_record(_try_record(folder)):
            found += [path for path in folder.iterdir() if _TEMPORARY_INSIDE.fullmatch(path.name)]
    if directory and is_record(_try_record(output)):
        _remove_replaced(output / REPLACED)
        for name in (STAGED, REPLACED):
            with contextlib.suppress(OSError):
                (output / name).rmdir()  # empty: the kill came after its files were moved or removed
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Renames `source`, unless that was done before; makes the parents of `target`."""
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)


def _locations(path: Path) -> set[Path]:
    """All paths on the way to a file or directory, and to the targets of the links inside it."""
    found = _visited(path)
    if path.is_dir():
        for folder, folders, files in os.walk(path):
            for link in (Path(folder, name) for name in (*folders, *files)):
                found |= _visited(link) if link.is_symlink() else set()
    return found


def _visited(path: Path) -> set[Path]:
    """Every file, directory and link that is looked up when a path is opened; none has a link among its parents."""
    found: set[Path] = set()
    current, links = Path("/"), 0
    parts = [*reversed(Path(os.getcwd(), path).parts[1:])]
    while parts:
        part = parts.pop()
        if part == "..":
            current = current.parent
            continue
        found.add(current / part)
        if links < _MAX_LINKS and (current / part).is_symlink():
            links += 1
            target = Path(os.readlink(current / part))
            current = Path("/") if target.is_absolute() else current
            parts += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        else:
            current = current / part
    return found


def _is_open_file(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
