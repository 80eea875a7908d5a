"""Chunked parallel map over processes or a Beam pipeline, with results in order."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from lamp_jax.config import Work
from lamp_jax.errors import LampError

Piece = TypeVar("Piece")
Result = TypeVar("Result")
# A process takes about as long to start as ranking this many bytes by BM25.
_BYTES_WORTH_A_PROCESS = 2**25


def parallel_map(
    function: Callable[[Piece], Result], pieces: Iterable[Piece], work: Work, *, size: int
) -> Iterator[Result]:
    """Results of `function` for every piece, in the order of the pieces, computed as `work` says.

    The pieces have `size` bytes in total. Function, pieces and results must be picklable. Exceptions of `function` are
    raised here.
    """
    if work.beam_runner != "none":
        from lamp_jax.runs.beam import map_in_beam

        return map_in_beam(function, pieces, work)
    return map_in_processes(function, pieces, processes=count_processes(work, size))


def available_cores() -> int:
    """Number of cores that this process may use; in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_cores(work: Work) -> int:
    """Maximal number of processes (`--workers`). LampError for a number below 0."""
    if work.workers < 0:
        raise LampError(f"--workers {work.workers}: must be 0 (every core) or more")
    return work.workers or available_cores()


def count_processes(work: Work, size: int) -> int:
    """Number of processes worth starting for `size` bytes. LampError as count_cores."""
    return min(count_cores(work), 1 + size // _BYTES_WORTH_A_PROCESS)


def end_with_parent() -> None:
    """Makes this worker process end when the process that started it ends or is killed."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def map_in_processes(
    function: Callable[[Piece], Result], pieces: Iterable[Piece], *, processes: int
) -> Iterator[Result]:
    """Results of `function` for every piece, in order. This process is one of the `processes`: it works while others
    start.

    LampError where a worker process dies; exceptions of `function` are raised here.
    """
    if processes <= 1:
        yield from map(function, pieces)
        return
    # Spawned, not forked: the caller may have started jax, whose threads do not survive a fork.
    pool = ProcessPoolExecutor(processes - 1, mp_context=get_context("spawn"), initializer=end_with_parent)
    waiting: deque[Future[Result]] = deque()
    try:
        for piece in pieces:
            # Every other process has one piece in progress and one queued.
            if sum(not future.done() for future in waiting) < 2 * (processes - 1):
                waiting.append(pool.submit(function, piece))
            else:
                waiting.append(Future())
                waiting[-1].set_result(function(piece))
            # Results wait for those before them, but only a bounded number do.
            while waiting and (waiting[0].done() or len(waiting) > 4 * processes):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise LampError(
            'a worker process died: out of memory, or a script without `if __name__ == "__main__":`; try --workers 1'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
