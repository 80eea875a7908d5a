"""Sharding of arrays over a mesh `("data", "model")`, by a table from axis name to mesh axis."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lamp_jax.compiled_programs import use_compilation_cache
from lamp_jax.config import Devices
from lamp_jax.errors import LampError
from lamp_jax.runs.workers import available_cores

MeshAxis = Literal["data", "model"]
MESH_AXES = ("data", "model")

# Axes that occur together in an array (a weight or an activation): no two may be sharded over the same mesh axis.
_TOGETHER = (("embed", "heads"), ("embed", "mlp"), ("embed", "vocab"), ("batch", "heads"), ("batch", "mlp"))
_TOGETHER += (("batch", "vocab"),)


@dataclass(frozen=True)
class Rules:
    """Mesh axis over which each named axis is sharded; `None` means replicated.

    `embed` is the hidden axis of weights only: a weight sharded over it is gathered just before its use (FSDP).
    """

    batch: MeshAxis | None = "data"
    embed: MeshAxis | None = None
    heads: MeshAxis | None = None
    mlp: MeshAxis | None = None
    vocab: MeshAxis | None = None

    def __post_init__(self) -> None:
        for name, axis in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if axis is not None and axis not in MESH_AXES:
                raise LampError(
                    f"sharding rule {name}={axis!r}: the mesh axes are {MESH_AXES}; use one of them or None"
                )
        for one, other in _TOGETHER:
            axis = getattr(self, one)
            if axis is not None and axis == getattr(self, other):
                raise LampError(
                    f"sharding rules {one}={axis!r} and {other}={axis!r} split two axes of one array "
                    f"over the same mesh axis; set one of them to None or to the other mesh axis"
                )

    def spec(self, *axes: str | None) -> P:
        """Partition spec of an array with these named axes, e.g. `spec("batch", None, "heads", None)`."""
        return P(*(None if axis is None else getattr(self, axis) for axis in axes))

    @property
    def replicates_weights(self) -> bool:
        """Whether every device has all weights."""
        return not any((self.embed, self.heads, self.mlp, self.vocab))

    def gathered(self, spec: P) -> P:
        """Partition spec of a weight during its use: gathered along the axis over which `embed` is sharded."""
        return P(*(None if axis == self.embed else axis for axis in spec))

    def out(self, *axes: str | None) -> P | None:
        """`spec`, for `out_sharding=`; None where no mesh is set."""
        return self.spec(*axes) if mesh_is_set() else None


DATA_PARALLEL = Rules()
FSDP = Rules(embed="data")
TENSOR_PARALLEL = Rules(heads="model", mlp="model", vocab="model")
FSDP_AND_TENSOR_PARALLEL = Rules(embed="data", heads="model", mlp="model", vocab="model")
RULES = {"data": DATA_PARALLEL, "fsdp": FSDP, "tensor": TENSOR_PARALLEL, "fsdp+tensor": FSDP_AND_TENSOR_PARALLEL}
"""Rules by the names that options use."""


def on_cpu() -> bool:
    """Whether the current mesh is one of CPUs; without one, whether jax computes on them. Starts jax."""
    if mesh_is_set():
        return jax.sharding.get_mesh().devices.flat[0].platform == "cpu"
    return jax.default_backend() == "cpu"


def model_options(devices: Devices) -> dict[str, Any]:
    """Keyword arguments of models and their loaders for type, remat, attention order and sharding.

    Attention is computed for a few rows at a time on CPUs, whose caches hold no more, and in a kernel on TPUs whose
    fast memory holds the scores of a head (v5e and later); the result is the same.
    """
    order = "rows" if on_cpu() else "kernel" if _device_kind().startswith(_KERNEL_KINDS) else "whole"
    rules = RULES[devices.sharding]
    return {"dtype": devices.dtype, "remat": devices.remat, "attention": order, "rules": rules}


_KERNEL_KINDS = ("TPU v5", "TPU v6", "TPU7x")


def _device_kind() -> str:
    """Kind of the current mesh's devices; without a mesh, of those on which jax computes."""
    return (jax.sharding.get_mesh().devices.flat if mesh_is_set() else jax.devices())[0].device_kind


