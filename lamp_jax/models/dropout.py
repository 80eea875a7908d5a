"""Dropout, and the random numbers that it takes: the same on every mesh, drawn by each device for itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jax.sharding import PartitionSpec as P

from lamp_jax.sharding import layout_of

_OCTETS = 8  # random bytes that one counter gives


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets a share `rate` of the elements of x [B, T, ...] to 0 and scales the others up; no key, no dropout.

    T is an axis that is not split over devices.

    The share is rounded to a multiple of 1/256 (0.1 is 26/256) and the scale fits it exactly: one random byte an
    element, because random numbers were a third of a training step on a CPU.
    """
    dropped = round(rate * 256)
    if key is None or not dropped:
        return x
    shape = (x.shape[0], -(-x.shape[1] // _OCTETS), *x.shape[2:])
    words = random_words(key, shape, layout_of(x))
    octets = jnp.concatenate([(word >> shift).astype(jnp.uint8) for word in words for shift in (0, 8, 16, 24)], axis=1)
    return jnp.where(octets[:, : x.shape[1]] >= dropped, x * (256 / (256 - dropped)), 0).astype(x.dtype)


def split_key(key: jax.Array | None, count: int) -> tuple[jax.Array | None, ...]:
    """`count` keys; none of them where there is none."""
    return (None,) * count if key is None else tuple(layer_keys(key, count))


def layer_keys(key: jax.Array | None, layers: int) -> Any:
    """A key for every layer of a scan; none where there is none."""
    if key is None:
        return None
    return jax.random.wrap_key_data(jnp.stack(random_words(key, (1, layers)), axis=-1)[0], impl="threefry2x32")


def random_words(key: jax.Array, shape: tuple[int, ...], layout: P | None = None) -> tuple[jax.Array, jax.Array]:
    """Two arrays of random uint32 of this shape [B, ...] and layout: Threefry of the row and the place in the row."""
    rows, *places = (
        jax.lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=layout) for axis in range(len(shape))
    )
    low = jnp.zeros_like(rows)
    for size, place in zip(shape[1:], places, strict=True):
        low = low * jnp.uint32(size) + place
    first, second, *_ = jax.random.key_data(key)
    return tuple(threefry2x32_p.bind(first, second, rows, low))
