"""The TPUs that a program can be compiled for: what a chip holds and how fast it is, and a topology of them."""

import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from lamp_jax.errors import LampError


@dataclass(frozen=True)
class Chip:
    """A chip's published figures, for dense bfloat16."""

    name: str
    hbm: int
    """Bytes of main memory."""
    flops: float
    """FLOPs a second."""
    hbm_speed: float
    """Bytes a second to and from its memory."""
    link_speed: float
    """Bytes a second over one link to a neighbour, one way."""

    @property
    def usable(self) -> int:
        """Bytes that a program may have; the rest is the runtime's (a quarter of a GiB, says the compiler)."""
        return self.hbm - 2**28


_GIB = 2**30
CHIPS = {
    "v4": Chip("TPU v4", 32 * _GIB, 275e12, 1.2e12, 45e9),
    "v5e": Chip("TPU v5e", 16 * _GIB, 197e12, 8.1e11, 45e9),
    "v5p": Chip("TPU v5p", 95 * _GIB, 459e12, 2.76e12, 90e9),
    "v6e": Chip("TPU v6e", 32 * _GIB, 918e12, 1.64e12, 90e9),
}
"""By the first part of a topology's name. From cloud.google.com/tpu/docs, links from jax-ml.github.io/scaling-book."""


def find_chip(topology: str) -> Chip:
    """The chip of a topology such as `v5e:4x4`. LampError for one that is not known."""
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        raise LampError(
            f"--topology {topology}: give a chip ({', '.join(CHIPS)}) and an arrangement, such as v5e:2x4 (8 chips), "
            "v5e:4x4, v5p:2x2x2"
        )
    return CHIPS[kind]


# No TPU is used: none has to be asked for, found out about or locked.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def open_topology(topology: str) -> list[Any]:
    """The chips of a topology as devices to compile for. LampError where libtpu is missing, or knows no such thing."""
    find_chip(topology)
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise LampError("lamp compile needs libtpu, the TPU's compiler: pip install -e '.[tpu]'") from None
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from jax.experimental.topologies import get_topology_desc

    try:
        return list(get_topology_desc(topology, "tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise LampError(f"--topology {topology}: {str(error).splitlines()[0]}") from None
