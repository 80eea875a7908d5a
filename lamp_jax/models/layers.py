"""Components of a layer other than attention: parameters, products with them, norms, feed-forward, the scan.

Every module holds the parameters of an entire stack, [L, ...]; `lax.scan` passes one layer's slice to its call.
Matrices are stored in float32 and used in the dtype of the activations; softmax and norms are computed in float32.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from lamp_jax.models.dropout import dropout
from lamp_jax.models.kernels import gather_weight, product
from lamp_jax.sharding import Rules, gathered

FeedForwardKind = Literal["relu", "gated-gelu"]

Remat = Literal["none", "full", "attention"]
"""Recomputation in the backward pass: nothing, every layer, or every layer but its attentions' results."""


_SMALL = 2**16
"""Size up to which parameters are drawn by the same program."""

LayerLoop = Literal["scanned", "unrolled"]
"""Loop over the layers in a program: a scan, or the same code repeated for each layer."""


def scan_layers(
    layer: Callable[..., Any], x: Any, xs: Any, *, remat: Remat, loop: LayerLoop = "scanned"
) -> tuple[Any, Any]:
    """Scan of `layer(x, slice of xs) -> (x, y)` over the leading axis of every leaf of `xs`; x is a tree of arrays."""
    if remat == "full":
        layer = jax.checkpoint(layer)
    elif remat == "attention":
        layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names(_ATTENTION))
    return jax.lax.scan(layer, x, xs, unroll=loop == "unrolled" or 1)


_ATTENTION = "attention"


def attention_result(x: jax.Array) -> jax.Array:
    """x, a result of an attention or of its half of a layer, which the remat "attention" stores.

    Few bytes for many: recomputing it would read and write scores, and where heads are sharded sum the projection over
    the devices again.
    """
    return checkpoint_name(x, _ATTENTION)


def normal(
    rngs: nnx.Rngs, shape: tuple[int, ...], *, deviation: float, rules: Rules, axes: tuple[str | None, ...]
) -> nnx.Param[jax.Array]:
    """Float32 parameter drawn from N(0, deviation^2), sharded by the rules of its named axes.

    A key's numbers do not depend on the shape, only on their place: small parameters of any shape are the first numbers
    of one program, where each shape would be a program of its own that takes up to two seconds to compile.
    """
    key, sharding = rngs.params(), rules.out(*axes)
    if (size := math.prod(shape)) > _SMALL:
        values = jax.random.normal(key, shape, jnp.float32, out_sharding=sharding)
    else:
        numbers = jax.random.normal(key, (_SMALL,), jnp.float32, out_sharding=rules.out(None))
        values = gathered(jnp.reshape(numbers[:size], shape), rules.spec(*axes))
    return nnx.Param(values * deviation)


def read(parameter: nnx.Param, rules: Rules, *, dtype: jnp.dtype) -> jax.Array:
    """Parameter in the compute dtype, gathered along the hidden axis for a product."""
    return gather_weight(parameter[...].astype(dtype), rules)


def look_up(table: nnx.Param, rows: jax.Array, rules: Rules, *, dtype: jnp.dtype) -> jax.Array:
    """Embedding look-up: rows of the table [V, D] at indices [B, T] -> [B, T, D].

    Where the table is sharded over the hidden axis, every device reads its shard of all rows, and the shards are
    exchanged: far fewer bytes than the table, and the gradient keeps the table's sharding.
    """
    sharding = rules.out("batch", None, None)
    if sharding and rules.embed:
        rows, sharding = gathered(rows, P(None, None)), P(None, None, rules.embed)
    found = table[...].at[rows].get(out_sharding=sharding).astype(dtype)
    return gathered(found, rules.spec("batch", None, None))


def zeros(shape: tuple[int, ...], *, rules: Rules, axes: tuple[str | None, ...]) -> nnx.Param[jax.Array]:
    """Float32 parameter of zeros (a bias), sharded by the rules of its named axes."""
    return nnx.Param(jnp.zeros(shape, jnp.float32, out_sharding=rules.out(*axes)))


class LayerNorm(nnx.Module):
    """Layer normalization: (x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis."""

    def __init__(self, shape: tuple[int, ...], *, epsilon: float, rules: Rules):
        axes = (None,) * len(shape)
        self.scale = nnx.Param(jnp.ones(shape, jnp.float32, out_sharding=rules.out(*axes)))
        self.bias = zeros(shape, rules=rules, axes=axes)
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        return _normalize(x, self.scale[...], self.bias[...], self.epsilon)


@partial(jax.checkpoint, static_argnums=3)
def _normalize(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return (wide * scale + bias).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMS normalization (T5's layer norm): x / sqrt(mean(x^2) + epsilon) * scale over the last axis."""

    def __init__(self, shape: tuple[int, ...], *, epsilon: float, factor: float, rules: Rules):
        axes = (None,) * len(shape)
        self.scale = nnx.Param(jnp.full(shape, factor, jnp.float32, out_sharding=rules.out(*axes)))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        return _scale_to_unit(x, self.scale[...], self.epsilon)


# Recomputed in the backward pass, which is cheaper than to store the intermediate arrays.
@partial(jax.checkpoint, static_argnums=2)
def _scale_to_unit(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return (wide * scale).astype(x.dtype)


@jax.checkpoint
def _gated_gelu(gate: jax.Array, inner: jax.Array) -> jax.Array:
    return jax.nn.gelu(gate, approximate=True) * inner


class Weight(Protocol):
    """Weight other than a plain matrix, with its own product with x."""

    def product(
        self, subscripts: str, x: jax.Array, rules: Rules, *, out: P | None, dtype: jnp.dtype | None
    ) -> jax.Array: ...


def project(
    subscripts: str,
    x: jax.Array,
    parameter: nnx.Param | Weight,
    rules: Rules,
    *,
    out: P | None = None,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """einsum(subscripts, x, parameter), sharded as `out`, in x's or the given dtype; for its gradient see `product`."""
    if isinstance(parameter, nnx.Module):
        return parameter.product(subscripts, x, rules, out=out, dtype=dtype)
    return product(subscripts, x, cast(nnx.Param, parameter)[...].astype(x.dtype), rules, out, dtype or x.dtype)


class FeedForward(nnx.Module):
    """Feed-forward: relu(x W) O, or gelu(x W) * (x G) O with the tanh approximation of gelu (T5 v1.1)."""

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
        """Output of one layer, [B, T, D] -> [B, T, D]."""
        wide = project("btd,df->btf", x, self.inner, self.rules)
        if self.gate is None:
            wide = jax.nn.relu(wide)
        else:
            wide = _gated_gelu(project("btd,df->btf", x, self.gate, self.rules), wide)
        wide = dropout(wide, rate, key)
        return project("btf,fd->btd", wide, self.outer, self.rules, out=self.rules.out("batch", None, None))