def open_mesh(devices: Devices) -> Mesh:
    """Mesh of the options, for `jax.set_mesh`; sets up their compilation cache.

    `cpu_devices` is the number of virtual CPU devices, which must be set before jax starts: one device per core runs an
    encoder 1.3 to 1.5 times as fast as one device for all cores, which wait for each other. Where jax has started, 0
    takes the existing devices; any other number that differs from theirs is a LampError.
    """
    use_compilation_cache(devices.compilation_cache)
    if devices.cpu_devices != 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        wanted = devices.cpu_devices or available_cores()
        try:
            jax.config.update("jax_num_cpu_devices", wanted)
        except RuntimeError:
            if devices.cpu_devices and on_cpu() and jax.device_count() != wanted:
                raise LampError(
                    f"--cpu-devices {wanted}: jax has started with {jax.device_count()}; set it before, or leave it out"
                ) from None
    return make_mesh(devices.data_parallel, devices.model_parallel)


def make_mesh(data: int = -1, model: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh of `data` x `model` devices; `data=-1`: number of devices / `model`. Slices are placed along `data`.

    Use it as `with jax.set_mesh(make_mesh(...)):`. LampError if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if model < 1 or count % model:
        raise LampError(
            f"mesh: {count} devices do not divide over model={model}; use a model size that divides {count}"
        )
    if data == -1:
        data = count // model
    if data * model != count:
        raise LampError(
            f"mesh: data={data} times model={model} is {data * model}, but there are {count} devices; "
            f"use data={count // model} (or -1: all that are left)"
        )
    return Mesh(_arrange(devices, data, model), MESH_AXES, axis_types=(AxisType.Explicit,) * 2)


def _arrange(devices: Sequence[Any], data: int, model: int) -> np.ndarray:
    """Devices [data, model], with neighbours adjacent; slice after slice along `data`.

    Slices are joined by the data-centre network only: the model axis, along which activations are exchanged, must be
    within a slice.
    """
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    sizes = sorted({len(of_slice) for of_slice in slices.values()})
    if len(sizes) > 1:
        raise LampError(f"mesh: slices of {sizes} devices; all slices of a run must have the same size")
    if sizes[0] % model:
        raise LampError(
            f"mesh: model={model} does not divide the {sizes[0]} devices of a slice, and {len(slices)} slices are "
            f"joined by data parallelism only; use a model size that divides {sizes[0]}"
        )
    return np.concatenate([_arrange_slice(slices[key], data // len(slices), model) for key in sorted(slices)])


def _arrange_slice(devices: Sequence[Any], data: int, model: int) -> np.ndarray:
    """Devices of one slice [data, model]; physical axes of a TPU are split only where necessary."""
    cores = 1 + max(getattr(device, "core_on_chip", 0) or 0 for device in devices)
    if devices[0].device_kind != "TPU v4" or cores == 1:
        return create_device_mesh((data, model), devices, allow_split_physical_axes=True)
    # jax arranges v4 only by chips: with one device per core, the cores of a chip are made neighbours.
    of_chip = {(*device.coords, device.core_on_chip): device for device in devices}
    first = [device for device in devices if device.core_on_chip == 0]
    shape = (data, model // cores) if model % cores == 0 else (data // cores, model)
    chips = create_device_mesh(shape, first, allow_split_physical_axes=True)
    by_core = [np.vectorize(lambda chip, core=core: of_chip[(*chip.coords, core)])(chips) for core in range(cores)]
    return np.stack(by_core, axis=2 if model % cores == 0 else 1).reshape(data, model)


@contextmanager
def set_or_default_mesh() -> Iterator[Mesh]:
    """Context with the current mesh (`jax.set_mesh`); if none is set, it sets a mesh of all devices along `data`.

    LampError for a mesh with other axes or axis types than those of `make_mesh`.
    """
    if not mesh_is_set():
        with jax.set_mesh(make_mesh()):
            yield jax.sharding.get_mesh()
        return
    mesh = jax.sharding.get_mesh()
    if mesh.axis_names != MESH_AXES or set(mesh.axis_types) != {AxisType.Explicit}:
        raise LampError(
            f"mesh: the one that is set has the axes {mesh.axis_names} of types {mesh.axis_types}; set one of "
            f"lamp_jax.sharding.make_mesh, or jax.make_mesh((data, model), {MESH_AXES}), or none"
        )
    yield mesh


def use_mesh(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Context that sets the mesh on which a model was created; None: it was created without a mesh."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def mesh_is_set() -> bool:
    """Whether the code runs under `jax.set_mesh`."""
    return not jax.sharding.get_abstract_mesh().empty


def sharding_of(x: jax.Array) -> P | None:
    """Partition spec of an array on the current mesh, for `out_sharding=`; None without a mesh."""
    return jax.typeof(x).sharding.spec if mesh_is_set() else None


def shards(axis: MeshAxis | None) -> int:
    """Number of shards along a mesh axis of the current mesh; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape[axis] if axis is not None and mesh_is_set() else 1


def check_divides(what: str, size: int, axis: MeshAxis | None) -> None:
    """LampError with both numbers and the next sizes that fit, unless `size` divides over the mesh axis."""
    count = shards(axis)
    if size % count:
        fitting = [size // count * count, (size // count + 1) * count]
        choice = " or ".join(str(fit) for fit in fitting if fit)
        raise LampError(f"{what} {size} does not divide over {count} {axis} shards; use {choice}, or another mesh")


def gathered(weight: jax.Array, spec: P) -> jax.Array:
    """Weight resharded to `spec` for its use; its gradient is scattered back by the transpose."""
    return jax.sharding.reshard(weight, spec) if mesh_is_set() else weight


def sharded_by_rows(rows: jax.Array, like: jax.Array) -> jax.Array:
    """Slice [B, ...] of an array [B, ...], sharded over its rows as the array is.

    In jax 0.12 a slice of a single element, such as the first token of a batch of one row, is typed as replicated,
    whatever the array's type: the types of a loop's state or of a concatenation then differ.
    """
    return gathered(rows, P(jax.typeof(like).sharding.spec[0]))


def put(values: np.ndarray, spec: P) -> jax.Array:
    """Array on the devices, sharded as `spec`; every process passes all values."""
    if not mesh_is_set():
        return jax.numpy.asarray(values)
    sharding = NamedSharding(jax.sharding.get_mesh(), spec)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def own_rows(size: int, *, rules: Rules = DATA_PARALLEL, process: int | None = None) -> np.ndarray:
    """Sorted rows of a batch of `size` that are on the devices of this process, or of another one.

    Every row belongs to a process; where the model axis spans processes, several processes have the same rows.
    """
    if not mesh_is_set():
        return np.arange(size)
    check_divides("batch", size, rules.batch)
    sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
    process = jax.process_index() if process is None else process
    places = sharding.devices_indices_map((size,))
    rows = [np.arange(size)[place] for device, place in places.items() if device.process_index == process]
    return np.unique(np.concatenate(rows))


def place_batch(batch: Any, *, rules: Rules = DATA_PARALLEL) -> Any:
    """Puts a tree of numpy arrays [B, ...] on the devices, sharded over the batch.

    Each of several processes passes its `own_rows` only, and the result is the global batch. LampError if the batch
    does not divide over the mesh.
    """
    if not mesh_is_set():
        return jax.tree.map(jax.numpy.asarray, batch)
    sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
    count = shards(rules.batch)
    held = len(own_rows(count, rules=rules))  # number of row shards on this process

    def place(rows: np.ndarray) -> jax.Array:
        size = len(rows) * count // held
        check_divides("batch", size, rules.batch)
        return jax.make_array_from_process_local_data(sharding, np.asarray(rows), (size, *rows.shape[1:]))

    return jax.tree.map(place, batch)
