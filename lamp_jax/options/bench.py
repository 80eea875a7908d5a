"""Options of `lamp bench`."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

BenchSize = Literal["smoke", "full", "gpu"]
BenchPart = Literal["bm25", "generate", "feedback", "train", "encode", "adapters", "start", "memory"]


@dataclass(frozen=True)
class Bench:
    """Measure the speed of lamp beside its strongest peers, on the same work, and compare the results."""

    parts: Positional[tuple[BenchPart, ...]] = ()
    """Parts to measure; default: all that the size has."""
    against: tuple[str, ...] = ()
    """Peers, such as ctranslate2; default: all that are installed (`pip install lamp_jax[bench]`)."""
    size: BenchSize = "full"
    """`full` takes up to half an hour on two cores; `smoke` seconds: a test that the results are equal, whose times
    mean nothing; `gpu` up to eight minutes on a GPU."""
    json: bool = False
    """Print one JSON object and nothing else."""
