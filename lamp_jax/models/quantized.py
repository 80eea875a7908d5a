"""Quantization of a frozen model's matrices to 8 bits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lamp_jax.models.layers import project, read
from lamp_jax.models.step_weight import arranged
from lamp_jax.sharding import Rules


class Quantized(nnx.Module):
    """Frozen weight [L, in, out] in 8 bits: `steps` int8, and a scale for each output [L, out]."""

    def __init__(self, steps: Any, scale: Any):
        self.steps: Any = steps if isinstance(steps, nnx.Module) else nnx.Param(steps)
        self.scale = nnx.Param(scale)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.steps.shape

    def product(
        self, subscripts: str, x: jax.Array, rules: Rules, *, out: P | None, dtype: jnp.dtype | None
    ) -> jax.Array:
        """Product with x; arguments as in `project`."""
        found = project(subscripts, x, self.steps, rules, out=out, dtype=dtype)
        return found * read(self.scale, rules, dtype=found.dtype)

    def for_steps(self, *, inputs: int) -> "Quantized":
        """This weight, unstacked, with `inputs` input axes, arranged for decoding steps."""
        return Quantized(arranged(self.steps, inputs=inputs), self.scale[...])


def quantize(weights: np.ndarray, *, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantized weights: [L, in, out] with `inputs` axes `in` -> int8 of the same shape, and the scale [L, out].

    The largest absolute weight of an output is 127 steps of its scale.
    """
    axes = tuple(range(1, 1 + inputs))
    scale = (np.abs(weights).max(axis=axes) / 127).astype(np.float32)
    steps = weights / np.expand_dims(np.where(scale > 0, scale, 1), axes)
    return np.clip(np.rint(steps), -127, 127).astype(np.int8), scale  # clipped, because a tiny scale is not exact


def abstract_quantized(weight: nnx.Param, *, inputs: int) -> Quantized:
    """Abstract quantized weight (shapes without values) of an abstract weight [L, in, out]."""
    steps = as_type(weight.get_value(), jnp.int8)
    shape = (steps.shape[0], *steps.shape[1 + inputs :])
    if steps.sharding is None:
        return Quantized(steps, jax.ShapeDtypeStruct(shape, jnp.float32))
    axes = (*steps.sharding.spec, *(None,) * (steps.ndim - len(steps.sharding.spec)))
    sharding = NamedSharding(steps.sharding.mesh, P(axes[0], *axes[1 + inputs :]))
    return Quantized(steps, jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding))


def as_type(values: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    """Abstract array of the same shape and sharding with another dtype."""
    return jax.ShapeDtypeStruct(values.shape, dtype, sharding=values.sharding)
