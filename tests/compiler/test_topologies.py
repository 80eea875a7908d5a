"""TPU topologies of libtpu: devices, chips, memory; meshes of them; and programs of several slices."""

from dataclasses import replace
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lamp_jax.compiler import report
from lamp_jax.compiler.chips import CHIPS, open_topology, read_size
from lamp_jax.compiler.costs import Collective
from lamp_jax.errors import LampError
from lamp_jax.sharding import make_mesh

pytestmark = pytest.mark.tpu_compile

DESCRIBED = [
    # topology, slices, devices, chips
    ("v2:2x2", 1, 8, 4),
    ("v3:2x2", 1, 8, 4),
    ("v4:2x2x1", 1, 8, 4),
    ("v4:2x2x1", 2, 16, 8),
    ("v5e:1x1", 1, 1, 1),
    ("v5e:2x4", 1, 8, 8),
    ("v5e:2x4", 2, 16, 16),
    ("v5p:2x2x1", 1, 4, 4),
    ("v6e:1x1", 1, 1, 1),
    ("v6e:2x4", 1, 8, 8),
    ("v6e:4x4", 1, 16, 16),
    ("tpu7x:1x1x1", 1, 2, 1),
    ("tpu7x:2x2x1", 1, 8, 4),
]
MEMORY = {
    "0.0.42.1": {"v2": 7.48, "v3": 15.48, "v4": 15.25, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25, "tpu7x": 94.75},
    "0.0.50.1": {"v2": 7.48, "v3": 15.48, "v4": 15.25, "v5e": 15.75, "v5p": 95.73, "v6e": 31.24, "tpu7x": 94.74},
}
"""By libtpu's version: GiB that a program may use on a device."""


@pytest.mark.parametrize(("name", "slices", "devices", "chips"), DESCRIBED)
def test_a_topology_equals_the_description_of_libtpu(name, slices, devices, chips):
    topology = open_topology(name, slices)
    assert (topology.name, topology.slices, len(topology.devices), topology.chips) == (name, slices, devices, chips)
    kind = name.partition(":")[0]
    chip = CHIPS[kind]
    assert topology.device.flops * devices == pytest.approx(chip.flops * chips)
    assert topology.device.hbm_speed * devices == pytest.approx(chip.hbm_speed * chips)
    assert topology.device.link_speed * devices == pytest.approx(chip.link_speed * chips)
    assert topology.device.network_speed * devices == pytest.approx(chip.network_speed * chips)
    if version("libtpu") not in MEMORY:
        pytest.skip(f"the memory of devices is recorded for libtpu {', '.join(MEMORY)}, not {version('libtpu')}")
    assert topology.hbm == int(MEMORY[version("libtpu")][kind] * 2**30)


def test_a_v4_topology_can_have_one_device_per_chip():
    topology = open_topology("v4:2x2x1", megacore=True)
    assert (len(topology.devices), topology.chips) == (4, 4)
    assert topology.device == CHIPS["v4"]
    assert topology.hbm > 1.9 * open_topology("v4:2x2x1").hbm
    with pytest.raises(LampError, match="only a TPU v4"):
        open_topology("v3:2x2", megacore=True)


