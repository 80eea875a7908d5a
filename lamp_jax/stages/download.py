"""`lamp download`: download of the benchmark's files into one tree, or verification of a tree by its manifest."""

import os
import threading
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from lamp_jax.data.layout import SITE, TreeFile, benchmark_files
from lamp_jax.datasets.download import DownloadSource, download
from lamp_jax.datasets.manifest import DownloadManifest, find_fault
from lamp_jax.errors import LampError
from lamp_jax.options.data import Download
from lamp_jax.tasks.catalog import TASKS, find_task


def run(options: Download) -> None:
    files = choose_files(options)
    if options.verify:
        verify(files, Path(options.output))
    else:
        fetch(files, options)


def choose_files(options: Download) -> list[TreeFile]:
    """Files of the requested tasks, split and parts, each once. LampError for an unknown task."""
    current = [task for task in TASKS.values() if task.folder and not task.deprecated]
    if not options.parts:
        raise LampError("--parts is empty: give one or more of train, dev, test")
    tasks = [find_task(name) for name in options.tasks] or current
    absent = [task.name for task in tasks if not task.folder]
    if absent:
        raise LampError(f"--tasks {' '.join(absent)}: not at the benchmark's site; leave it out")
    files = [file for task in tasks for file in benchmark_files(task, options.split, options.parts)]
    return list({file.path: file for file in files}.values())


def fetch(files: list[TreeFile], options: Download) -> None:
    """Downloads files and prints a summary. Tries all; raises LampError with all failures at the end."""
    _check_options(options)
    root = Path(options.output)
    _check_writable(root)
    source = DownloadSource((*options.mirrors, SITE), attempts=options.attempts, timeout=options.timeout)
    with tqdm(desc="download", unit="B", unit_scale=True, total=0, disable=None) as bar:
        outcomes = []
        progress = _Progress(bar)
        for outcome in download(files, root, source=source, connections=options.connections, report=progress):
            outcomes.append(outcome)
            for line in outcome.lines:
                bar.write(line)
    errors = [str(outcome.error) for outcome in outcomes if outcome.error]
    fetched = sum(outcome.fetched for outcome in outcomes)
    print(f"{root}: {len(files) - len(errors)} of {len(files)} files are complete, {fetched} downloaded now")
    if errors:
        raise LampError("\n".join([f"{len(errors)} of {len(files)} files failed:", *errors]))


def verify(files: list[TreeFile], root: Path) -> None:
    """Prints a table of the files on disk. Raises LampError if any differs from the download manifest."""
    manifest = DownloadManifest(root)
    width = max(len(str(file.path)) for file in files)
    print(f"{'file':{width}} {'bytes':>14} {'records':>9}  state")
    faults = 0
    for file in tqdm(files, "verify", disable=None):
        fault, entry = find_fault(file, root, manifest), manifest.find(file)
        size, records = (entry.size, entry.records) if entry else ("-", "-")
        tqdm.write(f"{file.path!s:{width}} {size:>14} {records:>9}  {fault or 'complete'}")
        faults += bool(fault)
    if faults:
        raise LampError(
            f"{root}: {faults} of {len(files)} files are missing or wrong (the table says how); remove the wrong ones, "
            "then the same command without --verify downloads them"
        )


class _Progress:
    """Progress bar in bytes of files that several threads download."""

    def __init__(self, bar: tqdm):
        self._bar, self._lock = bar, threading.Lock()
        self._have: dict[PurePosixPath, int] = {}
        self._sizes: dict[PurePosixPath, int] = {}

    def __call__(self, file: TreeFile, have: int, size: int | None) -> None:
        with self._lock:
            self._sizes[file.path] = size or have
            self._bar.total = sum(self._sizes.values())
            self._bar.update(have - self._have.get(file.path, 0))
            self._have[file.path] = have


def _check_options(options: Download) -> None:
    for name, least in (("connections", 1), ("attempts", 1)):
        if getattr(options, name) < least:
            raise LampError(f"--{name} {getattr(options, name)}: must be at least {least}")
    if not options.timeout > 0:
        raise LampError(f"--timeout {options.timeout}: must be more than 0 seconds")
    for mirror in options.mirrors:
        if not mirror.startswith(("http://", "https://")):
            raise LampError(f"--mirrors {mirror}: not an address; give one that begins with http:// or https://")


def _check_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LampError(f"{root}: cannot be created as a directory ({error}); give another --output") from None
    if not os.access(root, os.W_OK | os.X_OK):
        raise LampError(f"{root}: no permission to write there; give another --output")
