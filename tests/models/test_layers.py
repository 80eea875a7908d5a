from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lamp_jax.models.layers import dropout, project
from lamp_jax.sharding import DATA_PARALLEL


def test_projection_has_the_gradients_of_the_product():
    x, weight = jax.random.normal(jax.random.key(0), (2, 3, 4)), jax.random.normal(jax.random.key(1), (4, 2, 5))

    def differentiate(product):
        return jax.grad(lambda *inputs: jnp.sum(jnp.sin(product("btd,dhk->bthk", *inputs))), argnums=(0, 1))(x, weight)

    by_rules = partial(project, rules=DATA_PARALLEL)
    for got, expected in zip(differentiate(by_rules), differentiate(jnp.einsum), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = jnp.ones((4, 101, 64))
    dropped = dropout(x, 0.1, jax.random.key(0))
    assert abs(float(jnp.mean(dropped == 0)) - 26 / 256) < 0.01
    assert abs(float(jnp.mean(dropped)) - 1) < 0.01
    assert set(np.unique(dropped).tolist()) == {0.0, np.float32(256 / 230).item()}


def test_dropout_differs_between_all_axes_and_keys():
    x = jnp.ones((4, 10, 64))
    dropped = np.asarray(dropout(x, 0.5, jax.random.key(0))).reshape(-1, 64)
    assert len(np.unique(dropped, axis=0)) == 40
    assert not np.array_equal(dropped, np.asarray(dropout(x, 0.5, jax.random.key(1))).reshape(-1, 64))


def test_no_key_no_dropout():
    x = jnp.ones((2, 3, 4))
    assert dropout(x, 0.5, None) is x
