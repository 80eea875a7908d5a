"""Matrices of a frozen model in 8 bits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lamp_jax.models.layers import project, read
from lamp_jax.sharding import Rules


class Quantized(nnx.Module):
    """A weight [L, in, out] that is only read: `steps` int8, and for each output [L, out] the scale they count in."""

    def __init__(self, steps: Any, scale: Any):
        self.steps, self.scale = nnx.Param(steps), nnx.Param(scale)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.steps.shape

    def product(
        self, subscripts: str, x: jax.Array, rules: Rules, *, out: P | None, dtype: jnp.dtype | None
    ) -> jax.Array:
        """As `project`."""
        found = project(subscripts, x, self.steps, rules, out=out, dtype=dtype)
        return found * read(self.scale, rules, dtype=found.dtype)


def quantize(weights: np.ndarray, *, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [L, in, out], `inputs` axes of them `in` -> int8 of the same shape, and the scale [L, out].

    127 steps of an output's scale are the largest of its weights.
    """
    axes = tuple(range(1, 1 + inputs))
    scale = (np.abs(weights).max(axis=axes) / 127).astype(np.float32)
    steps = weights / np.expand_dims(np.where(scale > 0, scale, 1), axes)
    return np.clip(np.rint(steps), -127, 127).astype(np.int8), scale  # a tiny scale is not exact


def abstract_quantized(weight: nnx.Param, *, inputs: int) -> Quantized:
    """An abstract weight [L, in, out] as shapes without numbers of a quantized one."""
    steps = as_type(weight.get_value(), jnp.int8)
    shape = (steps.shape[0], *steps.shape[1 + inputs :])
    if steps.sharding is None:
        return Quantized(steps, jax.ShapeDtypeStruct(shape, jnp.float32))
    axes = (*steps.sharding.spec, *(None,) * (steps.ndim - len(steps.sharding.spec)))
    layout = NamedSharding(steps.sharding.mesh, P(axes[0], *axes[1 + inputs :]))
    return Quantized(steps, jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout))


def as_type(values: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    """The shape of an array of another type, laid out alike."""
    return jax.ShapeDtypeStruct(values.shape, dtype, sharding=values.sharding)
