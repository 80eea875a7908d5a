"""How fast some users' adapters are read out of a store of many: `python benchmarks/store.py`.

Stores of T5-small's form in bfloat16, with random numbers, in a temporary directory: 10,000 users of rank 1 (111 kB
each, 1.1 GB) and 500 of rank 8 (885 kB each, 442 MB). Printed are medians: of opening, and of reading 64 users, others
each time, their checksums included; first out of memory, where the system keeps what was just written, then from the
disk, where it is asked to forget the file before each reading.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from lamp_jax.data.adapters import NUMBERS, AdapterStore, Entry, Form, create_store, open_store

LAYERS, WIDTH, HEADS, HEAD_SIZE = 6, 512, 8, 64
SITES = ("encoder.attention", "decoder.attention", "decoder.cross_attention")


def t5_small_form(rank: int) -> Form:
    shapes = {}
    for site in (f"{module}.{target}" for module in SITES for target in ("query", "key", "value")):
        shapes[f"{site}.down"] = (LAYERS, WIDTH, rank)
        shapes[f"{site}.up"] = (LAYERS, rank, HEADS, HEAD_SIZE)
    return Form("random", "T5-small", rank, 32.0, ("q", "k", "v"), shapes, "bfloat16")


def make_store(directory: str, form: Form, users: int, *, at_once: int = 64) -> float:
    """Writes the adapters of users "0", "1", ...; the seconds that appending took."""
    rng, seconds = np.random.default_rng(0), 0.0
    with closing(create_store(directory, form)) as store:
        for first in range(0, users, at_once):
            entries = [Entry(str(user), 10, 30, 1.0) for user in range(first, min(first + at_once, users))]
            shapes = {name: (len(entries), *shape) for name, shape in form.shapes.items()}
            adapters = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
            start = time.perf_counter()
            store.append(entries, adapters)
            seconds += time.perf_counter() - start
    return seconds


def median_ms(act: Callable[[], float], repeats: int) -> str:
    times = [1000 * act() for _ in range(repeats)]
    return f"median {statistics.median(times):7.1f} ms, from {min(times):.1f} to {max(times):.1f}"


def time_opening(directory: str) -> float:
    start = time.perf_counter()
    open_store(directory).close()
    return time.perf_counter() - start


def time_reading(store: AdapterStore, rng: np.random.Generator, count: int) -> float:
    chosen = rng.choice(list(store.entries), count, replace=False).tolist()
    start = time.perf_counter()
    store.read(chosen)
    return time.perf_counter() - start


def forget(directory: str) -> None:
    """Asks the system to drop the numbers from its memory."""
    with open(Path(directory) / NUMBERS, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(form: Form, users: int, *, count: int, repeats: int) -> None:
    rng = np.random.default_rng(1)

    def read_from_disk() -> float:
        forget(directory)
        with closing(open_store(directory)) as store:
            return time_reading(store, rng, count)

    with tempfile.TemporaryDirectory() as directory:
        seconds = make_store(directory, form, users)
        size = users * form.bytes_per_user
        print(f"{users} users of {form.bytes_per_user / 1000:.0f} kB, rank {form.rank}: {size / 1e9:.2f} GB")
        print(f"  append             {seconds:.1f} s, {size / seconds / 1e6:.0f} MB/s")
        print(f"  open               {median_ms(lambda: time_opening(directory), repeats)}")
        with closing(open_store(directory)) as store:
            print(f"  read {count} in memory  {median_ms(lambda: time_reading(store, rng, count), repeats)}")
        print(f"  read {count} from disk  {median_ms(read_from_disk, repeats)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10_000, help="of rank 1")
    parser.add_argument("--large-users", type=int, default=500, help="of rank 8")
    parser.add_argument("--count", type=int, default=64, help="users read at once")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    for rank, users in ((1, options.users), (8, options.large_users)):
        measure(t5_small_form(rank), users, count=options.count, repeats=options.repeats)


if __name__ == "__main__":
    main()
