"""Run records: the provenance of outputs, by which a command resumes its work, finds it done, or refuses to write."""

import contextlib
import errno
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeVar

from lamp_jax.config import EXECUTION_ONLY
from lamp_jax.errors import LampError
from lamp_jax.runs.copies import CHECKPOINTS
from lamp_jax.runs.json_files import write_json
from lamp_jax.runs.outputs import (
    RECORD,
    REPLACED,
    STAGED,
    beside_of,
    check_apart,
    check_distinct,
    check_kind,
    check_replaceable,
    check_staged,
    discard,
    entries,
    is_record,
    is_temporary,
    journal_path,
    lock_output,
    read_record,
    record_path,
    relative_to_output,
    remove_temporary,
    replace_output,
    staged_path,
    unlock,
)
from lamp_jax.runs.processes import assert_equal, is_first, on_first
from lamp_jax.runs.urls import with_urls
from lamp_jax.version import VERSION

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}

OutputState = Literal["new", "unfinished", "done"]
AnyOptions = TypeVar("AnyOptions")
Stage = TypeVar("Stage", bound=Callable[..., Any])

_reservations: list[list["RunRecord"]] = []
"""The records of each `guard_outputs` that is running, the innermost last."""


@dataclass(frozen=True)
class RunRecord:
    """The reservation of an output by one command, and its run record.

    Of several processes all have it; the first reads and writes.

    `state` is what the command found: nothing, its own unfinished work, or its own finished output. The command writes
    to `target`: the output itself or, where `--force` replaces one, a location beside it.
    """

    output: Path
    contents: Mapping[str, Any]
    state: OutputState
    directory: bool
    staged: bool
    shard: str = ""
    locks: Sequence[Path] = ()

    @property
    def target(self) -> Path:
        return staged_path(self.output, directory=self.directory) if self.staged else self.output

    @property
    def path(self) -> Path:
        return _record_at(self.target, self.directory)

    @property
    def journal(self) -> Path:
        """Path of the journal to which a long stage appends its progress."""
        return journal_path(self.target)

    def beside(self, name: str) -> Path:
        """Path to write an additional output file to, by its name in `reserve`'s `beside`."""
        path, _ = beside_of(self.contents, self.output)[name]
        return staged_path(path, directory=False) if self.staged else path

    def redirect(self, options: AnyOptions) -> AnyOptions:
        """The options with `target` as their `output`."""
        return replace(options, output=str(self.target))  # pyright: ignore[reportArgumentType, reportCallIssue]

    def begin(self) -> None:
        """Writes the record of an unfinished output. Called after the command's checks, before its first write."""
        on_first(self._begin)

    def _begin(self) -> None:
        if self.state == "new":
            if self.staged:
                discard(self.target)
            if self.directory:
                self.target.mkdir(parents=True, exist_ok=True)
        # A finished record: an additional output is missing.
        if self.state == "new" or (read_record(self.target) or {}).get("finished"):
            write_json(self.path, with_urls({**self.contents, "finished": False}))

    def finish(self, **facts: Any) -> None:
        """Marks the output as complete; `facts` (counts, metrics) are kept in the record. A forced run now replaces the
        old output."""
        on_first(lambda: self._finish(facts))

    def _finish(self, facts: Mapping[str, Any]) -> None:
        written = {name: self.beside(name) for name in self.contents["beside"]}
        digests = {name: _file_digest(path) for name, path in written.items() if path.is_file()}
        sums = {"output_sha256": _output_digest(self.target), "beside_sha256": digests}
        complete = {**self.contents, "finished": True, **sums, **facts}
        write_json(self.path, with_urls(complete))
        self.journal.unlink(missing_ok=True)
        if self.staged:
            replace_output(self.output, directory=self.directory)

    def release(self) -> None:
        """Lets other commands reserve the output. The record of a command that wrote nothing is removed."""
        if not is_first():
            return
        with contextlib.suppress(LampError, OSError):
            record = read_record(self.target) or {}
            nothing = not record.get("finished", True) and record.get("fingerprint") == self.contents["fingerprint"]
            if nothing and not self.shard and not self._has_content():
                self.path.unlink(missing_ok=True)
                if self.directory and self.staged:
                    self.target.rmdir()
        unlock(self.locks)

    def _has_content(self) -> bool:
        """Whether a file exists that needs the record."""
        further = (self.beside(name) for name in self.contents["beside"])
        return _has_content(self.target, self.directory) or any(path.exists() for path in further)


