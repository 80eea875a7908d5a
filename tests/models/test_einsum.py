"""Products of bfloat16: rounded once, and on CPUs computed in float32, for which the processor has instructions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamp_jax.models.kernels import einsum, product, product_axes
from lamp_jax.sharding import DATA_PARALLEL, make_mesh

WIDE, NARROW = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(NARROW)


def test_a_product_of_bfloat16_is_the_float32_product_rounded():
    x, y = draw(0, 4, 7, 96), draw(1, 96, 40)
    exact = np.einsum("bsd,df->bsf", np.asarray(x, np.float64), np.asarray(y, np.float64))
    for compute in (einsum, jax.jit(einsum, static_argnames=("subscripts", "dtype"))):
        found = compute("bsd,df->bsf", x, y, dtype=NARROW)
        assert found.dtype == NARROW
        np.testing.assert_allclose(found, exact, rtol=2**-8, atol=1e-5)  # half a unit in the last place


def test_on_a_cpu_it_is_computed_in_float32_and_elsewhere_in_bfloat16():
    traced = jax.jit(lambda x, y: einsum("bd,df->bf", x, y, dtype=NARROW)).trace(draw(0, 8, 16), draw(1, 16, 8))
    results = {"cpu": "tensor<8x8xf32>", "tpu": "tensor<8x8xbf16>", "cuda": "tensor<8x8xbf16>"}
    for platform, result in results.items():
        lines = traced.lower(lowering_platforms=(platform,)).as_text().splitlines()
        (line,) = (line for line in lines if "dot_general" in line)
        assert line.endswith(f"-> {result}")


@pytest.mark.parametrize("on_mesh", [False, True])
def test_gradients_of_a_product_in_bfloat16_are_those_of_its_factors(on_mesh):
    def total(x, weight):
        return jnp.sum(product("bsd,df->bsf", x, weight, DATA_PARALLEL, None, NARROW).astype(WIDE) ** 2)

    x, weight = draw(0, 8, 5, 32), draw(1, 32, 16)
    wide = [np.asarray(array, np.float64) for array in (x, weight)]
    result = 2 * np.einsum("bsd,df->bsf", *wide)
    expected = np.einsum("bsf,df->bsd", result, wide[1]), np.einsum("bsf,bsd->df", result, wide[0])
    if on_mesh:
        with jax.set_mesh(make_mesh()):
            found = jax.jit(jax.grad(total, (0, 1)))(x, weight)
    else:
        found = jax.grad(total, (0, 1))(x, weight)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == NARROW
        np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-2 * np.abs(other).max())


def test_axes_of_a_product():
    axes = product_axes("bthk,hkd->btd")
    assert (axes.inputs, axes.outputs, axes.rows) == ("hk", "d", "bt")
