"""Modules around attention: projections, masks, relative positions, dropout; its computation is in `kernels`."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lamp_jax.models.dropout import dropout
from lamp_jax.models.kernels import HIDDEN
from lamp_jax.models.layers import attention_result, normal, project
from lamp_jax.sharding import Rules


def hide_padding(mask: jax.Array) -> jax.Array:
    """Additive attention mask: True at tokens, [B, S] -> scores to add, [B, 1, 1, S]."""
    return jnp.where(mask, 0.0, HIDDEN)[:, None, None, :]


def relative_position_bucket(
    distance: jax.Array, *, direction: Literal["both", "past"], buckets: int, max_distance: int
) -> jax.Array:
    """T5's bucket of each distance (key position minus query position); same shape, int32 in [0, buckets).

    Half of the buckets are exact, the other half grows logarithmically up to `max_distance`. With `both`, half of all
    buckets are for keys to the right; with `past`, those share bucket 0 (a causal mask hides them). Raffel et al. 2020,
    section 2.1.
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
    """Relative position bias: a learned score per bucket of distances and head, shared by the layers of one stack."""

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
        """Scores of distances, [X] -> [H, X], float32."""
        buckets = self.table.shape[0]
        found = relative_position_bucket(
            distance, direction=self.direction, buckets=buckets, max_distance=self.max_distance
        )
        # A product with one-hot rows: its gradient is also a product, where a gather's would be a scatter.
        return jnp.einsum("xn,nh->hx", jax.nn.one_hot(found, buckets), self.table[...], precision="highest")

    def band(self, length: int) -> jax.Array:
        """Scores of the distances from 1 - length to length, [H, 2 length]."""
        return self.scores(jnp.arange(-length + 1, length + 1))

    def __call__(self, length: int) -> jax.Array:
        """Scores of every query (rows) for every key (columns), [1, H, length, length]."""
        band = self.band(length)
        # Row i is the slice of the band from (length - 1 - i). The band has one element more than needed; repeating it
        # and cutting it into rows shorter by one shifts each row by one: no gather, and no scatter in the gradient.
        rows = jnp.broadcast_to(band[:, None, :], (band.shape[0], length, 2 * length))
        rows = rows.reshape(band.shape[0], 2 * length * length)[:, : length * (2 * length - 1)]
        rows = rows.reshape(band.shape[0], length, 2 * length - 1)
        return rows[None, :, :, length - 1 :]


def drop_values(values: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout of attention weights, applied to values [B, S, H, K]: complete vectors K are dropped, for all queries.

    The original T5 also shares this mask over the queries; independent masks need [B, H, T, S] random numbers.
    """
    return values * dropout(jnp.ones_like(values[..., :1]), rate, key)


class Attention(nnx.Module):
    """Projections of multi-head attention, without biases; `kernels.attend` is computed between them."""

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
        """Keys and values, [B, S, D] -> two of [B, S, H, K]."""
        keys, values = (project("bsd,dhk->bshk", x, weight, self.rules) for weight in (self.key, self.value))
        return keys, values

    def all_keys_and_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """Keys and values of all layers, [B, S, D] -> two of [L, B, S, H, K]; None where matrices are adapted.

        One product for all layers: the gradients of x are summed in it, and over the devices once.
        """
        if isinstance(self.key, nnx.Module) or isinstance(self.value, nnx.Module):
            return None
        keys, values = (project("bsd,ldhk->lbshk", x, weight, self.rules) for weight in (self.key, self.value))
        return keys, values

    def queries(self, x: jax.Array) -> jax.Array:
        """Queries, [B, T, D] -> [B, T, H, K]."""
        return project("btd,dhk->bthk", x, self.query, self.rules)

    def mix(self, heads: jax.Array) -> jax.Array:
        """Output projection of the heads, [B, T, H, K] -> [B, T, D]."""
        sharding = self.rules.out("batch", None, None)
        return project("bthk,hkd->btd", attention_result(heads), self.output, self.rules, out=sharding)
