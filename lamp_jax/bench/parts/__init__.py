"""Parts of the benchmark, one module for each."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lamp_jax.bench.cases import Case, Size
from lamp_jax.bench.workers import Workers

PARTS: dict[str, tuple[Size, ...]] = {
    "bm25": ("smoke", "full"),
    "generate": ("smoke", "full", "gpu"),
    "feedback": ("smoke", "full"),
    "train": ("smoke", "full", "gpu"),
    "encode": ("smoke", "full"),
    "adapters": ("smoke", "full", "gpu"),
    "start": ("smoke", "full"),
    "memory": ("smoke", "full"),
}
"""Sizes of each part."""


def cases_of(part: str) -> Callable[[Size, Path, Workers], Iterator[Case]]:
    """Function of a part that makes its cases."""
    return importlib.import_module(f"{__name__}.{part}").cases
