"""Report of a benchmark: a table with the ratio first, and the same as JSON."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from lamp_jax.bench.runner import Row

_WIDTHS = {"ratio": 6, "compiling": 9, "part": 8, "work": 56, "lamp": 12, "peer": 36, "results": 16, "GFLOP/s": 7}
_WIDTHS |= {"of limit": 8}


def head() -> str:
    return _line(dict(zip(_WIDTHS, _WIDTHS, strict=True)))


def line(row: Row) -> str:
    """Line of the table."""
    peer = f"{row.peer} {_amount(row.theirs, row.unit)}" if row.theirs is not None else row.peer
    cells = {
        "ratio": "" if row.ratio is None else f"{row.ratio:.2f}",
        "compiling": "" if row.with_compiling is None else f"{row.with_compiling:.2f}",
        "part": row.part,
        "work": row.case,
        "lamp": _amount(row.lamp, row.unit),
        "peer": f"{row.peer}: {row.problem}" if row.problem else peer,
        "results": row.agreement + ("" if row.holds is not False else " !"),
        "GFLOP/s": "" if row.gflops is None else f"{row.gflops:,.0f}",
        "of limit": "" if row.limit is None else f"{row.limit:.0%}",
    }
    return _line(cells)


def as_json(rows: Iterable[Row], **facts: Any) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    return {**facts, "rows": [asdict(row) for row in rows]}


def describe_limits(limits: dict[str, dict[str, float]]) -> str:
    """Line about the machine's limits."""
    names = {"lamp": "jax", "transformers": "torch"}
    products = [
        f"{names[library]} {name} {values[name]:,.0f}"
        for library, values in limits.items()
        if library in names
        for name in values
        if name != "copy"
    ]
    copy = max(values.get("copy", 0) for values in limits.values())
    return f"peak matmul GFLOP/s: {', '.join(products)}; memory copy {copy:.1f} GB/s"


def _amount(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:,.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def _line(cells: dict[str, str]) -> str:
    return "  ".join(f"{cells[name]:{width}}" for name, width in _WIDTHS.items()).rstrip()
