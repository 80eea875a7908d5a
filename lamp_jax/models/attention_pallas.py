"""Kernels of attention for TPUs, in Pallas: one row of the batch, and the heads that fill a register, at a time.

Importing Pallas takes most of a second: `attention_kernel` imports this module where it is used.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lamp_jax.models.attention_kernel import LANES, heads_at_once

_ROWS = 256
"""Number of queries whose scores exist at once, at most."""
_BIAS_ROWS = 64
"""Number of queries whose biases are made at once, at most."""


def forward(query, keys, values, band, padding):
    """Results of `attend_in_kernel`, of one device, in a tuple."""
    rows, length, heads, size = query.shape
    others, together = keys.shape[1], heads_at_once(size)
    by_query, by_key, by_padding, by_band = _blocks(length, others, together, size, _width(length, others))
    kernel = partial(_forward_kernel, size=size, biased=band is not None)
    scores = rows * heads * length * others
    found = pl.pallas_call(
        kernel,
        grid=(heads // together, rows),
        in_specs=[by_query, by_key, by_key, by_padding, *([by_band] if band is not None else [])],
        out_specs=by_query,
        out_shape=jax.ShapeDtypeStruct((rows, length, heads * size), values.dtype),
        scratch_shapes=[pltpu.VMEM((together, length, others), jnp.float32)] if band is not None else [],
        compiler_params=_compiler_params(),
        cost_estimate=_cost(4 * scores * size, scores, query, keys, values, query),
        name="attend",
    )(*_as_blocks(query, keys, values, padding), *_as_bands(band, length, others, together))
    return (found.reshape(query.shape),)


def backward(query, keys, values, band, padding, gradient):
    """Gradients of queries, keys, values and the band, of one device."""
    rows, length, heads, size = query.shape
    others, together = keys.shape[1], heads_at_once(size)
    width = _width(length, others)
    by_query, by_key, by_padding, by_band = _blocks(length, others, together, size, width)
    of_keys = jax.ShapeDtypeStruct((rows, others, heads * size), keys.dtype)
    bands = [jax.ShapeDtypeStruct((heads // together, together, width), jnp.float32)] if band is not None else []
    sums = [pltpu.VMEM((others, together * size), jnp.float32)] * 2
    square = pltpu.VMEM((together, length, others), jnp.float32)
    scores = rows * heads * length * others
    *found, d_band = pl.pallas_call(
        partial(_backward_kernel, size=size, biased=band is not None),
        grid=(heads // together, rows),
        in_specs=[by_query, by_key, by_key, by_padding, by_query, *([by_band] if band is not None else [])],
        out_specs=[by_query, by_key, by_key, *([by_band] if band is not None else [])],
        out_shape=[jax.ShapeDtypeStruct((rows, length, heads * size), query.dtype), of_keys, of_keys, *bands],
        scratch_shapes=[*sums, *([square, square] if band is not None else [])],
        compiler_params=_compiler_params(),
        cost_estimate=_cost(10 * scores * size, scores, query, query, query, keys, keys, values, values),
        name="attend_backward",
    )(
        *_as_blocks(query, keys, values, padding),
        gradient.reshape(rows, length, heads * size),
        *_as_bands(band, length, others, together),
    )
    if band is None:
        found, d_band = [*found, d_band], None
    else:
        d_band = d_band.reshape(heads, width)[:, : length + others]
    return *(d.reshape(x.shape) for d, x in zip(found, (query, keys, values), strict=True)), d_band


def _as_blocks(query, keys, values, padding):
    """Arrays as the kernels read them: heads side by side, [B, T, H * K]."""
    return *(x.reshape(*x.shape[:2], -1) for x in (query, keys, values)), padding


def _as_bands(band: jax.Array | None, length: int, others: int, together: int) -> tuple[jax.Array, ...]:
    """Bands of the heads of a block, padded to complete registers, [H / G, G, W]; nothing without a band."""
    if band is None:
        return ()
    padded = jnp.pad(band, ((0, 0), (0, _width(length, others) - band.shape[1])))
    return (padded.reshape(-1, together, padded.shape[1]),)


def _width(length: int, others: int) -> int:
    return -(-(length + others) // LANES) * LANES


def _blocks(length: int, others: int, together: int, size: int, width: int) -> tuple[pl.BlockSpec, ...]:
    """Blocks of one row and the heads that are read together: of queries, keys, padding, bands."""
    return (
        pl.BlockSpec((1, length, together * size), lambda heads, row: (row, 0, heads)),
        pl.BlockSpec((1, others, together * size), lambda heads, row: (row, 0, heads)),
        pl.BlockSpec((1, 1, 1, others), lambda heads, row: (row, 0, 0, 0)),
        pl.BlockSpec((1, together, width), lambda heads, row: (heads, 0, 0)),
    )


def _rows_at_once(length: int, most: int) -> int:
    """Largest divisor of the number of queries that is a multiple of 8 and at most `most`."""
    return max(rows for rows in range(8, most + 1, 8) if length % rows == 0)


def _compiler_params() -> pltpu.CompilerParams:
    """The rows of a head run in order, because they share its biases."""
    return pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=48 * 2**20)


def _cost(flops: int, exponentials: int, *passed: jax.Array) -> pl.CostEstimate:
    """Cost estimate, which `lamp compile` counts; every block of the arrays that pass is read or written once."""
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in passed)
    return pl.CostEstimate(flops=flops, transcendentals=exponentials, bytes_accessed=size)


def _forward_kernel(query_ref, keys_ref, values_ref, padding_ref, *refs, size, biased):
    band_ref, result_ref, bias_ref = refs if biased else (None, *refs, None)
    _make_biases(band_ref, bias_ref)
    keys, values, hidden = keys_ref[0], values_ref[0], padding_ref[0, 0]
    rows_at_once = _rows_at_once(query_ref.shape[1], _ROWS)

    @pl.loop(0, query_ref.shape[1] // rows_at_once)
    def _(step):
        rows = pl.ds(step * rows_at_once, rows_at_once)
        query = query_ref[0, rows]
        result = jnp.zeros(query.shape, jnp.float32)
        for head in range(query.shape[1] // size):
            weights, total = _weights(_only(query, head, size), keys, hidden, bias_ref, head, rows)
            mixed = _product(weights.astype(values.dtype), values, 1, 0) / total
            result = jnp.where(_is_of(mixed, head, size), mixed, result)
        result_ref[0, rows] = result.astype(result_ref.dtype)


def _backward_kernel(query_ref, keys_ref, values_ref, padding_ref, gradient_ref, *refs, size, biased):
    if biased:
        band_ref, d_query_ref, d_keys_ref, d_values_ref, d_band_ref, keys_sum, values_sum, bias_ref, bias_sum = refs
    else:
        d_query_ref, d_keys_ref, d_values_ref, keys_sum, values_sum = refs
        band_ref = d_band_ref = bias_ref = bias_sum = None
    _make_biases(band_ref, bias_ref)
    keys, values, hidden = keys_ref[0], values_ref[0], padding_ref[0, 0]
    rows_at_once = _rows_at_once(query_ref.shape[1], _ROWS)
    is_first = pl.program_id(1) == 0
    keys_sum[...], values_sum[...] = jnp.zeros(keys_sum.shape, jnp.float32), jnp.zeros(values_sum.shape, jnp.float32)

    @pl.loop(0, query_ref.shape[1] // rows_at_once)
    def _(step):
        rows = pl.ds(step * rows_at_once, rows_at_once)
        query, gradient = query_ref[0, rows], gradient_ref[0, rows]
        d_query = jnp.zeros(query.shape, jnp.float32)
        for head in range(query.shape[1] // size):
            own_query, own_gradient = _only(query, head, size), _only(gradient, head, size)
            weights, total = _weights(own_query, keys, hidden, bias_ref, head, rows)
            weights = weights / total
            d_weights = _product(own_gradient, values, 1, 1)
            d_scores = weights * (d_weights - jnp.sum(weights * d_weights, axis=-1, keepdims=True))
            if bias_sum is not None:
                bias_sum[head, rows] = d_scores + jnp.where(is_first, 0.0, bias_sum[head, rows])
            narrow = d_scores.astype(query.dtype)
            d_own = _product(narrow, keys, 1, 0)
            d_query = jnp.where(_is_of(d_own, head, size), d_own, d_query)
            keys_sum[...] += _product(narrow, own_query, 0, 0)
            values_sum[...] += _product(weights.astype(gradient.dtype), own_gradient, 0, 0)
        d_query_ref[0, rows] = d_query.astype(d_query_ref.dtype)

    d_keys_ref[0], d_values_ref[0] = keys_sum[...].astype(d_keys_ref.dtype), values_sum[...].astype(d_values_ref.dtype)
    if bias_sum is not None:
        _sum_biases(bias_sum, d_band_ref)


def _product(left: jax.Array, right: jax.Array, of_left: int, of_right: int) -> jax.Array:
    """Product over an axis of each, float32."""
    return jax.lax.dot_general(left, right, (((of_left,), (of_right,)), ((), ())), preferred_element_type=jnp.float32)


def _is_of(x: jax.Array, head: int, size: int) -> jax.Array:
    """True in the columns of one of the heads side by side."""
    column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return (column >= head * size) & (column < (head + 1) * size)


def _only(x: jax.Array, head: int, size: int) -> jax.Array:
    """x with 0 in the columns of other heads: a product over all columns is then that of the head."""
    return x if x.shape[1] == size else jnp.where(_is_of(x, head, size), x, jnp.zeros_like(x))


def _weights(query, keys, hidden, bias_ref, head, rows):
    """Attention weights before they are divided by their sum, and the sum, [R, S] and [R, 1]."""
    scores = _product(query, keys, 1, 1) + hidden
    if bias_ref is not None:
        scores = scores + bias_ref[head, rows]
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return weights, jnp.sum(weights, axis=-1, keepdims=True)


def _make_biases(band_ref, bias_ref) -> None:
    """Writes the biases of a block's heads, [G, T, S], before its first row: bias[t, s] = band[s - t + T - 1]."""
    if bias_ref is None:
        return

    @pl.when(pl.program_id(1) == 0)
    def _():
        heads, length, others = bias_ref.shape
        rows_at_once, width = _rows_at_once(length, _BIAS_ROWS), band_ref.shape[2]
        for head in range(heads):

            @pl.loop(0, length // rows_at_once)
            def _(step, head=head):
                start = step * rows_at_once
                band = pltpu.roll(band_ref[0, pl.ds(head, 1)], start + width - length + 1, 1)
                rows = _shift_rows(jnp.broadcast_to(band, (rows_at_once, width)), 1)
                bias_ref[head, pl.ds(start, rows_at_once)] = rows[:, :others]


def _sum_biases(bias_sum, d_band_ref) -> None:
    """Writes the gradient of the band after the last row: its sum over the queries at the same distance."""

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        heads, length, others = bias_sum.shape
        rows_at_once, width = _rows_at_once(length, _BIAS_ROWS), d_band_ref.shape[2]
        d_band_ref[...] = jnp.zeros(d_band_ref.shape, jnp.float32)
        for head in range(heads):

            @pl.loop(0, length // rows_at_once)
            def _(step, head=head):
                start = step * rows_at_once
                rows = bias_sum[head, pl.ds(start, rows_at_once)]
                rows = jnp.concatenate([rows, jnp.zeros((rows_at_once, width - others), jnp.float32)], axis=1)
                total = jnp.sum(_shift_rows(rows, -1), axis=0, keepdims=True)
                d_band_ref[0, pl.ds(head, 1)] += pltpu.roll(total, length - 1 - start, 1)


def _shift_rows(x: jax.Array, direction: int) -> jax.Array:
    """Row t rotated by t columns to the right, or to the left: by powers of 2, each for the rows with that bit of t."""
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    for bit in range((x.shape[0] - 1).bit_length()):
        x = jnp.where((row >> bit) & 1 == 1, pltpu.roll(x, direction * 2**bit % x.shape[1], 1), x)
    return x
