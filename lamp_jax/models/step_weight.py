"""Arrangement of weights for decoding steps, whose products have few rows, on a CPU."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from lamp_jax.models.kernels import einsum, product_axes
from lamp_jax.models.layers import Weight
from lamp_jax.sharding import Rules


class StepWeight(nnx.Module):
    """Weight [in..., out...] stored as [out..., in...], for products with few rows and without gradient.

    XLA's CPU backend multiplies such a matrix with a few columns 1.3 to 2 times as fast as a few rows with the matrix
    (4 and 64 rows, jax 0.10.2); it copies parts of the larger operand where the summed axis is not its last.
    """

    def __init__(self, weight: jax.Array):
        self.weight = nnx.Param(weight)

    def product(
        self, subscripts: str, x: jax.Array, rules: Rules, *, out: P | None, dtype: jnp.dtype | None
    ) -> jax.Array:
        """Product with x; arguments as in `layers.project`."""
        axes = product_axes(subscripts)
        weight, turned = self.weight[...].astype(x.dtype), f"{axes.outputs}{axes.rows}"
        columns = einsum(f"{axes.outputs}{axes.inputs},{axes.x}->{turned}", weight, x, dtype=dtype or x.dtype)
        # Without the barrier XLA swaps the operands to avoid the transposition, and the product is slow again.
        return jnp.einsum(f"{turned}->{axes.result}", jax.lax.optimization_barrier(columns), out_sharding=out)


def arrange(owner: nnx.Module, **inputs: int) -> None:
    """Arranges the named weights of an unstacked layer, each with its number of input axes; None remains None."""
    for name, axes in inputs.items():
        weight = getattr(owner, name)
        if weight is not None:
            setattr(owner, name, nnx.data(arranged(weight, inputs=axes)))


def arranged(weight: Any, *, inputs: int) -> Weight:
    """Parameter or other weight, [in..., out...] with `inputs` axes `in`, arranged for steps."""
    if not isinstance(weight, nnx.Param):
        return weight.for_steps(inputs=inputs)
    values = weight[...]
    axes = (*range(inputs, values.ndim), *range(inputs))
    # Transposed once, not within the loop over the steps.
    return StepWeight(jax.lax.optimization_barrier(jnp.transpose(values, axes)))
