"""Directories of the library's trainings: one that the caller names, with a run record, or a temporary one."""

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


class TemporaryPlace:
    """A directory that is removed with this object, or at the end of the program."""

    def __init__(self, name: str):
        self.path = Path(mkdtemp(prefix=f"lamp-{name}-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class LibraryRun:
    """What a training depends on; its run record holds it, as it holds a command's options."""

    function: str
    """Of `lamp_jax`."""
    task: str
    settings: Any
    """A dataclass."""
    contents: Mapping[str, str]
    """SHA-256 of what was given in memory, by argument."""


class Finished(NamedTuple):
    """A directory with a training that has ended."""

    directory: Path
    temporary: TemporaryPlace | None
    """Removes the directory; None for one that the caller named."""
    facts: Mapping[str, Any]
    """What the training came to."""


def run_in(
    output: str | Path | None,
    run: LibraryRun,
    work: Callable[[Path], Mapping[str, Any]],
    *,
    inputs: Sequence[str],
    makes: Sequence[str],
    force: bool = False,
) -> Finished:
    """Does `work` in a directory, which returns the facts of the record.

    Named by the caller, the directory has a run record: the same run finds its work done, or resumes it. LampError for
    a directory with other work, which `force` replaces once the new one is complete. `inputs` are files, directories
    or hub names; `makes` the patterns of the names of files that `work` writes. What a command would print goes to
    standard error: a function's output is what it returns.
    """
    if output is None:
        temporary = TemporaryPlace(run.function)
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
        facts = work(record.place)
    record.finish(**facts)
    return Finished(record.output, None, facts)
