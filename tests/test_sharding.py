import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lamp_jax.errors import LampError
from lamp_jax.sharding import DATA_PARALLEL, FSDP_AND_TENSOR_PARALLEL, Rules, check_divides, make_mesh, place_batch


@pytest.mark.parametrize(("data", "model", "shape"), [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (4, 2, (4, 2))])
def test_mesh_covers_all_devices(data, model, shape):
    mesh = make_mesh(data, model)
    assert mesh.axis_names == ("data", "model")
    assert mesh.devices.shape == shape


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (3, 2, r"data=3 times model=2 is 6, but there are 8 devices; use data=4"),
        (-1, 3, "8 devices do not divide over model=3"),
        (-1, 0, "8 devices do not divide over model=0"),
    ],
)
def test_mesh_of_another_number_of_devices_is_an_error(data, model, message):
    with pytest.raises(LampError, match=message):
        make_mesh(data, model)


CORES = """
import jax
from lamp_jax.config import Devices
from lamp_jax.errors import LampError
from lamp_jax.sharding import open_mesh
print(open_mesh(Devices(cpu_devices=3)).devices.shape)
print(open_mesh(Devices(cpu_devices=0)).devices.shape)
try:
    open_mesh(Devices(cpu_devices=5))
except LampError as error:
    print(error)
"""


def test_the_number_of_virtual_cpu_devices_is_set_before_jax_starts():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    found = subprocess.run([sys.executable, "-c", CORES], env=environment, capture_output=True, text=True, check=True)
    first, second, error = found.stdout.splitlines()
    assert first == second == "(3, 1)"
    assert "--cpu-devices 5: jax has started with 3" in error


def test_rules_give_the_partition_of_named_axes():
    assert FSDP_AND_TENSOR_PARALLEL.spec("embed", "heads", None) == P("data", "model", None)
    assert DATA_PARALLEL.spec("batch", None, "heads") == P("data", None, None)


@pytest.mark.parametrize(
    "axes", [{"embed": "model", "heads": "model"}, {"mlp": "data"}, {"batch": "model", "vocab": "model"}], ids=str
)
def test_rules_that_split_one_array_twice_over_one_mesh_axis_are_an_error(axes):
    with pytest.raises(LampError, match="split two axes of one array"):
        Rules(**axes)


def test_rules_accept_only_mesh_axes():
    with pytest.raises(LampError, match=r"'expert'.*use one of them or None"):
        Rules(mlp="expert")  # pyright: ignore[reportArgumentType]


def test_without_a_mesh_nothing_is_sharded():
    assert DATA_PARALLEL.out("batch", None) is None
    check_divides("batch", 7, "data")
    assert place_batch({"tokens": np.arange(6).reshape(3, 2)})["tokens"].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_batch_is_sharded_over_the_data_axis():
    rows = np.arange(32).reshape(16, 2)
    with jax.set_mesh(make_mesh(4, 2)):
        placed = place_batch({"tokens": rows})["tokens"]
    assert placed.sharding.spec == P("data")
    assert placed.addressable_shards[0].data.shape == (4, 2)
    np.testing.assert_array_equal(placed, rows)


def test_a_batch_that_does_not_divide_is_an_error_with_the_remedy():
    with (
        jax.set_mesh(make_mesh(8)),
        pytest.raises(LampError, match="batch 60 does not divide over 8 data shards; use 56 or 64"),
    ):
        place_batch(np.zeros((60, 3)))
