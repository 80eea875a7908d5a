"""Kernel of a decoding step's attention, in Pallas: the written places of a cache, a block at a time.

Importing Pallas takes most of a second: `step_kernel` imports this module where it is used.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lamp_jax.models.step_kernel import LANES, PLACES

_ROWS = 8
"""Number of rows of the batch that are read together, at most."""


def attend_places(
    where: jax.Array, query: jax.Array, keys: jax.Array, values: jax.Array, scores: jax.Array
) -> jax.Array:
    """softmax(query keys^T + scores) values for queries [B, R, D], two of [L, B, P, D], scores [B, R, P] -> [B, R, D].

    `where` [2] int32: the layer, and the last block of PLACES with any place that is not hidden; blocks after it are
    not read. The cost estimate is the mean of a search in which the last block is each of the blocks equally often.
    """
    rows, queries, size = query.shape
    blocks = keys.shape[2] // PLACES
    together = max(count for count in range(1, _ROWS + 1) if rows % count == 0)

    def cached(row, block, where):
        return where[0], row, jnp.minimum(block, where[1]), 0

    of_cache = pl.BlockSpec((1, together, PLACES, size), cached)
    of_query = pl.BlockSpec((together, queries, size), lambda row, block, where: (row, 0, 0))
    hidden = pl.BlockSpec((together, queries, PLACES), lambda row, block, where: (row, 0, jnp.minimum(block, where[1])))
    read = rows * PLACES * (blocks + 1) / 2
    itemsize = keys.dtype.itemsize
    estimate = pl.CostEstimate(
        flops=int(4 * read * queries * size),
        transcendentals=int(read * queries),
        bytes_accessed=int(read * (2 * size * itemsize + queries * 4)) + 2 * query.size * itemsize,
    )
    return pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows // together, blocks),
            in_specs=[of_query, of_cache, of_cache, hidden],
            out_specs=of_query,
            scratch_shapes=[
                pltpu.VMEM((together, queries, LANES), jnp.float32),
                pltpu.VMEM((together, queries, LANES), jnp.float32),
                pltpu.VMEM((together, queries, size), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(query.shape, values.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=estimate,
        name="attend_step",
    )(where, query, keys, values, scores)


def _kernel(where, query_ref, keys_ref, values_ref, scores_ref, result_ref, highest_ref, total_ref, mixed_ref):
    """One block of places: the softmax's maximum, sum and mixture so far are kept in scratch memory."""
    block = pl.program_id(1)

    @pl.when(block == 0)
    def _():
        highest_ref[...] = jnp.full(highest_ref.shape, -jnp.inf, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        mixed_ref[...] = jnp.zeros(mixed_ref.shape, jnp.float32)

    @pl.when(block <= where[1])
    def _():
        product = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
        for row in range(query_ref.shape[0]):
            values = values_ref[0, row]
            found = product(query_ref[row], keys_ref[0, row], (((1,), (1,)), ((), ()))) + scores_ref[row]
            before = highest_ref[row][:, :1]
            highest = jnp.maximum(before, jnp.max(found, axis=1, keepdims=True))
            weights, kept = jnp.exp(found - highest), jnp.exp(before - highest)
            total = kept * total_ref[row][:, :1] + jnp.sum(weights, axis=1, keepdims=True)
            mixed = product(weights.astype(values.dtype), values, (((1,), (0,)), ((), ())))
            mixed_ref[row] = kept * mixed_ref[row] + mixed
            highest_ref[row] = jnp.broadcast_to(highest, highest_ref.shape[1:])
            total_ref[row] = jnp.broadcast_to(total, total_ref.shape[1:])

    @pl.when(block == pl.num_programs(1) - 1)
    def _():
        result_ref[...] = (mixed_ref[...] / total_ref[...][:, :, :1]).astype(result_ref.dtype)
