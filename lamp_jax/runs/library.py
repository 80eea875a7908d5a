"""Directories of the library's trainings: the caller's, with a run record, or a temporary directory."""

import shutil
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

from lamp_jax.runs.outputs import read_record
from lamp_jax.runs.records import guard_outputs, reserve


class TemporaryOutput:
    """Directory that is removed with this object, or at the end of the program."""

    def __init__(self, name: str):
        self.path = Path(mkdtemp(prefix=f"lamp-{name}-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class LibraryRun:
    """Inputs of a training, stored in its run record like a command's options."""

    function: str
    """Name of the function of `lamp_jax`."""
    task: str
    settings: Any
    """Settings of the training, a dataclass."""
    contents: Mapping[str, str]
    """SHA-256 of each argument that was given in memory."""


class Finished(NamedTuple):
    """Directory of a completed training."""

    directory: Path
    temporary: TemporaryOutput | None
    """Removes the directory; None for a directory of the caller."""
    facts: Mapping[str, Any]
    """Facts of the training, such as its scores."""


def run_in(
    output: str | Path | None,
    run: LibraryRun,
    work: Callable[[Path], Mapping[str, Any]],
    *,
    inputs: Sequence[str],
    makes: Sequence[str],
    force: bool = False,
) -> Finished:
    """Runs `work`, which returns the facts of the record, in a directory.

    A directory of the caller has a run record: the same run returns the completed work, or resumes it. LampError for a
    directory with other work, which `force` replaces once the new work is complete. `inputs` are files, directories or
    hub names; `makes` the patterns of the names of files that `work` writes. Output that a command would print goes to
    standard error, because a function's output is its return value.
    """
    if output is None:
        temporary = TemporaryOutput(run.function)
        with redirect_stdout(sys.stderr):
            return Finished(temporary.path, temporary, work(temporary.path))
    return _run_recorded(output, run, work, inputs=inputs, makes=makes, force=force)


@guard_outputs
def _run_recorded(
    output: str | Path,
    run: LibraryRun,
    work: Callable[[Path], Mapping[str, Any]],
    *,
    inputs: Sequence[str],
    makes: Sequence[str],
    force: bool,
) -> Finished:
    record = reserve(output, run, inputs=inputs, directory=True, makes=makes, force=force)
    if record.state == "done":
        return Finished(record.output, None, read_record(record.output) or {})
    record.begin()
    with redirect_stdout(sys.stderr):
        facts = work(record.target)
    record.finish(**facts)
    return Finished(record.output, None, facts)
