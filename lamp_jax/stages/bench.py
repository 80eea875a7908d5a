"""`lamp bench`: speed beside the strongest peers, as a table or as JSON."""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lamp_jax.bench.libraries import LIBRARIES, versions
from lamp_jax.bench.machine import describe_machine, measure_limits
from lamp_jax.bench.parts import PARTS, cases_of
from lamp_jax.bench.parts.encode import find_model
from lamp_jax.bench.report import as_json, describe_limits, head, line
from lamp_jax.bench.runner import Row, measure
from lamp_jax.bench.workers import Workers, thread_settings
from lamp_jax.errors import LampError
from lamp_jax.options.bench import Bench
from lamp_jax.runs.workers import available_cores
from lamp_jax.version import VERSION

_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # memory is left for the peers
# Also where there is an accelerator: one device with all cores.
_CPU = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
_FAST_COMPILER = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_ENVIRONMENT = {"gpu": _GPU, "full": _CPU, "smoke": {**_CPU, "XLA_FLAGS": _FAST_COMPILER}}


def run(options: Bench) -> None:
    """Prints the measurements. LampError for a peer that is not installed, and at the end where results differ."""
    parts = _check(options)
    machine, rows = describe_machine(), []
    say = (lambda text: print(text, file=sys.stderr)) if options.json else print
    say(f"lamp {VERSION} on {machine['processor']}, {machine['cores']} threads on each side, size {options.size}")
    platform = _ENVIRONMENT[options.size]
    with Workers(platform) as workers, tempfile.TemporaryDirectory(prefix="lamp-bench-") as name:
        limits = measure_limits(options.size, workers)
        say(describe_limits(limits))
        say(head())
        for row in _rows(options, parts, Path(name), workers, limits["best"]):
            rows.append(row)
            say(line(row))
    if options.json:
        facts = {"lamp": VERSION, "size": options.size, "machine": machine, "limits": limits}
        facts |= {"versions": versions(), "environment": thread_settings(available_cores()) | platform}
        print(json.dumps(as_json(rows, **facts)))
    check_results(rows)


def _rows(options: Bench, parts: list[str], folder: Path, workers: Workers, limits: dict[str, float]) -> Iterator[Row]:
    for part in parts:
        place = folder / part
        place.mkdir()
        for case in cases_of(part)(options.size, place, workers):
            yield from measure(part, case, workers, against=options.against, limits=limits)


def _check(options: Bench) -> list[str]:
    """Parts to measure. LampError for a part that the size lacks, for unknown or missing peers, and for a missing
    encoder of `encode`."""
    for part in options.parts:
        if options.size not in PARTS[part]:
            raise LampError(f"{part}: has no size {options.size}; give --size {' or '.join(PARTS[part])}")
    for name in options.against:
        if name not in LIBRARIES or name == "lamp":
            peers = ", ".join(name for name in LIBRARIES if name != "lamp")
            raise LampError(f"--against {name}: unknown peer; choose one of {peers}")
        if LIBRARIES[name].problem:
            raise LampError(f"--against {name}: {LIBRARIES[name].problem}")
    parts: list[str] = [*options.parts] or [part for part, sizes in PARTS.items() if options.size in sizes]
    if "encode" in parts:
        find_model()
    return parts


def check_results(rows: list[Row]) -> None:
    different = [f"{row.part}, {row.case}, {row.peer}: {row.agreement}" for row in rows if row.holds is False]
    failed = [f"{row.part}, {row.case}, {row.peer}: {row.problem}" for row in rows if row.failed]
    if different or failed:
        raise LampError("\n".join(["some comparisons are not valid:", *different, *failed]))
