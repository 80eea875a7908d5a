"""Attention: scores from products and relative positions, computed for all rows or a few at a time."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lamp_jax.models.dropout import dropout
from lamp_jax.models.layers import normal, project
from lamp_jax.sharding import Rules, mesh_is_set, sharded_by_rows

AttentionOrder = Literal["whole", "rows"]
"""How an encoder attends: to the whole batch at once (accelerators), or to a few rows at a time (CPUs)."""

HIDDEN = -1e9
"""Finite, so that a row of nothing but padding gives numbers; far below any score."""

NOTHING = np.zeros((1, 1, 1, 1), np.float32)
"""Scores to add where there are none."""


def hide_padding(mask: jax.Array) -> jax.Array:
    """True where there is a token, [B, S] -> scores to add, [B, 1, 1, S]."""
    return jnp.where(mask, 0.0, HIDDEN)[:, None, None, :]


def relative_position_bucket(
    distance: jax.Array, *, direction: Literal["both", "past"], buckets: int, max_distance: int
) -> jax.Array:
    """T5's bucket of a distance (key position minus query position); same shape, int32 in [0, buckets).

    Half of the buckets are exact, the other half grows logarithmically up to `max_distance`. With `both`, half of all
    serves keys to the right; with `past`, those share bucket 0 (a causal mask hides them). Raffel et al. 2020, 2.1.
    """
    first = jnp.zeros_like(distance)
    if direction == "both":
        buckets //= 2
        first = jnp.where(distance > 0, buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    scaled = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (scaled * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return first + jnp.where(distance < exact, distance, far)


class RelativePositions(nnx.Module):
    """A learned score for every bucket of distances and every head, shared by the layers of one stack."""

    def __init__(
        self,
        buckets: int,
        heads: int,
        *,
        max_distance: int,
        direction: Literal["both", "past"],
        deviation: float,
        rngs: nnx.Rngs,
        rules: Rules,
    ):
        self.table = normal(rngs, (buckets, heads), deviation=deviation, rules=rules, axes=(None, "heads"))
        self.max_distance = max_distance
        self.direction: Literal["both", "past"] = direction
        self.rules = rules

    def scores(self, distance: jax.Array) -> jax.Array:
        """Distances [X] -> [H, X], float32."""
        buckets = self.table.shape[0]
        found = relative_position_bucket(
            distance, direction=self.direction, buckets=buckets, max_distance=self.max_distance
        )
        # A product with one-hot rows: its gradient is a product too, where a gather's would be a scatter.
        return jnp.einsum("xn,nh->hx", jax.nn.one_hot(found, buckets), self.table[...], precision="highest")

    def __call__(self, length: int) -> jax.Array:
        """The scores of every query (rows) for every key (columns), [1, H, length, length]."""
        band = self.scores(jnp.arange(-length + 1, length + 1))
        # Row i is the band from (length - 1 - i) on. Repeating the band, one longer than the matrix needs, and cutting
        # it into rows that are one shorter shifts each row by one: no gather, and no scatter in the gradient.
        rows = jnp.broadcast_to(band[:, None, :], (band.shape[0], length, 2 * length))
        rows = rows.reshape(band.shape[0], 2 * length * length)[:, : length * (2 * length - 1)]
        rows = rows.reshape(band.shape[0], length, 2 * length - 1)
        return rows[None, :, :, length - 1 :]


def computed_once(x: jax.Array) -> jax.Array:
    """x, computed before it is read: programs for CPUs would compute shifted scores anew wherever they are added.

    What goes into a loop is computed; the loop adds 0 twice, in a way that keeps it from being left out.
    """
    return jax.lax.fori_loop(0, 2, lambda turn, x: x + (turn >> 1).astype(x.dtype), x)


@jax.custom_vjp
def attend(query: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array, padding: jax.Array) -> jax.Array:
    """softmax(query keys^T + position + padding) values: [B, T, H, K], two of [B, S, H, K] -> [B, T, H, K].

    `position` broadcasts to [1, H, T, S] and has a gradient, `padding` to [B, 1, 1, S] and has none. The scores are
    not scaled (T5). The backward pass computes the weights again instead of storing them.
    """
    return _attend_forward(query, keys, values, position, padding)[0]


# dot_general dimension numbers on [B, T, H, K], [B, S, H, K] and [B, H, T, S]: contracted axes, then batch axes.
_OVER_SIZE = (((3,), (3,)), ((0, 2), (0, 2)))
_OVER_KEYS = (((3,), (1,)), ((0, 1), (0, 2)))
_OVER_QUERIES = (((1,), (2,)), ((0, 2), (0, 1)))


def _scores(query, keys, position, padding):
    scores = jax.lax.dot_general(query, keys, _OVER_SIZE, preferred_element_type=jnp.float32)
    return scores + position + padding


def _attend_forward(query, keys, values, position, padding):
    scores = _scores(query, keys, position, padding)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jax.lax.dot_general(weights.astype(values.dtype), values, _OVER_KEYS, preferred_element_type=jnp.float32)
    mixed = jnp.swapaxes(mixed / total, 1, 2).astype(values.dtype)
    return mixed, (query, keys, values, position, padding, mixed, highest + jnp.log(total))


def _attend_backward(kept, gradient):
    query, keys, values, position, padding, mixed, log_total = kept
    weights = jnp.exp(_scores(query, keys, position, padding) - log_total)
    # The softmax's gradient needs sum_s w_s dw_s for every query, which is the output times its gradient.
    inner = jnp.sum(gradient.astype(jnp.float32) * mixed, axis=-1)
    d_weights = jax.lax.dot_general(gradient, values, _OVER_SIZE, preferred_element_type=jnp.float32)
    d_scores = weights * (d_weights - jnp.swapaxes(inner, 1, 2)[..., None])
    narrow = d_scores.astype(query.dtype)
    d_query = jnp.swapaxes(jax.lax.dot_general(narrow, keys, _OVER_KEYS), 1, 2)
    d_keys = jax.lax.dot_general(query, narrow, _OVER_QUERIES)
    d_values = jax.lax.dot_general(gradient, weights.astype(gradient.dtype), _OVER_QUERIES)
    # [B, H, K, S] -> [B, S, H, K]
    d_keys, d_values = (jnp.transpose(d, (0, 3, 1, 2)) for d in (d_keys, d_values))
    broadcast = [axis for axis in range(4) if position.shape[axis] == 1]
    return d_query, d_keys, d_values, jnp.sum(d_scores, axis=broadcast, keepdims=True), jnp.zeros_like(padding)


attend.defvjp(_attend_forward, _attend_backward)


# How many scores a CPU makes at once. More of them leave its caches, fewer keep its cores from working together.
_SCORES_AT_ONCE = 2**22


def attend_by_rows(
    query: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array, padding: jax.Array, *, rules: Rules
) -> jax.Array:
    """`attend` for a few rows of the batch at a time.

    No more than some rows' [H, T, S] scores exist at once, so that they stay in a CPU's cache (two to three times
    faster there at T = S = 320). `position` is [1, H, T, S] or NOTHING, `padding` [B, 1, 1, S].
    """

    by_head = position.shape[1] > 1

    def attend_locally(query, keys, values, position, padding):
        # Every shard has a gradient of its own for the positions that it shares with others; the cast adds them up.
        shared = [rules.batch] + [rules.heads] * (not by_head)
        axes = tuple(axis for axis in shared if axis is not None)
        if mesh_is_set() and axes:
            position = jax.lax.pcast(position, axes, to="varying")
        rows = max(1, min(len(query), _SCORES_AT_ONCE // (query.shape[1] * query.shape[2] * keys.shape[1])))

        def attend_row(row):
            query, keys, values, padding = (x[None] for x in row)
            return attend(query, keys, values, position, padding)[0]

        return jax.lax.map(attend_row, (query, keys, values, padding), batch_size=rows)

    if not mesh_is_set():
        return attend_locally(query, keys, values, position, padding)
    whole = rules.spec("batch", None, "heads", None)
    of_positions = rules.spec(None, "heads" if by_head else None, None, None)
    specs = (whole, whole, whole, of_positions, rules.spec("batch", None, None, None))
    return jax.shard_map(attend_locally, in_specs=specs, out_specs=whole)(query, keys, values, position, padding)


def attend_in_order(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    position: jax.Array | np.ndarray,
    padding: jax.Array,
    *,
    order: AttentionOrder,
    rules: Rules,
) -> jax.Array:
    """`attend` to the whole batch or by rows."""
    if order == "rows":
        return attend_by_rows(query, keys, values, jnp.asarray(position), padding, rules=rules)
    return attend(query, keys, values, position, padding)


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
    """`attend` to the `reach` tokens on either side alone, and to the first one if it is seen by all.

    Three of [B, S, H, K] -> [B, S, H, K]; `padding` [B, 1, 1, S]. In blocks of `reach` tokens, each with the block
    before and the block behind it: [H, S, 3 reach] scores for a row, so that memory grows linearly with S.
    """
    length = query.shape[1]
    if length <= reach + 1:
        return attend_in_order(query, keys, values, NOTHING, padding, order=order, rules=rules)
    blocks = -(-length // reach)
    distance = np.arange(3 * reach) - reach - np.arange(reach)[:, None]
    band = np.where(np.abs(distance) <= reach, 0, HIDDEN).astype(np.float32)[None, None]
    hidden = jnp.swapaxes(padding, 1, 3)  # [B, S, 1, 1], as keys lie
    some_hidden = hidden
    if first == "seen by all":  # beside the block's own keys, and not twice among them
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
        """[B, blocks, ...] -> [B * blocks, ...]"""
        layout = rules.out("batch", None, heads, None)
        return jnp.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=layout)

    folded = (fold(own_query, "heads"), fold(near_keys, "heads"), fold(near_values, "heads"))
    folded_hidden = jnp.swapaxes(fold(near_hidden, None), 1, 3)
    found = attend_in_order(*folded, band, folded_hidden, order=order, rules=rules)
    whole = (query.shape[0], blocks * reach, *query.shape[2:])
    return jnp.reshape(found, whole, out_sharding=rules.out("batch", None, "heads", None))[:, :length]


def _pad(x: jax.Array, before: int, behind: int, fill: float) -> jax.Array:
    """[B, S, ...] -> [B, before + S + behind, ...]"""
    return jnp.pad(x, ((0, 0), (before, behind), (0, 0), (0, 0)), constant_values=fill)


def _with_neighbours(x: jax.Array, reach: int, fill: float) -> jax.Array:
    """[B, S, ...] -> [B, blocks, 3 reach, ...]: every block of `reach` between the ones beside it."""
    blocks = -(-x.shape[1] // reach)
    padded = _pad(x, reach, (blocks + 1) * reach - x.shape[1], fill)
    parts = jnp.reshape(padded, (-1, blocks + 2, reach, *x.shape[2:]))
    return jnp.concatenate([parts[:, :-2], parts[:, 1:-1], parts[:, 2:]], axis=2)


def drop_values(values: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout of attention weights, the same for all queries, on values [B, S, H, K]: whole vectors K fall out.

    The original T5 shares this mask over the queries too; the independent kind costs [B, H, T, S] random numbers.
    """
    return values * dropout(jnp.ones_like(values[..., :1]), rate, key)


