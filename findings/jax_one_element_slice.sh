#!/usr/bin/env bash
# jax 0.12.0: on a mesh with explicit axes, a slice that has a single element is not sharded any more.
#
# Guess: x[:, :1] of an array [1, 4] that is split over the mesh axis "data" (of size 1) is split over "data", as
# x[:, :2] is, and as it is in jax 0.10.2. Seen: int32[1,1] for x[:, :1], int32[1@data,2] for x[:, :2]. The same holds for
# an index (x[:, 0]), for lax.slice, for jnp.split and for lax.dynamic_slice; sums keep the axis. So a program
# that works for batches of any size fails for a batch of one row on one device: where the slice is concatenated with
# its source, is carried by a loop or is mapped together with other arrays, shardings must be equal.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
python="$place/venv/bin/python"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
  echo "jax 0.12 needs Python 3.12; set PYTHON" >&2
  exit 2
fi
"$place/venv/bin/pip" install --quiet jax==0.12.0.1
JAX_PLATFORMS=cpu "$python" - << 'EOF'
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P

print("jax", jax.__version__)
mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
with jax.set_mesh(mesh):
    x = jax.device_put(jnp.arange(4).reshape(1, 4), P("data", None))
    found = {
        "x[:, :1]": x[:, :1],
        "x[:, 0]": x[:, 0],
        "lax.slice": lax.slice(x, (0, 0), (1, 1)),
        "lax.dynamic_slice": lax.dynamic_slice_in_dim(x, 0, 1, axis=1),
        "x[:, :2]": x[:, :2],
        "sum": jnp.sum(x, axis=1, keepdims=True),
        "lax.pad": lax.pad(x, 0, [(0, 0, 0), (1, -1, 0)]),
    }
    axes = {name: jax.typeof(y).sharding.spec[0] for name, y in found.items()}
    for name, axis in axes.items():
        print(f"{name:18} {jax.typeof(found[name])}")
    kept = {name for name, axis in axes.items() if axis == "data"}
    assert kept == {"x[:, :2]", "sum", "lax.pad"}, kept
    try:
        jnp.concatenate([x[:, :1], x], axis=1)
    except Exception as error:
        print("concatenate:", type(error).__name__)
    else:
        raise SystemExit("they can be concatenated")
EOF
