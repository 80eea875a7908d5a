"""One vector for a text from the hidden states of its tokens, as sentence-transformers pools them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lamp_jax.config import PoolingMode

_SMALLEST = 1e-12  # of a length by which a vector is divided


def pool(hidden: jax.Array, counted: jax.Array, modes: Sequence[PoolingMode]) -> jax.Array:
    """Hidden states [B, S, D] of tokens that count where `counted` [B, S] is true -> [B, D for each mode], float32.

    Texts are padded at their end. A row of which no token counts gives zeros.
    """
    hidden = hidden.astype(jnp.float32)
    vectors = [_largest(hidden, counted) if mode == "max" else _weighted(hidden, counted, mode) for mode in modes]
    return vectors[0] if len(vectors) == 1 else jnp.concatenate(vectors, axis=-1)


def _weighted(hidden: jax.Array, counted: jax.Array, mode: PoolingMode) -> jax.Array:
    """The sum of the weighted hidden states, over that of the weights or its root."""
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
    """The vectors [..., D] with length 1; of zeros, zeros, and their gradient is finite."""
    squares = jnp.sum(vectors * vectors, axis=-1, keepdims=True)
    return vectors / jnp.sqrt(jnp.maximum(squares, _SMALLEST**2))
