import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lamp_jax.models.dropout import dropout, layer_keys, random_words, split_key
from lamp_jax.sharding import make_mesh

KEY = jax.random.key(5)


def test_keys_are_split_as_in_jax():
    expected = jax.random.key_data(jax.random.split(KEY, 7))
    np.testing.assert_array_equal(jax.random.key_data(layer_keys(KEY, 7)), expected)
    np.testing.assert_array_equal([jax.random.key_data(key) for key in split_key(KEY, 7)], expected)
    assert split_key(None, 2) == (None, None)


@pytest.mark.parametrize("layout", [P("data", None, None), P(None, None, "model"), P("data", None, "model")])
def test_each_device_draws_its_shard_of_the_same_numbers(layout):
    shape = (8, 3, 4)
    expected = random_words(KEY, shape)
    with jax.set_mesh(make_mesh(4, 2)):
        program = jax.jit(lambda key: random_words(key, shape, layout))
        found = program(KEY)
        assert "all-" not in program.lower(KEY).compile().as_text()
    for one, other in zip(found, expected, strict=True):
        assert one.sharding.spec == layout
        np.testing.assert_array_equal(one, other)


def test_no_number_is_drawn_twice():
    words = np.stack(random_words(KEY, (16, 32, 128)))
    assert len(np.unique(words)) > 0.99 * words.size


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
