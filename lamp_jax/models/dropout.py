"""Dropout and its random numbers: the same on every mesh, drawn by each device for its own shard."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jax.sharding import PartitionSpec as P

from lamp_jax.sharding import sharding_of

_OCTETS = 8  # random bytes per counter of Threefry


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout of x [B, T, ...]: sets elements to 0 with probability `rate` and rescales the others.

    Without a key, x is unchanged. T is an axis that is not sharded.

    The rate is rounded to a multiple of 1/256 (0.1 is 26/256), and the scale matches the rounded rate: one random byte
    per element, because random numbers took a third of a training step on a CPU.
    """
    dropped = round(rate * 256)
    if key is None or not dropped:
        return x
    shape = (x.shape[0], -(-x.shape[1] // _OCTETS), *x.shape[2:])
    words = random_words(key, shape, sharding_of(x))
    octets = jnp.concatenate([(word >> shift).astype(jnp.uint8) for word in words for shift in (0, 8, 16, 24)], axis=1)
    return jnp.where(octets[:, : x.shape[1]] >= dropped, x * (256 / (256 - dropped)), 0).astype(x.dtype)


def split_key(key: jax.Array | None, count: int) -> tuple[jax.Array | None, ...]:
    """`count` keys derived from a key; all None without a key."""
    return (None,) * count if key is None else tuple(layer_keys(key, count))


def layer_keys(key: jax.Array | None, layers: int) -> Any:
    """Keys for the layers of a scan; None without a key."""
    if key is None:
        return None
    return jax.random.wrap_key_data(jnp.stack(random_words(key, (1, layers)), axis=-1)[0], impl="threefry2x32")


def random_words(key: jax.Array, shape: tuple[int, ...], sharding: P | None = None) -> tuple[jax.Array, jax.Array]:
    """Two random uint32 arrays of this shape [B, ...] and sharding: Threefry of the row and the index in the row."""
    rows, *places = (
        jax.lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=sharding) for axis in range(len(shape))
    )
    low = jnp.zeros_like(rows)
    for size, place in zip(shape[1:], places, strict=True):
        low = low * jnp.uint32(size) + place
    first, second, *_ = jax.random.key_data(key)
    return tuple(threefry2x32_p.bind(first, second, rows, low))
