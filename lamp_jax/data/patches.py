"""Known defects of published files, and the patches that fix them on reading."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import find_task


@dataclass(frozen=True)
class Patch:
    """One defect of one record. `found` recognizes the record by its content; `fix` returns the corrected record."""

    name: str
    defect: str
    found: Callable[[dict[str, Any]], bool]
    fix: Callable[[dict[str, Any]], dict[str, Any]]


def _is_bare_movie(record: dict[str, Any]) -> bool:
    items = record["profile"]  # An empty profile would fit any task.
    fields = items and all({"tag", "description"} <= item.keys() for item in items)
    return str(record["id"]) == "110" and bool(fields) and find_task("LaMP-2").marker not in record["input"]


_ROWS = (
    Patch(
        name="lamp2-dev-110",
        defect="LaMP-2 (movies), user split, dev question 110: its input is the bare description; the instruction and "
        "the list of tags are put before it",
        found=_is_bare_movie,
        fix=lambda record: {**record, "input": find_task("LaMP-2").input_for(record["input"])},
    ),
)
PATCHES = {patch.name: patch for patch in _ROWS}
ALL = tuple(PATCHES)


def find_patches(names: Iterable[str]) -> tuple[Patch, ...]:
    """Patches of these names. LampError, with all names, for an unknown one."""
    unknown = [name for name in names if name not in PATCHES]
    if unknown:
        raise LampError(f"unknown patches {', '.join(unknown)}; there are {', '.join(PATCHES)}")
    return tuple(PATCHES[name] for name in names)


def apply_patches(record: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Record of a question with its known defects fixed."""
    for patch in find_patches(names):
        record = patch.fix(record) if patch.found(record) else record
    return record
