"""Processes in which the sides of a benchmark compute, one per library, all with the same number of threads."""

import contextlib
import os
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from lamp_jax.bench.cases import Run, Side
from lamp_jax.errors import LampError
from lamp_jax.runs.workers import available_cores, end_with_parent


class Timed(NamedTuple):
    """One run of a side."""

    seconds: float
    processor: float
    """Seconds of all threads and of child processes that have ended."""
    result: Any


class FailedSideError(LampError):
    """A side raised an error or died; the message is its last line."""


class Worker:
    """Process of a library, which calls functions on request."""

    def __init__(self, library: str, environment: Mapping[str, str]):
        context = get_context("spawn")
        self.library = library
        self._pipe, theirs = context.Pipe()
        # Not daemonic: a side may start processes of its own.
        self._process = context.Process(target=_serve, args=(theirs,), name=f"bench {library}")
        with _set_environment(environment):
            self._process.start()
        theirs.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Result of a picklable function in the process. FailedSideError for its errors."""
        try:
            self._pipe.send((function, arguments))
            result, error = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise FailedSideError(f"{self.library}: its process died (out of memory?)") from None
        if error is not None:
            raise FailedSideError(f"{self.library}: {error}")
        return result

    def prepare(self, side: Side) -> None:
        """Loads a side's data and programs."""
        self.call(_prepare, side.name, side.prepare)

    def run(self, side: Side, *, keep: bool) -> Timed:
        """Runs a prepared side once; with `keep`, returns its result too."""
        return self.call(_run, side.name, keep)

    def forget(self) -> None:
        """Releases the memory of all prepared sides."""
        self.call(_forget)

    def close(self) -> None:
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()


class Workers:
    """Processes of all libraries of a benchmark, started on first use: `with Workers(...) as workers:`."""

    def __init__(self, environment: Mapping[str, str] | None = None):
        self._common = {**thread_settings(available_cores()), **(environment or {})}
        self._workers: dict[Any, Worker] = {}

    def of(self, library: str, environment: Mapping[str, str] | None = None) -> Worker:
        """Process of a library with these further environment variables."""
        key = (library, *sorted((environment or {}).items()))
        if key not in self._workers:
            self._workers[key] = Worker(library, {**self._common, **(environment or {})})
        return self._workers[key]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()


def thread_settings(threads: int) -> dict[str, str]:
    """Environment in which every library computes with this many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    # Idle threads of OpenMP that wait actively would take the cores of the side whose turn it is.
    quiet = {"OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    quiet |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Without a cache, so that the first run compiles.
    return {name: str(threads) for name in names} | quiet | {"JAX_ENABLE_COMPILATION_CACHE": "false"}


@contextlib.contextmanager
def _set_environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- in the process

_prepared: dict[str, Run] = {}


def _serve(pipe: Connection) -> None:
    end_with_parent()
    os.dup2(2, 1)  # the standard output is the report's
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (function(*arguments), None)
        except LampError as error:
            answer = (None, str(error))
        except Exception as error:
            traceback.print_exc()
            answer = (None, f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _prepare(name: str, prepare: Callable[[], Run]) -> None:
    _prepared[name] = prepare()


def _forget() -> None:
    _prepared.clear()


def _run(name: str, keep: bool) -> Timed:
    processor, start = _processor_seconds(), time.perf_counter()
    result = _prepared[name]()
    seconds = time.perf_counter() - start
    return Timed(seconds, _processor_seconds() - processor, result if keep else None)


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