@pytest.mark.parametrize(("name", "slices", "devices", "chips"), DESCRIBED)
def test_a_mesh_of_every_size_is_made(name, slices, devices, chips):
    """Regression test: v4 raised AssertionError, v6e:4x4 with model=2 NotImplementedError."""
    topology = open_topology(name, slices)
    within = devices // slices
    for model in (size for size in range(1, within + 1) if within % size == 0):
        placed = make_mesh(-1, model, devices=topology.devices).devices
        assert placed.shape == (devices // model, model)
        assert sorted(device.id for device in placed.flat) == sorted(device.id for device in topology.devices)
        for block in np.split(placed, slices):
            assert len({getattr(device, "slice_index", 0) for device in block.flat}) == 1


@pytest.mark.parametrize("model", [1, 2, 4, 8, 16])
def test_the_cores_of_a_v4_chip_are_adjacent_in_the_mesh(model):
    placed = make_mesh(-1, model, devices=open_topology("v4:2x2x2").devices).devices
    pairs = placed.reshape(-1, 2) if model % 2 == 0 else placed.reshape(8, 2)
    assert all(one.coords == other.coords for one, other in pairs)


@pytest.mark.parametrize("name", ["v5e:2x4", "v6e:2x4", "tpu7x:2x2x1"])
def test_a_mesh_of_slices_equals_the_hybrid_mesh_of_jax(name):
    devices = open_topology(name, 2).devices
    assert (make_mesh(-1, 2, devices=devices).devices == create_hybrid_device_mesh((4, 2), (2, 1), devices)).all()


def test_a_model_axis_larger_than_a_slice_is_an_error():
    devices = open_topology("v5e:2x4", 2).devices
    with pytest.raises(LampError, match="model=16 does not divide the 8 devices of a slice"):
        make_mesh(-1, 16, devices=devices)
    with pytest.raises(LampError, match=r"slices of \[4, 8\] devices"):
        make_mesh(-1, 1, devices=devices[:12])


def test_a_gradient_is_summed_separately_within_and_over_slices():
    """Each of a slice's four data shards sums a quarter of the gradient over the two slices."""
    topology = open_topology("v5e:2x4", 2)
    mesh = make_mesh(8, 2, devices=topology.devices)

    def loss(weights, x):
        return jnp.sum(jnp.einsum("bd,de->be", x, weights, out_sharding=P("data", "model")) ** 2)

    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=NamedSharding(mesh, P("data")))
        weights = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=NamedSharding(mesh, P(None, "model")))
        step = jax.jit(jax.grad(loss))
        found, again = (report.measure("train", topology, mesh, lambda: step.lower(weights, x), None) for _ in range(2))
    assert (
        replace(again, compile_seconds=found.compile_seconds) == found
    )  # the second is in jax's cache, which is unreadable
    (kind, summed), *others = found.between_slices.items()
    assert (kind, others) == ("all-reduce", [])
    quarter = 1024 * (1024 // 2) * 4 // 4
    assert summed == Collective(1, quarter, quarter)
    assert found.collectives
    assert found.roofline is not None
    assert found.roofline.network == pytest.approx(quarter / CHIPS["v5e"].network_speed)
    assert found.roofline.bound == "network"
    assert "2 slices of v5e:2x4: 16 devices on 16 chips, mesh data 8 x model 2" in report.describe(found)
    assert "between slices" in report.describe(found)


@pytest.mark.parametrize("topology", ["v5e", "v9:2x2", "v5e:8", "4x4", "v5litepod-8", "tpu7x-8", "v5e:0x4", "v5e:2x-4"])
def test_the_error_about_an_unknown_topology_shows_examples(topology):
    with pytest.raises(LampError, match="such as v5e:2x4"):
        open_topology(topology)


@pytest.mark.parametrize("name", ["v7x", "v7", "tpu7", "Ironwood", "TPU7x"])
def test_other_names_of_tpu7x_are_understood(name):
    topology = open_topology(f"{name}:2x2x1")
    assert (topology.name, topology.devices[0].device_kind) == ("tpu7x:2x2x1", "TPU7x")


@pytest.mark.parametrize("name", ["v5e:3x5", "v5e:3x3", "v5e:11x11", "v5e:1x2", "v5p:1x1x2"])
def test_a_topology_that_the_compiler_does_not_know_is_an_error(name):
    with pytest.raises(LampError, match=rf"--topology {name}: .*not divisible.*one chip, or hosts of 2 x 2 chips"):
        open_topology(name)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5e:2x4x1", "a TPU v5e slice has 2 axes, such as v5e:2x4"),
        ("v5p:2x2", "a TPU v5p slice has 3 axes, such as v5p:2x2x1"),
        ("v5e:32x16", "512 chips, but a TPU v5e pod has 256; give a slice, and the number of slices as --slices"),
        ("v3:64x64", "4096 chips, but a TPU v3 pod has 1024; give a smaller slice"),
    ],
)
def test_an_arrangement_that_a_chip_does_not_have_is_an_error(topology, message):
    """libtpu itself describes all of these arrangements."""
    with pytest.raises(LampError, match=message):
        open_topology(topology)


@pytest.mark.parametrize(
    ("slices", "name", "message"),
    [
        (0, "v5e:2x4", "--slices 0: give 1 or more"),
        (-1, "v5e:2x4", "--slices -1: give 1 or more"),
        (2, "v3:2x2", "--slices 2: Google Cloud does not connect slices of TPU v3"),
    ],
)
def test_an_invalid_number_of_slices_is_an_error(slices, name, message):
    with pytest.raises(LampError, match=message):
        open_topology(name, slices)


def test_a_compiler_without_a_memory_limit_is_an_error(monkeypatch):
    monkeypatch.setattr("lamp_jax.compiler.chips._LIMIT", "no such words")
    with pytest.raises(LampError, match="libtpu does not say how much memory a TPU v5 lite has"):
        open_topology("v5e:2x4")


@pytest.mark.parametrize(
    ("text", "size"), [("512.0K", 2**19), ("15.75G", 63 * 2**28), ("2.00T", 2**41), ("1.5M", 3 * 2**19)]
)
def test_sizes_are_read_as_the_compiler_writes_them(text, size):
    assert read_size(text) == size
