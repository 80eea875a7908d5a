#!/usr/bin/env bash
# Products of bfloat16 on a CPU: jax 0.10.2.
#
# Whether XLA's CPU backend uses the processor's instructions for bfloat16 (AMX, AVX512_BF16) depends on the type of the
# result. With bfloat16 results, the default for bfloat16 operands, both operands are copied to float32, multiplied in
# float32, and the result is rounded; only with preferred_element_type=float32 are they multiplied as they are. On two
# cores with AMX, 4096 x 512 by 512 x 2048: 170 to 190 GFLOP/s against 490 to 1,350; float32 itself has 230.
#
# Exit status 1: the behaviour changed. 2: this processor has no such instructions, and nothing was compared.
set -euo pipefail
grep -qwE 'amx_bf16|avx512_bf16' /proc/cpuinfo || exit 2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export JAX_PLATFORMS=cpu
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat >"$folder/results.py" <<'PYTHON'
import re
import sys
import time

import jax
import jax.numpy as jnp

left, right = jnp.ones((4096, 512), jnp.bfloat16), jnp.ones((512, 2048), jnp.bfloat16)
operands = {}
for result in (jnp.bfloat16, jnp.float32):
    compiled = jax.jit(lambda a, b: jax.lax.dot(a, b, preferred_element_type=result)).lower(left, right).compile()
    (product,) = (line for line in compiled.as_text().splitlines() if re.search(r"= \w+\[4096,2048\]\S* dot\(", line))
    names = re.search(r"dot\(%?([\w.]+),", product)[1]
    found = re.search(rf"%?{re.escape(names)} = (\w+)\[", compiled.as_text())
    operands[result] = found[1]
    times = []
    for _ in range(9):
        begun = time.perf_counter()
        compiled(left, right).block_until_ready()
        times.append(time.perf_counter() - begun)
    speed = 2 * 4096 * 512 * 2048 / sorted(times)[4] / 1e9
    print(f"jax {jax.__version__}, results in {jnp.dtype(result).name}: operands in {found[1]}, {speed:.0f} GFLOP/s")
sys.exit((operands[jnp.bfloat16], operands[jnp.float32]) != ("f32", "bf16"))
PYTHON
"$folder/venv/bin/python" "$folder/results.py"
