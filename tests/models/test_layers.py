from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lamp_jax.models.layers import project
from lamp_jax.sharding import DATA_PARALLEL


def test_projection_has_the_gradients_of_the_product():
    x, weight = jax.random.normal(jax.random.key(0), (2, 3, 4)), jax.random.normal(jax.random.key(1), (4, 2, 5))

    def differentiate(product):
        return jax.grad(lambda *inputs: jnp.sum(jnp.sin(product("btd,dhk->bthk", *inputs))), argnums=(0, 1))(x, weight)

    by_rules = partial(project, rules=DATA_PARALLEL)
    for got, expected in zip(differentiate(by_rules), differentiate(jnp.einsum), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