def reserve(
    output: str | Path,
    options: Any,
    *,
    inputs: Iterable[str],
    reads: Iterable[str] = (),
    ignore: Iterable[str] = (),
    directory: bool = False,
    makes: Sequence[str] = (),
    beside: Mapping[str, str | Path] | None = None,
    checked: Sequence[str] = (),
    shard: str = "",
    force: bool | None = None,
) -> RunRecord:
    """Reserves `output` for a command with these `options` (a dataclass) and `inputs` (files, directories or hub
    names).

    `reads` are further inputs, whose contents are excluded from the run fingerprint. `ignore` names options that do not
    change the output (`output`, `force` and execution-only options never do). `makes` are the patterns of the file
    names that a directory will contain, with `name/` for the output directory of another command. `beside` are
    additional output files, by name. `checked` are the patterns of large files of input directories whose checksums are
    in another of the files. `shard` names one of several commands that write to a directory together (shards of
    feedback). `force` overrides `options.force`.

    Two commands are equal if their settings and the contents of their inputs are. Raises LampError if an output is,
    contains or is inside an input; while another command writes to it; and if it exists from another command. With
    `force` the existing output is replaced once the new one is complete, provided that run records name all its files.
    """
    wanted = _RequestedOutputs.of(output, beside, directory=directory, shard=shard)
    output, inputs = wanted.output, list(dict.fromkeys(inputs))
    stage = type(options).__name__.lower()
    settings = {key: value for key, value in asdict(options).items() if key not in {"output", "force", *ignore}}
    force = getattr(options, "force", False) if force is None else force
    locks: list[Path] = []

    def prepare() -> None:
        wanted.check([*inputs, *reads])
        locks.extend(wanted.lock(f"lamp {stage}"))
        if not shard:
            remove_temporary(output, directory=directory)

    digests: dict[str, str] = {}

    def make_fingerprint() -> str:
        digests.update({name: digest(name, checked=checked) for name in inputs})
        # Inputs enter the fingerprint by their contents alone: a moved file is the same file.
        known = [type(options).__name__, with_urls(_by_contents(settings, digests)), sorted(digests.values())]
        return hashlib.sha256(json.dumps(known, default=str, sort_keys=True).encode()).hexdigest()

    try:
        on_first(prepare)
        fingerprint = assert_equal(f"{output}: the fingerprint of settings and inputs", make_fingerprint)
        found = _ExistingOutput(output, fingerprint, wanted.real_beside, directory=directory)
        state, staged = on_first(lambda: found.forced_state() if force else (found.state(), False))
    except BaseException:
        unlock(locks)
        raise
    contents = {
        "stage": stage,
        "settings": _final_paths(settings),
        "inputs": {_final_paths(name): value for name, value in digests.items()},
        "version": VERSION,
        "fingerprint": fingerprint,
        "makes": list(makes),
        "beside": {name: relative_to_output(path, output) for name, path in wanted.beside.items()},
    }
    record = RunRecord(output, contents, state, directory, staged, shard, locks)
    if _reservations:
        _reservations[-1].append(record)
    return record


def guard_outputs(run: Stage) -> Stage:
    """Decorator of stages that releases reservations at the end, and names the output in disk errors."""

    @functools.wraps(run)
    def guarded(*arguments: Any, **named: Any) -> Any:
        reservations: list[RunRecord] = []
        _reservations.append(reservations)
        try:
            return run(*arguments, **named)
        except OSError as error:
            if error.filename is None and error.errno in _DISK and reservations:
                raise LampError(
                    f"{reservations[-1].output}: cannot be written ({error.strerror}); {_REMEDY}"
                ) from error
            raise
        finally:
            _reservations.pop()
            for record in reversed(reservations):
                record.release()

    return guarded  # pyright: ignore[reportReturnType]


