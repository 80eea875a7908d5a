"""TPUs to compile for: published speeds of chips, and topologies as libtpu describes them."""

import math
import os
import re
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from lamp_jax.errors import LampError


@dataclass(frozen=True)
class Chip:
    """Published speeds of a chip, for dense bfloat16, or one device's share of them."""

    name: str
    flops: float
    """FLOPs per second."""
    hbm_speed: float
    """Bytes per second to and from its main memory."""
    link_speed: float
    """Bytes per second over one link to a neighbour, one way."""
    network_speed: float
    """Bytes per second to other slices over the data-centre network; 0: Google Cloud does not join slices of this
    chip."""
    axes: int
    """Axes of a topology: 2 or 3."""
    pod: int
    """Number of chips of a pod, the largest slice."""

    def share(self, devices: int) -> "Chip":
        """Speeds of one of the chip's `devices`."""
        speeds = {name: getattr(self, name) / devices for name in ("flops", "hbm_speed", "link_speed", "network_speed")}
        return replace(self, **speeds)


# FLOPs, HBM and pods: Google Cloud documentation, pages "TPU v3", "TPU v4", "TPU v5e", "TPU v5p", "TPU7x (Ironwood)"
# (docs.cloud.google.com/tpu/docs/v4 and so on; v6e is in the table of the last). Links and the data-centre network:
# "How to Think About TPUs" (jax-ml.github.io/scaling-book/tpus). TPU v2, and links of v3: Jouppi et al., "A Domain-
# Specific Supercomputer for Training Deep Neural Networks", CACM 2020 (496 and 656 Gbit/s a link).
CHIPS = {
    "v2": Chip("TPU v2", 46e12, 700e9, 62e9, 0, 2, 256),
    "v3": Chip("TPU v3", 123e12, 900e9, 82e9, 0, 2, 1024),
    "v4": Chip("TPU v4", 275e12, 1200e9, 45e9, 6.25e9, 3, 4096),
    "v5e": Chip("TPU v5e", 197e12, 819e9, 45e9, 3.125e9, 2, 256),
    "v5p": Chip("TPU v5p", 459e12, 2765e9, 90e9, 6.25e9, 3, 8960),
    "v6e": Chip("TPU v6e", 918e12, 1638e9, 90e9, 12.5e9, 2, 256),
    "tpu7x": Chip("TPU7x", 2307e12, 7380e9, 90e9, 12.5e9, 3, 9216),
}
"""Chips by libtpu's name, the first part of a topology."""

_OTHER_NAMES = {"v7x": "tpu7x", "v7": "tpu7x", "tpu7": "tpu7x", "ironwood": "tpu7x", "trillium": "v6e", "v6": "v6e"}
_OTHER_NAMES |= {"v5litepod": "v5e", "v5lite": "v5e"}


@dataclass(frozen=True)
class Topology:
    """Devices to compile for."""

    name: str
    chip: Chip
    """Speeds of a complete chip."""
    slices: int
    devices: tuple[Any, ...]
    hbm: int
    """Bytes that a program may use on one device, as the compiler reports: two decimals of a GiB."""

    @property
    def chips(self) -> int:
        """Number of chips, each of one or two devices."""
        return len({(getattr(device, "slice_index", 0), *device.coords) for device in self.devices})

    @property
    def device(self) -> Chip:
        """Speeds of one device: its share of its chip."""
        return self.chip.share(len(self.devices) // self.chips)


def find_chip(topology: str) -> tuple[str, Chip]:
    """Topology such as `v5e:4x4` by libtpu's name, and its chip. LampError for one that does not exist."""
    kind, _, shape = topology.lower().partition(":")
    kind = _OTHER_NAMES.get(kind, kind)
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise LampError(
            f"--topology {topology}: give a chip ({', '.join(CHIPS)}) and an arrangement, such as v5e:2x4 (8 chips), "
            "v5e:1x1, v5p:2x2x2, tpu7x:2x2x1"
        )
    chip, sizes = CHIPS[kind], [int(size) for size in shape.split("x")]
    if len(sizes) != chip.axes:
        example = "2x4" if chip.axes == 2 else "2x2x1"
        raise LampError(f"--topology {topology}: a {chip.name} slice has {chip.axes} axes, such as {kind}:{example}")
    if math.prod(sizes) > chip.pod:
        raise LampError(
            f"--topology {topology}: {math.prod(sizes)} chips, but a {chip.name} pod has {chip.pod}; "
            + ("give a slice, and the number of slices as --slices" if chip.network_speed else "give a smaller slice")
        )
    return f"{kind}:{shape}", chip


# No TPU is used: libtpu must not query, wait for or lock any.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def open_topology(topology: str, slices: int = 1, *, megacore: bool = False) -> Topology:
    """Topology as libtpu describes it. LampError where libtpu is missing, or does not know the topology."""
    name, chip = find_chip(topology)
    if slices < 1 or (slices > 1 and not chip.network_speed):
        reason = (
            "give 1 or more" if slices < 1 else f"Google Cloud does not connect slices of {chip.name}; leave it out"
        )
        raise LampError(f"--slices {slices}: {reason}")
    if megacore and chip is not CHIPS["v4"]:
        raise LampError(f"--megacore: only a TPU v4 can have one or two devices per chip; leave it out for {name}")
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise LampError("lamp compile needs libtpu, the TPU's compiler: pip install -e '.[tpu]'") from None
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental.topologies import get_topology_desc

    how: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if set(name.partition(":")[2].split("x")) == {"1"}:
        how["chips_per_host_bounds"] = (1, 1, 1)  # one chip; otherwise libtpu assumes hosts of 2 x 2
    if megacore:
        how["chip_config_name"] = "megacore"
    try:
        devices = tuple(get_topology_desc(name, "tpu", **how).devices)
    except jax.errors.JaxRuntimeError as error:
        words = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise LampError(f"--topology {topology}: {words}; a slice is one chip, or hosts of 2 x 2 chips") from None
    return Topology(name, chip, slices, devices, _usable_hbm(devices[0]))


_LIMIT = r"(?:available HBM \(| of )([\d.]+[KMGT])"


def _usable_hbm(device: Any) -> int:
    """Bytes that a program may use on a device, from the compiler's error for a program of 2 TiB."""
    large = jax.ShapeDtypeStruct((2**28, 2**10), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1).lower(large).compile()
        words = "it compiled a program of 2 TiB"
    except jax.errors.JaxRuntimeError as error:
        words = str(error)
    limit = re.search(_LIMIT, words)
    if limit is None:
        raise LampError(
            f"libtpu does not say how much memory a {device.device_kind} has: {words.splitlines()[0]}; "
            "install the versions of constraints.txt"
        )
    return read_size(limit[1])


def read_size(text: str) -> int:
    """Number of bytes of a size in the compiler's notation, such as `15.75G`."""
    return int(float(text[:-1]) * 2 ** (10 * (1 + "KMGT".index(text[-1]))))
