import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.models.attention import RelativePositions, relative_position_bucket
from lamp_jax.models.kernels import attend, attend_by_rows
from lamp_jax.sharding import DATA_PARALLEL


def bucket_by_hand(distance, direction, buckets, max_distance):
    first = 0
    if direction == "both":
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return first + min(buckets - 1, exact + int(share * (buckets - exact)))


@given(
    distance=st.integers(-600, 600),
    direction=st.sampled_from(["both", "past"]),
    buckets=st.sampled_from([8, 32]),
    max_distance=st.sampled_from([100, 128]),
)
def test_bucket_equals_the_formula_of_the_paper(distance, direction, buckets, max_distance):
    found = relative_position_bucket(
        jnp.array([distance]), direction=direction, buckets=buckets, max_distance=max_distance
    )
    expected = bucket_by_hand(distance, direction, buckets, max_distance)
    # Where the logarithm is an integer, float32 may fall on either side.
    assert abs(int(found[0]) - expected) <= (0 if abs(distance) in (0, 1, 2, 3, 5, 7, 33, 300) else 1)


def test_buckets_of_the_original_sizes():
    distance = jnp.array([-200, -128, -127, -64, -20, -16, -8, -7, -1, 0, 1, 7, 8, 16, 20, 64, 127, 128, 200])
    both = relative_position_bucket(distance, direction="both", buckets=32, max_distance=128)
    past = relative_position_bucket(distance, direction="past", buckets=32, max_distance=128)
    assert both.tolist() == [15, 15, 15, 14, 10, 10, 8, 7, 1, 0, 17, 23, 24, 26, 26, 30, 31, 31, 31]
    assert past.tolist() == [31, 31, 31, 26, 17, 16, 8, 7, 1] + [0] * 10


@pytest.mark.parametrize("length", [1, 2, 7])
def test_matrix_of_positions_is_looked_up_by_distance(length):
    positions = RelativePositions(
        8, 3, max_distance=20, direction="both", deviation=1.0, rngs=nnx.Rngs(0), rules=DATA_PARALLEL
    )
    table, matrix = np.asarray(positions.table[...]), np.asarray(positions(length))
    assert matrix.shape == (1, 3, length, length)
    for query in range(length):
        for key in range(length):
            expected = table[bucket_by_hand(key - query, "both", 8, 20)]
            np.testing.assert_allclose(matrix[0, :, query, key], expected, rtol=1e-6)


def attention_inputs():
    keys = jax.random.split(jax.random.key(0), 5)
    query = jax.random.normal(keys[0], (5, 6, 2, 4))
    key, value = (jax.random.normal(k, (5, 7, 2, 4)) for k in keys[1:3])
    position = jax.random.normal(keys[3], (1, 2, 6, 7))
    padding = jnp.where(jnp.arange(7) < jnp.array([7, 1, 3, 6, 2])[:, None], 0.0, -1e9)[:, None, None, :]
    return query, key, value, position, padding


def plain_attention(query, key, value, position, padding):
    scores = jnp.einsum("bthk,bshk->bhts", query, key) + position + padding
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores, axis=-1), value)


def attention_by_rows(*inputs):
    return attend_by_rows(*inputs, rules=DATA_PARALLEL)


@pytest.mark.parametrize("ours", [attend, attention_by_rows])
def test_attention_and_its_gradients_equal_the_formula(ours, monkeypatch):
    # Two rows at a time, and one remaining row.
    monkeypatch.setattr("lamp_jax.models.kernels._SCORES_AT_ONCE", 2 * 2 * 6 * 7)
    inputs = attention_inputs()

    @functools.partial(jax.jit, static_argnums=0)
    def run(attention, inputs):
        def total(*inputs):
            mixed = attention(*inputs)
            return jnp.sum(jnp.sin(mixed)), mixed

        return jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(*inputs)

    for got, expected in zip(
        jax.tree.leaves(run(ours, inputs)), jax.tree.leaves(run(plain_attention, inputs)), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_row_of_only_padding_gives_finite_values():
    query, key, value, position, padding = attention_inputs()
    assert jnp.isfinite(attend(query, key, value, position, jnp.full_like(padding, -1e9))).all()
