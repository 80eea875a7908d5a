"""Pooling against its definition in numpy, one text at a time; gradients for every pooled token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamp_jax.models.bert import NO_TOKEN
from lamp_jax.models.pooling import pool, unit
from lamp_jax.sharding import FSDP, make_mesh, place_batch
from tests.models.tiny import build_bert

LENGTHS = (7, 1, 4, 7, 2, 5, 3, 6)
DEFINITIONS = {
    "cls": lambda rows: rows[0],
    "lasttoken": lambda rows: rows[-1],
    "max": lambda rows: rows.max(0),
    "mean": lambda rows: rows.sum(0) / len(rows),
    "mean_sqrt_len_tokens": lambda rows: rows.sum(0) / len(rows) ** 0.5,
}
MODES = [*DEFINITIONS, "weightedmean"]


def pool_by_definition(rows, mode, skip=0):
    """Pooled vector of a text's hidden states [S, D]; weights by position count skipped tokens too."""
    rows = rows.astype(np.float64)
    if mode != "weightedmean":
        return DEFINITIONS[mode](rows[skip:])
    weights = np.arange(1, len(rows) + 1)[skip:, None]
    return (rows[skip:] * weights).sum(0) / weights.sum()


def draw():
    """Hidden states [8, 7, 6], and the mask of those that belong to a text."""
    hidden = np.random.default_rng(0).standard_normal((8, 7, 6)).astype(np.float32)
    return hidden, np.arange(7) < np.array(LENGTHS)[:, None]


@pytest.mark.parametrize("mode", MODES)
def test_a_vector_equals_the_definition_of_its_mode(mode):
    hidden, counted = draw()
    expected = [pool_by_definition(hidden[row, :length], mode) for row, length in enumerate(LENGTHS)]
    np.testing.assert_allclose(pool(hidden, counted, [mode]), expected, atol=1e-6)


def test_several_modes_are_concatenated_in_their_order():
    hidden, counted = draw()
    modes = ("max", "cls", "mean")
    expected = [
        np.concatenate([pool_by_definition(hidden[row, :n], mode) for mode in modes]) for row, n in enumerate(LENGTHS)
    ]
    np.testing.assert_allclose(pool(hidden, counted, modes), expected, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_row_without_tokens_gives_zeros_and_finite_gradients(mode):
    hidden, counted = draw()
    counted = counted & (np.arange(8)[:, None] != 2)

    def value(hidden):
        return jnp.sum(jnp.tanh(unit(pool(hidden, counted, [mode]))))

    assert not np.asarray(pool(hidden, counted, [mode]))[2].any()
    slopes = np.asarray(jax.grad(value)(hidden))
    assert np.isfinite(slopes).all()
    assert not slopes[~counted].any()
    assert slopes[counted].any()


@pytest.mark.parametrize("mode", ["cls", "lasttoken"])
def test_pooling_of_one_token_has_a_gradient_for_that_token_only(mode):
    hidden, counted = draw()
    slopes = np.asarray(jax.grad(lambda hidden: jnp.sum(pool(hidden, counted, [mode])))(hidden))
    place = 0 if mode == "cls" else np.array(LENGTHS) - 1
    expected = np.zeros_like(hidden)
    expected[np.arange(8), place] = 1
    np.testing.assert_array_equal(slopes, expected)


def test_unit_vectors_have_length_one():
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]], np.float32)
    np.testing.assert_allclose(unit(vectors), [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-6)


def make_texts():
    random = np.random.default_rng(1)
    tokens = np.full((8, 7), NO_TOKEN, np.int32)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = random.integers(0, 48, length)
    return tokens


@pytest.mark.parametrize("mode", MODES)
def test_skipped_tokens_are_encoded_but_not_pooled(mode):
    tokens = make_texts()
    model = build_bert()
    skip = np.array([3, 0, 1, 2, 1, 0, 2, 5])
    hidden = np.asarray(jax.jit(lambda model: model(tokens))(model))
    found = jax.jit(lambda model: model.embed(tokens, pooling=[mode], skip=jnp.asarray(skip)))(model)
    expected = [pool_by_definition(hidden[row, :length], mode, skip[row]) for row, length in enumerate(LENGTHS)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    alone = jax.jit(lambda model: model.embed(tokens, pooling=[mode], normalize=True))(model)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_vectors_do_not_depend_on_the_mesh(mode):
    tokens = make_texts()
    expected = jax.jit(lambda model: model.embed(tokens, pooling=[mode], normalize=True, skip=1))(build_bert())
    with jax.set_mesh(make_mesh(8, 1)):
        model = build_bert(rules=FSDP)
        embed = jax.jit(lambda model, tokens: model.embed(tokens, pooling=[mode], normalize=True, skip=1))
        np.testing.assert_allclose(embed(model, place_batch(tokens)), expected, atol=1e-5)
