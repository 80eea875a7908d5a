"""Compilation ahead: the programs of an update for all shapes of the coming batches, compiled at the same time.

XLA compiles one program in one thread for most of the time; other threads compile others while the first batches are
trained on.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from jax.stages import Lowered

from lamp_jax.inputs.batches import Batches
from lamp_jax.runs.processes import process_count
from lamp_jax.runs.workers import available_cores


def first_steps(batches: Batches, start: int, stop: int) -> list[int]:
    """First step of each size of batch, of the steps from `start` on: one epoch's, and only those before `stop`."""
    steps: dict[Hashable, int] = {}
    for step in range(start, min(stop, start + len(batches))):
        steps.setdefault(batches.size(step), step)
    return list(steps.values())


@contextmanager
def compiled_ahead(programs: Iterable[tuple[Hashable, Lowered]]) -> Iterator[Callable[[Hashable], None]]:
    """Context with a function that waits until the program of a name is compiled; any other name is not waited for.

    A later call of the same jitted function with the same shapes runs what was compiled here. In several processes
    nothing is compiled ahead, because some compilers need all of them at the same program.
    """
    if process_count() > 1:
        yield lambda name: None
        return
    # One more than cores: three programs on two cores end after 1.5 times the time of one, not after twice that time.
    with ThreadPoolExecutor(available_cores() + 1, "compilation") as threads:
        compiled: dict[Hashable, Future] = {name: threads.submit(program.compile) for name, program in programs}

        def wait(name: Hashable) -> None:
            if name in compiled:
                compiled.pop(name).result()

        try:
            yield wait
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # those that have not begun
