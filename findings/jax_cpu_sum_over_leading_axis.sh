#!/usr/bin/env bash
# Sum over the leading axis of an array on a CPU, jax 0.10.2.
#
# - jaxlib 0.10.2 gives reductions to YNNPACK. A sum of [8, 8, 256, 256] over its first axis then takes 50 times the
#   processor time of adding the eight slices (64 against 1.2 ms on two cores); sums over the last axis are quick.
#   Without YNNPACK's reductions (an XLA flag) it takes as long as the slices.
# - jax 0.12.0, which needs Python 3.12, is quick again: 2.0 against 1.2 ms.
#
# Exit status 1: the behaviour changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export JAX_PLATFORMS=cpu
cat >"$folder/sums.py" <<'PYTHON'
import sys
import time
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 256, 256)).astype(np.float32))


def median(function):
    """Processor milliseconds of a compiled call."""
    compiled, times = jax.jit(function), []
    jax.block_until_ready(compiled(x))
    for _ in range(9):
        begun = time.process_time()
        jax.block_until_ready(compiled(x))
        times.append(1000 * (time.process_time() - begun))
    return sorted(times)[4]


leading, slices = median(lambda x: x.sum(0)), median(lambda x: reduce(jnp.add, list(x)))
print(f"jax {jax.__version__}: leading axis {leading:.1f} ms, slices {slices:.1f} ms, {leading / slices:.0f} times")
sys.exit((leading > 8 * slices) != (sys.argv[1] == "slow"))
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" "$folder/sums.py" slow
XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-reduce "$folder/venv/bin/python" "$folder/sums.py" quick
