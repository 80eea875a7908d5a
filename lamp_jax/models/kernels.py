"""Hand-written computations: attention, products with weights, their gradients, and evaluation orders for CPUs.

Models define the computation; this module has implementations where jax's own take more time or memory. Nothing here
has parameters.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from lamp_jax.models import attention_kernel
from lamp_jax.sharding import Rules, gathered, mesh_is_set, sharded_by_rows, sharding_of

AttentionOrder = Literal["whole", "rows", "kernel"]
"""Order of attention: the entire batch at once (accelerators), a few rows at a time (CPUs; the encoder's alone), or
each head by itself in a kernel (TPUs)."""

HIDDEN = -1e9
"""Score of hidden positions: far below any other, but finite, so that a row without tokens does not give NaN."""

NO_BIAS = np.zeros((1, 1, 1, 1), np.float32)
"""Scores to add where there is no bias."""


def computed_once(x: jax.Array) -> jax.Array:
    """x, materialized: otherwise programs for CPUs recompute shifted scores wherever they are added.

    The inputs of a loop are materialized; this loop adds 0 twice, in a way that the compiler does not remove.
    """
    return jax.lax.fori_loop(0, 2, lambda turn, x: x + (turn >> 1).astype(x.dtype), x)


def attend(query: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array, padding: jax.Array) -> jax.Array:
    """Attention, softmax(query keys^T + position + padding) values: [B, T, H, K], two of [B, S, H, K] -> [B, T, H, K].

    `position` broadcasts to [1, H, T, S] and has a gradient, `padding` to [B, 1, 1, S] and has none. The scores are
    not scaled (T5). The backward pass recomputes the attention weights instead of storing them.
    """
    return _attend(jnp.sum, query, keys, values, position, padding)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sum_over, query, keys, values, position, padding):
    return _attend_forward(sum_over, query, keys, values, position, padding)[0]


# dot_general dimension numbers on [B, T, H, K], [B, S, H, K] and [B, H, T, S]: contracted axes, then batch axes.
_OVER_SIZE = (((3,), (3,)), ((0, 2), (0, 2)))
_OVER_KEYS = (((3,), (1,)), ((0, 1), (0, 2)))
_OVER_QUERIES = (((1,), (2,)), ((0, 2), (0, 1)))


def _scores(query, keys, position, padding):
    scores = jax.lax.dot_general(query, keys, _OVER_SIZE, preferred_element_type=jnp.float32)
    return scores + position + padding


def _attend_forward(_, query, keys, values, position, padding):
    scores = _scores(query, keys, position, padding)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jax.lax.dot_general(weights.astype(values.dtype), values, _OVER_KEYS, preferred_element_type=jnp.float32)
    mixed = jnp.swapaxes(mixed / total, 1, 2).astype(values.dtype)
    return mixed, (query, keys, values, position, padding, mixed, highest + jnp.log(total))


def _attend_backward(sum_over, kept, gradient):
    query, keys, values, position, padding, mixed, log_total = kept
    weights = jnp.exp(_scores(query, keys, position, padding) - log_total)
    # The softmax's gradient needs sum_s w_s dw_s for every query, which is the output times its gradient.
    inner = jnp.sum(gradient.astype(jnp.float32) * mixed, axis=-1)
    d_weights = jax.lax.dot_general(gradient, values, _OVER_SIZE, preferred_element_type=jnp.float32)
    d_scores = weights * (d_weights - jnp.swapaxes(inner, 1, 2)[..., None])
    dtype = query.dtype
    over_keys, over_queries = (
        partial(jax.lax.dot_general, dimension_numbers=axes) for axes in (_OVER_KEYS, _OVER_QUERIES)
    )
    narrow = d_scores.astype(dtype)
    d_query = jnp.swapaxes(_multiply(over_keys, narrow, keys, dtype), 1, 2)
    d_keys = _multiply(over_queries, query, narrow, dtype)
    d_values = _multiply(over_queries, gradient, weights.astype(dtype), dtype)
    # [B, H, K, S] -> [B, S, H, K]
    d_keys, d_values = (jnp.transpose(d, (0, 3, 1, 2)) for d in (d_keys, d_values))
    broadcast = [axis for axis in range(4) if position.shape[axis] == 1]
    return d_query, d_keys, d_values, sum_over(d_scores, axis=broadcast, keepdims=True), jnp.zeros_like(padding)


_attend.defvjp(_attend_forward, _attend_backward)


def _sum_by_rows(x: jax.Array, axis: list[int], keepdims: bool) -> jax.Array:
    """`jnp.sum` where the first axis is summed row by row.

    XLA's CPU backend takes 50 times as long for a sum over a leading axis alone (jaxlib 0.10.2, by YNNPACK).
    """
    if axis != [0]:
        return jnp.sum(x, axis=axis, keepdims=keepdims)
    return reduce(jnp.add, [x[row : row + 1] for row in range(len(x))])


# Number of scores that a CPU computes at once: more leave its caches, fewer do not keep all cores busy.
_SCORES_AT_ONCE = 2**22


def attend_by_rows(
    query: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array, padding: jax.Array, *, rules: Rules
) -> jax.Array:
    """`attend` for a few rows of the batch at a time.

    Only these rows' [H, T, S] scores exist at once and fit a CPU's cache (two to three times faster there at
    T = S = 320). `position` is [1, H, T, S] or NO_BIAS, `padding` [B, 1, 1, S].
    """

    by_head = position.shape[1] > 1

    def attend_locally(query, keys, values, position, padding):
        # Every shard has its own gradient for the positions that it shares with others; the cast adds them up.
        shared = [rules.batch] + [rules.heads] * (not by_head)
        axes = tuple(axis for axis in shared if axis is not None)
        if mesh_is_set() and axes:
            position = jax.lax.pcast(position, axes, to="varying")
        most = max(1, _SCORES_AT_ONCE // (query.shape[1] * query.shape[2] * keys.shape[1]))
        rows = next(rows for rows in range(min(most, len(query)), 0, -1) if len(query) % rows == 0)

        def attend_some(some):
            query, keys, values, padding = some
            return _attend(_sum_by_rows, query, keys, values, position, padding)

        chunks = [x.reshape(-1, rows, *x.shape[1:]) for x in (query, keys, values, padding)]
        return jax.lax.map(attend_some, chunks).reshape(query.shape)

    if not mesh_is_set():
        return attend_locally(query, keys, values, position, padding)
    spec = rules.spec("batch", None, "heads", None)
    of_positions = rules.spec(None, "heads" if by_head else None, None, None)
    specs = (spec, spec, spec, of_positions, rules.spec("batch", None, None, None))
    return jax.shard_map(attend_locally, in_specs=specs, out_specs=spec)(query, keys, values, position, padding)


def attend_in_order(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    position: jax.Array | np.ndarray,
    padding: jax.Array | np.ndarray,
    *,
    order: AttentionOrder,
    rules: Rules,
) -> jax.Array:
    """`attend` to the entire batch, by rows, or in a kernel.

    `position` is as in `attend`; for a kernel, whose shapes must fit then, the scores by distance, [H, T + S].
    """
    is_band = position.ndim == 2
    if is_band or (order == "kernel" and position is NO_BIAS and attention_kernel.fits(query.shape, keys.shape, rules)):
        shape, sharding = (len(query), 1, 1, keys.shape[1]), rules.out("batch", None, None, None)
        padding = jnp.broadcast_to(padding, shape, out_sharding=sharding)
        band = jnp.asarray(position) if is_band else None
        return attention_kernel.attend_in_kernel(query, keys, values, band, padding, rules)
    if order == "rows":
        return attend_by_rows(query, keys, values, jnp.asarray(position), jnp.asarray(padding), rules=rules)
    return attend(query, keys, values, jnp.asarray(position), jnp.asarray(padding))


def attend_nearby(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    padding: jax.Array,
    *,
    reach: int,
    first: Literal["seen by all", "like others"],
    order: AttentionOrder,
    rules: Rules,
) -> jax.Array:
    """Sliding-window attention: `attend` to `reach` tokens on either side, and to the first token if all see it.

    Three of [B, S, H, K] -> [B, S, H, K]; `padding` [B, 1, 1, S]. Computed in blocks of `reach` tokens, each with the
    preceding and the following block: [H, S, 3 reach] scores per row, so that memory grows linearly with S.
    """
    length = query.shape[1]
    if length <= reach + 1:
        return attend_in_order(query, keys, values, NO_BIAS, padding, order=order, rules=rules)
    blocks = -(-length // reach)
    distance = np.arange(3 * reach) - reach - np.arange(reach)[:, None]
    band = np.where(np.abs(distance) <= reach, 0, HIDDEN).astype(np.float32)[None, None]
    hidden = jnp.swapaxes(padding, 1, 3)  # [B, S, 1, 1], the order of the keys' axes
    some_hidden = hidden
    if first == "seen by all":  # added to the block's own keys, and hidden among them
        is_first = jnp.arange(length)[:, None, None] == 0
        some_hidden = jnp.where(is_first, HIDDEN, hidden)
        first_hidden = sharded_by_rows(hidden[:, :1], hidden)
    own_query = jnp.reshape(_pad(query, 0, blocks * reach - length, 0), (-1, blocks, reach, *query.shape[2:]))
    near_keys, near_values, near_hidden = (
        _with_neighbours(x, reach, fill) for x, fill in ((keys, 0), (values, 0), (some_hidden, HIDDEN))
    )
    if first == "seen by all":
        near_keys, near_values, near_hidden = (
            jnp.concatenate([jnp.broadcast_to(x[:, None], (*near.shape[:2], 1, *near.shape[3:])), near], axis=2)
            for x, near in ((keys[:, :1], near_keys), (values[:, :1], near_values), (first_hidden, near_hidden))
        )
        band = np.pad(band, ((0, 0), (0, 0), (0, 0), (1, 0)))

    def fold(x: jax.Array, heads: str | None) -> jax.Array:
        """Blocks as rows of a batch, [B, blocks, ...] -> [B * blocks, ...]."""
        sharding = rules.out("batch", None, heads, None)
        return jnp.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=sharding)

    folded = (fold(own_query, "heads"), fold(near_keys, "heads"), fold(near_values, "heads"))
    folded_hidden = jnp.swapaxes(fold(near_hidden, None), 1, 3)
    found = attend_in_order(*folded, band, folded_hidden, order=order, rules=rules)
    shape = (query.shape[0], blocks * reach, *query.shape[2:])
    return jnp.reshape(found, shape, out_sharding=rules.out("batch", None, "heads", None))[:, :length]


def _pad(x: jax.Array, before: int, after: int, fill: float) -> jax.Array:
    """Padding along the tokens, [B, S, ...] -> [B, before + S + after, ...]."""
    return jnp.pad(x, ((0, 0), (before, after), (0, 0), (0, 0)), constant_values=fill)


def _with_neighbours(x: jax.Array, reach: int, fill: float) -> jax.Array:
    """Concatenation of every block of `reach` tokens with its neighbours, [B, S, ...] -> [B, blocks, 3 reach, ...]."""
    blocks = -(-x.shape[1] // reach)
    padded = _pad(x, reach, (blocks + 1) * reach - x.shape[1], fill)
    parts = jnp.reshape(padded, (-1, blocks + 2, reach, *x.shape[2:]))
    return jnp.concatenate([parts[:, :-2], parts[:, 1:-1], parts[:, 2:]], axis=2)


class ProductAxes(NamedTuple):
    """Axes of x, of the weight and of the result of a product: a letter each."""

    x: str
    weight: str
    result: str

    @property
    def inputs(self) -> str:
        """Axes of the weight that are summed."""
        return "".join(letter for letter in self.weight if letter in self.x)

    @property
    def outputs(self) -> str:
        """Axes of the weight that the result has."""
        return "".join(letter for letter in self.weight if letter in self.result)

    @property
    def rows(self) -> str:
        """Axes of x that are not summed."""
        return "".join(letter for letter in self.x if letter in self.result)


def product_axes(subscripts: str) -> ProductAxes:
    """Axes in subscripts "x,weight->result"."""
    x, rest = subscripts.split(",")
    return ProductAxes(x, *rest.split("->"))


def einsum(subscripts: str, x: jax.Array, y: jax.Array, *, out: P | None = None, dtype: jnp.dtype) -> jax.Array:
    """einsum of two arrays with results of this dtype, sharded as `out`."""
    return _multiply(partial(jnp.einsum, subscripts, out_sharding=out), x, y, dtype)


def _multiply(product: Callable[..., jax.Array], x: jax.Array, y: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """product(x, y, preferred_element_type=) with results of this dtype.

    Products of bfloat16 are computed in float32 and rounded on CPUs: only then does XLA's CPU backend use the
    processor's instructions for bfloat16, which are 2 to 7 times as fast (jax 0.10.2, a processor with AMX).
    """

    def compute(computed: jnp.dtype, x: jax.Array, y: jax.Array) -> jax.Array:
        return product(x, y, preferred_element_type=computed).astype(dtype)

    if not x.dtype == y.dtype == dtype == jnp.bfloat16:
        return compute(dtype, x, y)
    return jax.lax.platform_dependent(
        x, y, cpu=partial(compute, jnp.dtype(jnp.float32)), default=partial(compute, dtype)
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4, 5))
def product(
    subscripts: str, x: jax.Array, weight: jax.Array, rules: Rules, out: P | None, dtype: jnp.dtype
) -> jax.Array:
    """einsum(subscripts, x, weight) with results of this dtype, sharded as `out`; x and weight have the same dtype.

    The gradient is hand-written. A weight that is sharded over the hidden axis is gathered for the product and again
    for the gradient, not kept in between, and its gradient is reduced directly into that sharding. A CPU also has to
    transpose the left operand of the weight's gradient: here that is x, stored and shared by all products of x, whereas
    JAX's rule takes the output's gradient, fused with all operations that compute it.
    """
    return einsum(subscripts, x, gather_weight(weight, rules), out=out, dtype=dtype)


def _product_forward(subscripts, x, weight, rules, out, dtype):
    return product(subscripts, x, weight, rules, out, dtype), (x, weight)


def _product_backward(subscripts, rules, out, dtype, kept, gradient):
    x, weight = kept
    gradient = gradient.astype(x.dtype)
    axes = product_axes(subscripts)
    complete = gather_weight(weight, rules)
    d_x = einsum(f"{axes.result},{axes.weight}->{axes.x}", gradient, complete, out=sharding_of(x), dtype=x.dtype)
    d_weight = einsum(
        f"{axes.x},{axes.result}->{axes.weight}", x, gradient, out=sharding_of(weight), dtype=weight.dtype
    )
    return d_x, d_weight


product.defvjp(_product_forward, _product_backward)


def gather_weight(weight: jax.Array, rules: Rules) -> jax.Array:
    """Weight gathered along the hidden axis, for use in products."""
    return gathered(weight, rules.gathered(jax.typeof(weight).sharding.spec))


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x Phi(x), by erf; `jax.nn.gelu` uses erfc, 2.6 times slower on a CPU."""
    wide = x.astype(jnp.float32)  # 1 + erf of a negative number cancels digits that bfloat16 has
    return (0.5 * wide * (1 + jax.lax.erf(wide * 2**-0.5))).astype(x.dtype)


def as_cached_keys(keys: jax.Array) -> jax.Array:
    """Keys in the order of `attend_cached`: [B, S, H, K] -> [B, H, K, S]."""
    return jnp.transpose(keys, (0, 2, 3, 1))


def as_cached_values(values: jax.Array) -> jax.Array:
    """Values in the order of `attend_cached`: [B, S, H, K] -> [B, H, S, K]."""
    return jnp.swapaxes(values, 1, 2)


def attend_cached(query: jax.Array, keys: jax.Array, values: jax.Array, scores: jax.Array) -> jax.Array:
    """Attention without gradient, softmax(query keys + scores) values, to keys and values that many queries read.

    [B, N, H, K], [B, H, K, S], [B, H, S, K] -> [B, N, H, K]; `scores` broadcasts to [B, H, N, S]. The axes are in the
    order in which a CPU multiplies matrices without copying them first.
    """
    found = jnp.einsum("bnhk,bhks->bhns", query, keys, preferred_element_type=jnp.float32) + scores
    weights = jnp.exp(found - jnp.max(found, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum("bhns,bhsk->bhnk", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return jnp.swapaxes(mixed / total, 1, 2).astype(values.dtype)


def write_to_cache(
    cache: tuple[jax.Array, jax.Array], keys: jax.Array, values: jax.Array, *, layer: jax.Array | int, start: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keys [L, B, H, K, S] and values [L, B, H, S, K], updated with those of one layer, [B, N, H, K], from `start` on.

    The update is in place if the cache is carried through a scan over layers; a scan that stacks the layers' caches
    copies them.
    """
    old_keys, old_values = cache
    return (
        jax.lax.dynamic_update_slice(old_keys, as_cached_keys(keys)[None], (layer, 0, 0, 0, start)),
        jax.lax.dynamic_update_slice(old_values, as_cached_values(values)[None], (layer, 0, 0, start, 0)),
    )


def step_loop(order: AttentionOrder) -> Literal["scanned", "unrolled"]:
    """Loop over the layers for one token's step: unrolled on CPUs, where a loop copies each slice of weights.

    For one token, the copies cost as much as the products.
    """
    return "unrolled" if order == "rows" else "scanned"
