"""Attention as one kernel for TPUs, which keeps scores and position biases in the core's fast memory (VMEM).

`kernels.attend` writes [B, H, T, S] scores to main memory and reads them several times; here only queries, keys, values
and the result pass through it (Dao et al. 2022, arXiv 2205.14135; all keys of a head fit, so no softmax is split). The
bias of relative positions is made inside from one score per head and distance.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from lamp_jax.sharding import Rules, mesh_is_set, shards

LANES = 128  # of a vector register: heads of 64 are read in pairs
_MOST_SCORES = 2**20
"""Number of scores of a head whose biases, and their gradients, fit VMEM."""


def fits(query: tuple[int, ...], keys: tuple[int, ...], rules: Rules) -> bool:
    """Whether the kernel computes attention of these shapes, [B, T, H, K] and [B, S, H, K], with these rules."""
    (_, length, heads, size), others = query, keys[1]
    local, together = heads // shards(rules.heads), heads_at_once(size)
    aligned = length % 8 == 0 and others % 8 == 0
    return aligned and length * others <= _MOST_SCORES and together > 0 and local % together == 0


def heads_at_once(size: int) -> int:
    """Number of heads that fill the lanes; 0 where heads of this size do not."""
    if size % LANES == 0:
        return 1
    return LANES // size if LANES % size == 0 else 0


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_in_kernel(
    query: jax.Array, keys: jax.Array, values: jax.Array, band: jax.Array | None, padding: jax.Array, rules: Rules
) -> jax.Array:
    """`kernels.attend` for shapes that `fits` accepts: [B, T, H, K], two of [B, S, H, K] -> [B, T, H, K].

    `band` [H, T + S] float32 has each head's score of the distances (key minus query) from 1 - T to S, and a gradient;
    None: no bias. `padding` [B, 1, 1, S] has none. The backward pass computes the attention weights again.
    """
    return _over_shards("forward", rules, query, keys, values, band, padding)[0]


def _attend_forward(query, keys, values, band, padding, rules):
    return attend_in_kernel(query, keys, values, band, padding, rules), (query, keys, values, band, padding)


def _attend_backward(rules, kept, gradient):
    *d_inputs, d_band = _over_shards("backward", rules, *kept, gradient)
    return *d_inputs, d_band, jnp.zeros_like(kept[-1])


attend_in_kernel.defvjp(_attend_forward, _attend_backward)


def _over_shards(name: Literal["forward", "backward"], rules: Rules, query, keys, values, band, padding, *gradient):
    """The kernel on every device's rows and heads. A gradient of the band, its last result, is summed over the rows."""
    from lamp_jax.models import attention_pallas

    compute = getattr(attention_pallas, name)
    by_row, of_band = rules.spec("batch", None, "heads", None), rules.spec("heads", None)
    specs = (by_row, by_row, by_row, of_band, rules.spec("batch", None, None, None), *(by_row for _ in gradient))
    results = (by_row, by_row, by_row, of_band) if gradient else (by_row,)
    if not mesh_is_set():
        return compute(query, keys, values, band, padding, *gradient)

    def locally(*arrays):
        found = compute(*arrays)
        if gradient and band is not None and rules.batch is not None:
            found = (*found[:-1], jax.lax.psum(found[-1], rules.batch))
        return found

    sharded = jax.shard_map(locally, in_specs=specs, out_specs=results, check_vma=False)
    return sharded(query, keys, values, band, padding, *gradient)
