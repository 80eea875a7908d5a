"""`lamp check`: contents and faults of LaMP files, as a table for each file and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from lamp_jax.datasets.checking import FileCheck, check_file
from lamp_jax.errors import LampError
from lamp_jax.options.data import Check
from lamp_jax.runs.json_files import write_json
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.tasks.catalog import find_task

_WIDTH = 16


@guard_outputs
def run(options: Check) -> None:
    """Prints a table for each file. LampError at the end with the names of the files that have errors."""
    if not options.files:
        raise LampError("no files: give some, `lamp check FILE...`")
    record = None
    if options.output:  # the report of an earlier check is replaced
        record = reserve(options.output, options, inputs=options.files, ignore=["work"], force=True)
        record.begin()
    task = find_task(options.task) if options.task else None
    found = []
    for file in options.files:
        found.append(check_file(file, task=task, work=options.work))
        print("\n".join(_table(found[-1])), end="\n\n", flush=True)
    if record:
        write_json(record.target, [asdict(one) for one in found])
        record.finish(errors=sum(one.errors for one in found))
    bad = [one for one in found if one.errors]
    if bad:
        names = ", ".join(f"{one.file} ({one.errors})" for one in bad)
        raise LampError(f"errors in {len(bad)} of {len(found)} files: {names}; fix them as the tables say")


def _table(checked: FileCheck) -> Iterator[str]:
    yield f"{checked.file}: {checked.form}" + (f" of {checked.task}" if checked.task else "")
    for name, value in checked.facts.items():
        yield f"  {name:{_WIDTH}}  {_cell(value)}"
    for finding in checked.findings:
        yield f"  {finding['severity']:7}  {finding['name']}: {finding['count']:,}; {finding['meaning']}"
        for example in finding["examples"]:
            yield f"{'':11}{example}"
    if not checked.findings:
        yield "  nothing wrong"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(one)}" for name, one in value.items())
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