_REMEDY = "free disk space or give another --output; run the same command again to resume"


def digest(name: str, *, checked: Sequence[str] = ()) -> str:
    """SHA-256 of a file, or of a directory's files with their names; a hub name is its own digest.

    Files of a directory whose names match a pattern of `checked` are left out.
    """
    path = Path(name)
    if path.is_file():
        return _file_digest(path)
    if path.is_dir():
        lines = [f"{file.relative_to(path)} {_file_digest(file)}" for file in _input_files(path, checked)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"name {name}"


@dataclass(frozen=True)
class _RequestedOutputs:
    """Outputs that a command asks to write."""

    output: Path
    beside: Mapping[str, Path]
    directory: bool
    shard: str

    @classmethod
    def of(
        cls, output: str | Path, beside: Mapping[str, str | Path] | None, *, directory: bool, shard: str
    ) -> "_RequestedOutputs":
        """Outputs named by options; empty additional ones are left out. LampError for an empty `output`."""
        if not str(output):
            raise LampError("--output is empty; give a file or directory to write to")
        path = Path(output)
        path = Path(os.path.realpath(path)) if path.is_symlink() or path.name in ("", "..") else path
        return cls(path, {name: Path(file) for name, file in (beside or {}).items() if file}, directory, shard)

    @property
    def real_beside(self) -> dict[str, Path]:
        """Canonical paths of the additional files, whether they exist or not."""
        return {name: Path(os.path.realpath(path.parent), path.name) for name, path in self.beside.items()}

    def check(self, inputs: Iterable[str]) -> None:
        """LampError where an output is, contains or is inside an input, equals another output, or is being written."""
        written = self._written()
        check_distinct(self.output, self.beside.values(), written, directory=self.directory)
        check_apart(written, inputs)
        check_kind(self.output, directory=self.directory)
        if any(
            (record.output, record.shard) == (self.output, self.shard)
            for records in _reservations
            for record in records
        ):
            raise LampError(
                f"{self.output}: another command of this process is writing to it; wait until that command ends"
            )

    def lock(self, holder: str) -> list[Path]:
        """Locks all outputs or, with a LampError, none, where another process has locked one."""
        held = [lock_output(self.output, directory=self.directory, shard=self.shard, holder=holder)]
        try:
            for path in self.beside.values() if not self.shard else ():  # any of several shards may write them
                held.append(lock_output(path, directory=False, holder=holder))
        except BaseException:
            unlock(held)
            raise
        return held

    def _written(self) -> list[Path]:
        """All paths that the command may write."""
        further = list(self.beside.values())
        paths = [self.output, *further, *(staged_path(path, directory=False) for path in further)]
        if not self.directory:
            staged = staged_path(self.output, directory=False)
            paths.append(staged)
            paths += [related(path) for path in (self.output, staged) for related in (record_path, journal_path)]
        return paths


@dataclass(frozen=True)
class _ExistingOutput:
    """Existing files of a locked output."""

    output: Path
    fingerprint: str
    beside: Mapping[str, Path]
    directory: bool

    def state(self) -> OutputState:
        """State without `--force`. LampError for an output of another command, of other settings, or without a
        record."""
        replace_output(self.output, directory=self.directory)  # completes a forced run that was killed at its end
        record, path = read_record(self.output), record_path(self.output)
        if record is None:
            if existing := self._existing():
                raise LampError(f"{existing}: exists without a run record; move it away")
            return "new"
        if not is_record(record):
            raise LampError(f"{path}: not a run record of lamp; move this file away, or give another --output")
        self._check_beside(record)
        if not _has_content(self.output, self.directory):
            return "new"
        if record["fingerprint"] != self.fingerprint:
            raise LampError(
                f"{self.output}: exists with other settings or inputs ({path} lists them); "
                "give another --output, or --force to start over"
            )
        if not record.get("finished"):
            return "unfinished"
        if record.get("output_sha256") != _output_digest(self.output):
            raise LampError(
                f"{self.output}: was changed after it was made; move it away, or give --force to make it again"
            )
        return "done" if self._has_all_beside(record) else "unfinished"

    def forced_state(self) -> tuple[OutputState, bool]:
        """State with `--force`, and whether the new output is to be written beside the old one."""
        if replace_output(self.output, directory=self.directory):
            record = read_record(self.output) or {}
            if record.get("fingerprint") == self.fingerprint:
                return "done", False  # by this command, before it was killed
        record, existing = read_record(self.output), self._existing()
        if record is None:
            if existing:
                raise LampError(f"{existing}: no run record names it, so --force does not remove it; move it away")
            return "new", False
        check_replaceable(self.output, record)
        self._check_beside(record)
        if not existing:
            return "new", False
        check_staged(self.output, directory=self.directory)
        staged = read_record(staged_path(self.output, directory=self.directory)) or {}
        return "unfinished" if staged.get("fingerprint") == self.fingerprint else "new", True

    def _existing(self) -> Path | None:
        """The first of the outputs that exists."""
        if _has_content(self.output, self.directory):
            return self.output
        return next((path for path in self.beside.values() if path.exists()), None)

    def _has_all_beside(self, record: Mapping[str, Any]) -> bool:
        """Whether the additional outputs of a finished command exist. LampError for one that was changed."""
        for name, (path, digest) in beside_of(record, self.output).items():
            if digest is None or name not in self.beside:
                continue
            if path != self.beside[name] or not path.exists():
                return False
            if _file_digest(path) != digest:
                raise LampError(
                    f"{path}: was changed after it was made with {self.output}; move it away, or give --force to make "
                    "both again"
                )
        return True

    def _check_beside(self, record: Mapping[str, Any]) -> None:
        """LampError for an existing additional output file that the record does not name."""
        known = {path for path, _ in beside_of(record, self.output).values()}
        for path in self.beside.values():
            if path.exists() and path not in known:
                raise LampError(f"{path}: exists, and the record of {self.output} does not name it; move it away")


def _record_at(output: Path, directory: bool) -> Path:
    """`record_path` of an output that may not exist yet."""
    return output / RECORD if directory else record_path(output)


def _has_content(output: Path, directory: bool) -> bool:
    """Whether anything but the record exists: a command that failed its checks leaves nothing to keep."""
    if directory:
        return output.is_dir() and any(path.is_dir() or not is_temporary(path) for path in entries(output))
    return output.exists() or journal_path(output).exists()


def _final_paths(value: Any) -> Any:
    """Settings with the paths that files have after a forced run (of `lamp demo`) has replaced its output."""
    if isinstance(value, Mapping):
        return {key: _final_paths(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_final_paths(member) for member in value]
    return value.replace(f"/{STAGED}/", "/") if isinstance(value, str) else value


def _by_contents(settings: Any, digests: Mapping[str, str]) -> Any:
    """The settings without execution-only options, with each input's digest in place of its path."""
    if isinstance(settings, Mapping):
        return {key: _by_contents(value, digests) for key, value in settings.items() if key not in EXECUTION_ONLY}
    if isinstance(settings, list | tuple):
        return [_by_contents(value, digests) for value in settings]
    return digests.get(settings, settings) if isinstance(settings, str) else settings


def _input_files(directory: Path, checked: Sequence[str]) -> Iterator[Path]:
    """Sorted files of an input directory that enter its digest: no checkpoints or staged files, no hidden ones
    (`.git`)."""
    for path in sorted(directory.rglob("*")):
        *above, name = parts = path.relative_to(directory).parts
        excluded = (
            parts[0] in (STAGED, REPLACED) or CHECKPOINTS in above or any(component[0] == "." for component in parts)
        )
        excluded = excluded or name == RECORD or any(fnmatchcase(name, pattern) for pattern in checked)
        if path.is_file() and not excluded:
            yield path


def _output_digest(output: Path) -> str:
    """Digest of an output file; a directory, which may be large and whose logs may grow, is not hashed."""
    return _file_digest(output) if output.is_file() else "directory"


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
