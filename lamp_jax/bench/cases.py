"""Cases of a benchmark: one piece of work, done by lamp and by its peers, and the comparison of their results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from lamp_jax.options.bench import BenchSize as Size

__all__ = [
    "Agreement",
    "Case",
    "Dtype",
    "Partial",
    "Run",
    "Side",
    "Size",
    "Unit",
    "close_numbers",
    "close_values",
    "same_rows",
]

Unit = Literal["s", "CPU s", "MB"]
Dtype = Literal["float32", "bfloat16"]
Run = Callable[[], Any]
"""Function that does the work once and returns its result, which can be pickled."""


@dataclass(frozen=True)
class Side:
    """One of the two sides of a comparison, computed in a process of its own."""

    library: str
    """Name in `libraries.LIBRARIES`."""
    prepare: Callable[[], Run]
    """Picklable function that loads everything in the side's process, and returns the work to be timed."""
    label: str = ""
    """Name in the table; empty: that of the library."""
    slow: bool = False
    """Whether the only run is the first, which is timed too: for a side that takes much longer than the others."""
    exact: bool = True
    """Whether its results must agree with lamp's; they are compared in any case."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of its process, in addition to those of all."""

    @property
    def name(self) -> str:
        return self.label or self.library


class Partial(NamedTuple):
    """Result of a side that does a share of the case's work; its times are divided by the share."""

    share: float
    result: Any


class Agreement(NamedTuple):
    """Comparison of a peer's result with lamp's."""

    text: str
    holds: bool
    """Whether the results are as close as the case demands; a benchmark of different results is none."""


@dataclass(frozen=True)
class Case:
    """One piece of work with its sides."""

    name: str
    ours: Side
    peers: Sequence[Side] = ()
    agree: Callable[[Any, Any], Agreement] | None = None
    """Function (lamp's result, the peer's) -> their agreement."""
    unit: Unit = "s"
    """`s`: wall-clock seconds; `CPU s`: processor seconds of all threads and child processes; `MB`: the number that the
    work returns."""
    flops: float = 0.0
    """FLOPs of the matrix products that the work needs, padding excluded."""
    dtype: Dtype = "float32"
    """Type of the products, whose limit the FLOPs are compared with."""
    complete: bool = False
    """Whether the work is a complete job, so that compiling counts too: the table then has that ratio as well."""
    rounds: int = 3


def same_rows(ours: Sequence[Any], theirs: Sequence[Any], *, least: float = 1.0) -> Agreement:
    """Share of equal rows, such as answers as token ids. Holds if it is at least `least`."""
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    return Agreement(f"{same} of {len(ours)} equal", same >= least * len(ours))


def close_numbers(ours: Any, theirs: Any, *, relative: float) -> Agreement:
    """Largest difference of two arrays relative to the largest value. Holds if it is at most `relative`."""
    one, other = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    found = float(np.max(np.abs(one - other)) / np.max(np.abs(other)))
    return Agreement(f"within {found:.0e}", one.shape == other.shape and found <= relative)


def close_values(ours: Mapping[str, float], theirs: Mapping[str, float], *, relative: float) -> Agreement:
    """Largest relative difference of the numbers of the same names. Holds if it is at most `relative`."""
    if ours.keys() != theirs.keys():
        return Agreement(f"different names: {', '.join(sorted(ours.keys() ^ theirs.keys()))}", False)
    one, other = (np.array([values[name] for name in ours]) for values in (ours, theirs))
    found = float(np.max(np.abs(one - other) / np.maximum(np.abs(other), 1e-12)))
    return Agreement(f"within {found:.0e}", found <= relative)
