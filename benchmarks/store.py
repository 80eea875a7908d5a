"""Speed and memory of the adapter store at several sizes, against its first format: `python benchmarks/store.py`.

For each size, a store of this format and one of the first are written to a temporary directory, with random numbers:
256 bytes per user (`--numbers 128` in bfloat16), appended in batches of 4,096 users. Both need about 700 bytes of disk
per user, or 7 GB for ten million. Prints, with the ratio of the first format's figure to this one's:

- opening, in a new process each time: median milliseconds, and the resident memory that it adds;
- reading 64 random users, others each time, after as many reads to warm up: median milliseconds of wall-clock and CPU
  time;
- appending 64 users: median and longest milliseconds; bytes written per byte of the appended adapters, mean over all
  appends, which includes merging.

`--old-most` is the largest size at which the first format is measured: it needs about 0.9 kB of memory per user.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from lamp_jax.artifacts import old_store
from lamp_jax.artifacts.adapters import AdapterEntry, AdapterForm, AdapterStore, create_store, open_store

CHUNK, READ = 4096, 64


def make_form(numbers: int) -> AdapterForm:
    return AdapterForm(
        "random", "random", 1, 32.0, ("q",), {"q.down": (numbers // 2,), "q.up": (numbers // 2,)}, "bfloat16"
    )


class OldStore:
    """Store of the first format: all users are read on opening."""

    def __init__(self, directory: Path, form: AdapterForm):
        self._directory, self._size = directory, form.bytes_per_user
        self.entries: dict[str, AdapterEntry] = {}
        self._rows: dict[str, int] = {}
        self._checksums: list[int] = []
        parsed = [json.loads(line) for line in (directory / old_store.USERS).read_bytes().splitlines(keepends=True)]
        for line in parsed:
            self._rows[line["user"]] = len(self._rows)
            self._checksums.append(line["crc32"])
            self.entries[line["user"]] = AdapterEntry(line["user"], line["items"], line["updates"], line["loss"])

    def read(self, users: list[str]) -> np.ndarray:
        records = np.empty((len(users), self._size), np.uint8)
        with open(self._directory / old_store.NUMBERS, "rb", buffering=0) as file:
            for user, record in zip(users, records, strict=True):
                row = self._rows[user]
                os.preadv(file.fileno(), [record.data], row * self._size)
                assert zlib.crc32(record.data) == self._checksums[row]
        return records


def draw_users(
    form: AdapterForm, first: int, stop: int, size: int
) -> Iterator[tuple[list[AdapterEntry], dict[str, np.ndarray]]]:
    """Users "0", "1", ... with random adapters, `size` at a time."""
    rng = np.random.default_rng(first)
    for start in range(first, stop, size):
        entries = [AdapterEntry(str(user), 10, 30, 1.0) for user in range(start, min(start + size, stop))]
        shapes = {name: (len(entries), *shape) for name, shape in form.shapes.items()}
        yield entries, {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def append_old(
    directory: Path, form: AdapterForm, entries: list[AdapterEntry], adapters: dict[str, np.ndarray]
) -> None:
    import ml_dtypes

    numbers = np.concatenate([adapters[name] for name in form.shapes], axis=1).astype(ml_dtypes.bfloat16)
    old_store.append_users(directory, entries, numbers)


def make_store(directory: Path, form: AdapterForm, users: int) -> None:
    with closing(create_store(directory, form)) as store:
        for entries, adapters in draw_users(form, 0, users, CHUNK):
            store.append(entries, adapters)


def make_old_store(directory: Path, form: AdapterForm, users: int) -> None:
    directory.mkdir(parents=True)
    for entries, adapters in draw_users(form, 0, users, CHUNK):
        append_old(directory, form, entries, adapters)


# --- measurements


def resident() -> float:
    """Resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def written() -> int:
    """Bytes written by this process."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def open_any(directory: Path, form: AdapterForm, *, old: bool) -> Any:
    return OldStore(directory, form) if old else open_store(directory)


def measure_here(directory: Path, form: AdapterForm, users: int, *, old: bool, repeats: int) -> dict[str, float]:
    """Figures of opening and reading, in a process that does nothing else."""
    before, start = resident(), time.perf_counter()
    store = open_any(directory, form, old=old)
    found = {"open, ms": 1000 * (time.perf_counter() - start), "open, MB": resident() - before}
    rng, times, seconds = np.random.default_rng(1), [], []
    for _ in range(2 * repeats):
        chosen = [str(user) for user in rng.choice(users, READ, replace=False)]
        start, busy = time.perf_counter(), time.process_time()
        store.read(chosen)
        times.append(1000 * (time.perf_counter() - start))
        seconds.append(1000 * (time.process_time() - busy))
    reading = {
        "read 64, ms": statistics.median(times[repeats:]),
        "read 64, CPU ms": statistics.median(seconds[repeats:]),
    }
    return found | reading | {"after reading, MB": resident() - before}


def measure_opening(directory: Path, users: int, *, old: bool, processes: int) -> dict[str, float]:
    """Medians of `measure_here` over new processes."""
    words = [sys.executable, __file__, "--measure", str(directory), "--users", str(users), *(["--old"] if old else [])]
    runs = [json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout) for _ in range(processes)]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def measure_appends(append: Callable[..., None], form: AdapterForm, users: int, count: int) -> dict[str, float]:
    times, size, before = [], 0, written()
    for entries, adapters in draw_users(form, users, users + READ * count, READ):
        start = time.perf_counter()
        append(entries, adapters)
        times.append(1000 * (time.perf_counter() - start))
        size += READ * form.bytes_per_user
    ratio = (written() - before) / size
    return {"append, ms": statistics.median(times), "longest, ms": max(times), "written per byte": ratio}


def append_to(directory: Path, form: AdapterForm, users: int, count: int) -> dict[str, float]:
    start = time.perf_counter()
    with closing(create_store(directory, form)) as store:
        opened = 1000 * (time.perf_counter() - start)
        return {"open to append, ms": opened} | measure_appends(store.append, form, users, count)


def count_files(store: AdapterStore) -> str:
    shards, index = store.segments
    return f"{len(shards)} shards, {len(index)} index segments"


def compare(folder: Path, form: AdapterForm, users: int, *, old: bool, processes: int, appends: int) -> None:
    print(f"{users:,} users of {form.bytes_per_user} bytes", flush=True)
    new, first = folder / f"new-{users}", folder / f"old-{users}"
    start = time.perf_counter()
    make_store(new, form, users)
    size = sum(path.stat().st_size for path in new.iterdir())
    print(f"  written in {time.perf_counter() - start:.0f} s, {size / 1e9:.2f} GB, {count_files(open_store(new))}")
    print(f"  {'':20}{'new':>12}{'old' if old else '':>12}{'ratio' if old else '':>10}")
    found = measure_opening(new, users, old=False, processes=processes) | append_to(new, form, users, appends)
    before: dict[str, float] = {}
    if old:
        make_old_store(first, form, users)
        before = measure_opening(first, users, old=True, processes=processes if users <= 100_000 else 1)
        before |= measure_appends(lambda *users: append_old(first, form, *users), form, users, appends)
    for name, value in found.items():
        other = f"{before[name]:12.1f}{before[name] / max(value, 0.1):10.2f}" if name in before else ""
        print(f"  {name:20}{value:12.1f}{other}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000], help="numbers of users"
    )
    parser.add_argument("--old-most", type=int, default=1_000_000)
    parser.add_argument("--numbers", type=int, default=128, help="per user")
    parser.add_argument("--processes", type=int, default=5, help="number of processes that open a store")
    parser.add_argument("--appends", type=int, default=256)
    parser.add_argument("--folder", help="directory of the temporary stores; default: the system's")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--users", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--old", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    form = make_form(options.numbers)
    if options.measure:
        return print(json.dumps(measure_here(options.measure, form, options.users, old=options.old, repeats=20)))
    for users in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            old = users <= options.old_most
            compare(Path(folder), form, users, old=old, processes=options.processes, appends=options.appends)


if __name__ == "__main__":
    main()
