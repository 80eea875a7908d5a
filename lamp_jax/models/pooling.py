"""Pooling of the hidden states of a text's tokens into one vector, as in sentence-transformers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lamp_jax.config import PoolingMode

_SMALLEST = 1e-12  # norm by which a vector is at least divided


def pool(hidden: jax.Array, counted: jax.Array, modes: Sequence[PoolingMode]) -> jax.Array:
    """Pooled vectors [B, D per mode], float32, of hidden states [B, S, D] at tokens where `counted` [B, S] is true.

    Texts are padded at the end. A row without counted tokens gives zeros.
    """
    hidden = hidden.astype(jnp.float32)
    vectors = [_largest(hidden, counted) if mode == "max" else _weighted(hidden, counted, mode) for mode in modes]
    return vectors[0] if len(vectors) == 1 else jnp.concatenate(vectors, axis=-1)


def _weighted(hidden: jax.Array, counted: jax.Array, mode: PoolingMode) -> jax.Array:
    """Weighted sum of the hidden states, divided by the sum of the weights or by its square root."""
    places = jnp.arange(counted.shape[1])
    if mode == "cls":
        first = jnp.min(jnp.where(counted, places, counted.shape[1]), axis=1)
        counted = counted & (places == first[:, None])
    elif mode == "lasttoken":
        counted = counted & (places == jnp.max(jnp.where(counted, places, -1), axis=1)[:, None])
    weights = counted.astype(jnp.float32)
    if mode == "weightedmean":
        weights = weights * (places + 1)
    total = jnp.einsum("bsd,bs->bd", hidden, weights, precision="highest")
    count = jnp.maximum(jnp.sum(weights, axis=1), 1)[:, None]
    return total / (jnp.sqrt(count) if mode == "mean_sqrt_len_tokens" else count)


def _largest(hidden: jax.Array, counted: jax.Array) -> jax.Array:
    largest = jnp.max(jnp.where(counted[..., None], hidden, -jnp.inf), axis=1)
    return jnp.where(jnp.any(counted, axis=1)[:, None], largest, 0.0)


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] normalized to length 1; zeros remain zeros, with a finite gradient."""
    squares = jnp.sum(vectors * vectors, axis=-1, keepdims=True)
    return vectors / jnp.sqrt(jnp.maximum(squares, _SMALLEST**2))
