#!/usr/bin/env bash
# Topologies without a TPU, jax 0.10.2 and libtpu 0.0.42.1: which of them jax.make_mesh takes.
#
# - "v4:2x2x1" is described with two devices a chip, for which jax.make_mesh raises an AssertionError. With
#   chip_config_name="megacore", an argument that no documentation of jax names, there is one device a chip.
# - jax.make_mesh makes the mesh (8, 2) of v5e:4x4, but raises NotImplementedError for v6e:4x4, the same arrangement.
# - num_slices=-1 gives one slice and no error.
#
# Exit status 1: the behaviour changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-8 TPU_WORKER_HOSTNAMES=localhost
export TPU_STDERR_LOG_LEVEL=3 TPU_MIN_LOG_LEVEL=3
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import jax
from jax.experimental.topologies import get_topology_desc


def mesh(shape, name, **how):
    devices = get_topology_desc(name, "tpu", **how).devices
    try:
        jax.make_mesh(shape, ("data", "model"), devices=devices)
        return len(devices), "made"
    except Exception as error:
        return len(devices), type(error).__name__


print("jax", version("jax"), "libtpu", version("libtpu"))
found = {
    "v4:2x2x1 as (8, 1)": mesh((8, 1), "v4:2x2x1"),
    "v4:2x2x1 megacore as (4, 1)": mesh((4, 1), "v4:2x2x1", chip_config_name="megacore"),
    "v5e:4x4 as (8, 2)": mesh((8, 2), "v5e:4x4"),
    "v6e:4x4 as (8, 2)": mesh((8, 2), "v6e:4x4"),
    "v5e:2x4 num_slices=-1 as (8, 1)": mesh((8, 1), "v5e:2x4", num_slices=-1),
}
expected = [(8, "AssertionError"), (4, "made"), (16, "made"), (16, "NotImplementedError"), (8, "made")]
for what, (devices, outcome) in found.items():
    print(f"{what}: {devices} devices, {outcome}")
sys.exit(list(found.values()) != expected)
PYTHON