class Attention(nnx.Module):
    """The four projections of multi-head attention, without biases; `attend` stands between them."""

    def __init__(self, layers: int, hidden: int, heads: int, size: int, *, factor: float, rngs: nnx.Rngs, rules: Rules):
        shape, axes = (layers, hidden, heads, size), (None, "embed", "heads", None)
        deviation = factor * hidden**-0.5
        self.query = normal(rngs, shape, deviation=factor * (hidden * size) ** -0.5, rules=rules, axes=axes)
        self.key = normal(rngs, shape, deviation=deviation, rules=rules, axes=axes)
        self.value = normal(rngs, shape, deviation=deviation, rules=rules, axes=axes)
        shape, axes = (layers, heads, size, hidden), (None, "heads", None, "embed")
        self.output = normal(rngs, shape, deviation=factor * (heads * size) ** -0.5, rules=rules, axes=axes)
        self.rules = rules

    def keys_and_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, S, D] -> two of [B, S, H, K]."""
        keys, values = (project("bsd,dhk->bshk", x, weight, self.rules) for weight in (self.key, self.value))
        return keys, values

    def queries(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, H, K]."""
        return project("btd,dhk->bthk", x, self.query, self.rules)

    def mix(self, heads: jax.Array) -> jax.Array:
        """What the heads found, [B, T, H, K] -> [B, T, D]."""
        return project("bthk,hkd->btd", heads, self.output, self.rules, out=self.rules.out("batch", None, None))
