"""The parts of a T5 layer: RMS norm, attention with relative positions, feed-forward, dropout.

Every module holds the parameters of a whole stack, [L, ...]; `lax.scan` hands its call one layer's slice. Matrices
are stored in float32 and used in the dtype of the activations; softmax and norms are computed in float32.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lamp_jax.sharding import Rules, gathered

FeedForwardKind = Literal["relu", "gated-gelu"]


def normal(
    rngs: nnx.Rngs, shape: tuple[int, ...], *, deviation: float, rules: Rules, axes: tuple[str | None, ...]
) -> nnx.Param[jax.Array]:
    """A float32 parameter drawn from N(0, deviation^2), laid out by the rules of its named axes."""
    values = jax.random.normal(rngs.params(), shape, jnp.float32, out_sharding=rules.out(*axes))
    return nnx.Param(values * deviation)


def read(parameter: nnx.Param, rules: Rules, *axes: str | None, dtype: jnp.dtype) -> jax.Array:
    """The parameter in the compute dtype, gathered over every axis that is not named here."""
    return gathered(parameter[...].astype(dtype), rules.spec(*axes))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets a share `rate` of the elements to 0 and scales the others by 1 / (1 - rate); no key, no dropout."""
    if key is None or rate == 0.0:
        return x
    spec = jax.typeof(x).sharding.spec if not jax.sharding.get_abstract_mesh().empty else None
    keep = jax.random.bits(key, x.shape, jnp.uint32, out_sharding=spec) >= jnp.uint32(min(rate * 2**32, 2**32 - 1))
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def drop_values(values: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout of attention weights, the same for all queries, on values [B, S, H, K]: whole vectors K fall out.

    The original T5 shares this mask over the queries too; the independent kind costs [B, H, T, S] random numbers.
    """
    return values * dropout(jnp.ones_like(values[..., :1]), rate, key)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, without mean or bias (T5's layer norm)."""

    def __init__(self, shape: tuple[int, ...], *, epsilon: float, factor: float, rules: Rules):
        axes = (None,) * len(shape)
        self.scale = nnx.Param(jnp.full(shape, factor, jnp.float32, out_sharding=rules.out(*axes)))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (wide * self.scale[...]).astype(x.dtype)


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
        # Row i is the band from (length - 1 - i) on. Repeating the band, which is one longer than the matrix needs,
        # and cutting it into rows that are one shorter shifts each row by one: no gather and no scatter in the gradient.
        rows = jnp.broadcast_to(band[:, None, :], (band.shape[0], length, 2 * length))
        rows = rows.reshape(band.shape[0], 2 * length * length)[:, : length * (2 * length - 1)]
        rows = rows.reshape(band.shape[0], length, 2 * length - 1)
        return rows[None, :, :, length - 1 :]


class Attention(nnx.Module):
    """Multi-head attention without biases and without scaling of the scores (T5)."""

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
        key, value = (read(w, self.rules, None, "heads", None, dtype=x.dtype) for w in (self.key, self.value))
        return jnp.einsum("bsd,dhk->bshk", x, key), jnp.einsum("bsd,dhk->bshk", x, value)

    def __call__(self, x: jax.Array, keys: jax.Array, values: jax.Array, *, biases: tuple[jax.Array, ...]) -> jax.Array:
        """Queries from x [B, T, D], keys and values [B, S, H, K], biases that broadcast to [B, H, T, S] -> [B, T, D]."""
        query = read(self.query, self.rules, None, "heads", None, dtype=x.dtype)
        query = jnp.einsum("btd,dhk->bthk", x, query)
        scores = jnp.einsum("bthk,bshk->bhts", query, keys, preferred_element_type=jnp.float32)
        for bias in biases:
            scores = scores + bias
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bhts,bshk->bthk", weights, values)
        output = read(self.output, self.rules, "heads", None, None, dtype=x.dtype)
        return jnp.einsum("bthk,hkd->btd", mixed, output, out_sharding=self.rules.out("batch", None, None))


class FeedForward(nnx.Module):
    """relu(x W) O, or gelu(x W) * (x G) O with the tanh approximation of gelu (T5 v1.1)."""

    def __init__(
        self,
        layers: int,
        hidden: int,
        mlp: int,
        *,
        kind: FeedForwardKind,
        factor: float,
        rngs: nnx.Rngs,
        rules: Rules,
    ):
        shape, axes, deviation = (layers, hidden, mlp), (None, "embed", "mlp"), factor * hidden**-0.5
        self.inner = normal(rngs, shape, deviation=deviation, rules=rules, axes=axes)
        self.gate = normal(rngs, shape, deviation=deviation, rules=rules, axes=axes) if kind == "gated-gelu" else None
        shape, axes = (layers, mlp, hidden), (None, "mlp", "embed")
        self.outer = normal(rngs, shape, deviation=factor * mlp**-0.5, rules=rules, axes=axes)
        self.rules = rules

    def __call__(self, x: jax.Array, *, rate: float, key: jax.Array | None) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        inner = read(self.inner, self.rules, None, "mlp", dtype=x.dtype)
        wide = jnp.einsum("btd,df->btf", x, inner)
        if self.gate is None:
            wide = jax.nn.relu(wide)
        else:
            gate = read(self.gate, self.rules, None, "mlp", dtype=x.dtype)
            wide = jax.nn.gelu(jnp.einsum("btd,df->btf", x, gate), approximate=True) * wide
        outer = read(self.outer, self.rules, "mlp", None, dtype=x.dtype)
        wide = dropout(wide, rate, key)
        return jnp.einsum("btf,fd->btd", wide, outer, out_sharding=self.rules.out("batch", None, None))
