#!/usr/bin/env bash
# jax's compilation cache and programs for a TPU that is described, not attached: jax 0.10.2, libtpu 0.0.42.1.
#
# - Such a program is written to the cache, but no later process can read it: each warns ("PjRtCompiler must be
#   constructed with a Client") and compiles again, for one slice and for two.
# - jax_enable_compilation_cache is read once, at the first compilation: set to False after it, programs are still
#   written and looked up.
#
# Exit status 1: the behaviour changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-8 TPU_WORKER_HOSTNAMES=localhost
export TPU_STDERR_LOG_LEVEL=3 TPU_MIN_LOG_LEVEL=3
cat >"$folder/compile.py" <<'PYTHON'
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.topologies import get_topology_desc
from jax.sharding import Mesh, NamedSharding, PartitionSpec

cache, expected = Path(sys.argv[1]), sys.argv[2:]
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


programs = []


def compile_for(**slices):
    """What compiling warns of, and how many programs it adds to the cache."""
    programs.append(slices)
    before = len(list(cache.glob("*-cache")))
    mesh = Mesh(np.array(get_topology_desc("v5e:2x4", "tpu", **slices).devices), ("data",))
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.jit(lambda x: x + len(programs)).lower(x).compile()
    unread = any("constructed with a Client" in str(one.message) for one in caught)
    return f"{'unread' if unread else 'quiet'},{len(list(cache.glob('*-cache'))) - before}"


print("jax", version("jax"), "libtpu", version("libtpu"))
found = [compile_for(), compile_for(num_slices=2)]
jax.config.update("jax_enable_compilation_cache", False)
found.append(compile_for(num_slices=2))
print("one slice, two, two with the cache switched off:", *found)
sys.exit(found != expected)
PYTHON
"$folder/venv/bin/python" "$folder/compile.py" "$folder/cache" quiet,1 quiet,1 quiet,1
"$folder/venv/bin/python" "$folder/compile.py" "$folder/cache" unread,0 unread,0 unread,0
