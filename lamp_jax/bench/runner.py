"""Measurement of cases: interleaved runs of all sides, medians, agreement of the results."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lamp_jax.bench.cases import Case, Partial, Side
from lamp_jax.bench.libraries import LIBRARIES
from lamp_jax.bench.workers import FailedSideError, Timed, Worker, Workers

_PAUSE = 0.25  # seconds between turns: threads of the side before wait actively for about as long


@dataclass(frozen=True)
class Row:
    """Measurement of lamp against one peer, or alone."""

    part: str
    case: str
    unit: str
    lamp: float
    """Median of lamp's runs, in `unit`."""
    lamp_runs: tuple[float, ...]
    first_run: float
    """Wall-clock seconds of lamp's first run, which compiles."""
    library: str = ""
    peer: str = ""
    """Name of the peer's side; empty: the case has no peer."""
    theirs: float | None = None
    """Median of the peer's runs; None: it was not measured."""
    peer_runs: tuple[float, ...] = ()
    ratio: float | None = None
    """How many times as fast as the peer lamp is; for MB, the peer's memory divided by lamp's."""
    with_compiling: float | None = None
    """`ratio` with lamp's compiling, which is what its first run took longer, for a case that is a complete job."""
    agreement: str = ""
    holds: bool | None = None
    """Whether the results are as close as demanded; None: nothing is demanded of them."""
    problem: str = ""
    """Why the peer was not measured."""
    failed: bool = False
    """Whether the peer is installed, and could not do the work."""
    gflops: float | None = None
    """Useful GFLOP/s of lamp."""
    peer_gflops: float | None = None
    limit: float | None = None
    """`gflops` as a share of the machine's peak matmul throughput."""


def measure(part: str, case: Case, workers: Workers, *, against: Sequence[str], limits: dict[str, float]) -> list[Row]:
    """Rows of a case, one for each peer among `against` (empty: all). Raises FailedSideError where lamp fails."""
    peers = [side for side in case.peers if not against or side.library in against]
    problems = {side.name: LIBRARIES[side.library].problem for side in peers}
    missing = {name for name, problem in problems.items() if problem}
    sides = [case.ours, *(side for side in peers if not problems[side.name])]
    runs: dict[str, list[Timed]] = {}
    for side in sides:
        try:
            runs[side.name] = [_start(_worker(workers, side), side)]
        except FailedSideError as error:
            if side is case.ours:
                raise
            problems[side.name] = str(error)
    for _ in range(case.rounds):
        for side in sides:
            if side.name in runs and not side.slow:
                time.sleep(_PAUSE if case.rounds > 1 else 0)
                runs[side.name].append(_worker(workers, side).run(side, keep=case.unit == "MB"))
    for worker in {id(one): one for one in (_worker(workers, side) for side in sides)}.values():
        worker.forget()
    alone = _alone(part, case, runs[case.ours.name], limits)
    rows = _against(case, alone, peers, runs, problems)
    return [replace(row, failed=bool(row.problem) and row.peer not in missing) for row in rows] or [alone]


def _worker(workers: Workers, side: Side) -> Worker:
    return workers.of(side.library, side.environment)


def _start(worker: Worker, side: Side) -> Timed:
    """First run, with its result."""
    worker.prepare(side)
    return worker.run(side, keep=True)


def _alone(part: str, case: Case, runs: Sequence[Timed], limits: dict[str, float]) -> Row:
    values = _values(case, runs)
    middle = statistics.median(values)
    row = Row(part, case.name, case.unit, middle, values, runs[0].seconds)
    if not case.flops:
        return row
    speed = case.flops / middle / 1e9
    return replace(row, gflops=speed, limit=speed / limits[case.dtype])


def _against(
    case: Case, alone: Row, peers: Sequence[Side], runs: dict[str, list[Timed]], problems: dict[str, str]
) -> Iterator[Row]:
    ours = runs[case.ours.name]
    compiling = max(0.0, ours[0].seconds - statistics.median(run.seconds for run in ours[1:] or ours))
    for side in peers:
        row = replace(alone, library=side.library, peer=side.name, problem=problems[side.name])
        if not row.problem:
            values = _values(case, runs[side.name])
            middle = statistics.median(values)
            row = replace(row, theirs=middle, peer_runs=values, ratio=middle / alone.lamp)
            if case.complete:
                row = replace(row, with_compiling=middle / (alone.lamp + compiling))
            if case.flops:
                row = replace(row, peer_gflops=case.flops / middle / 1e9)
            if case.agree is not None:
                text, holds = case.agree(_result(ours), _result(runs[side.name]))
                row = replace(row, agreement=text, holds=holds if side.exact else None)
        yield row


def _result(runs: Sequence[Timed]) -> Any:
    found = runs[0].result
    return found.result if isinstance(found, Partial) else found


def _values(case: Case, runs: Sequence[Timed]) -> tuple[float, ...]:
    """Timed runs in the case's unit; the first is not timed unless it is the only one."""
    share = runs[0].result.share if isinstance(runs[0].result, Partial) else 1.0

    def value(run: Timed) -> float:
        return run.result if case.unit == "MB" else run.seconds if case.unit == "s" else run.processor

    return tuple(value(run) / share for run in (runs[1:] or runs))
