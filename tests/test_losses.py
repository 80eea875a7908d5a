import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamp_jax.losses import IGNORED, sequence_log_probability, token_cross_entropy

LOGITS = np.random.default_rng(0).normal(size=(3, 4, 7)).astype(np.float32) * 3
LABELS = np.array([[5, 2, 1, 0], [3, 1, IGNORED, IGNORED], [0, 0, 0, 0]])


def log_p(row, token):
    """By hand, in float64."""
    logits = LOGITS[row, token].astype(np.float64)
    return logits[LABELS[row, token]] - np.log(np.exp(logits).sum())


def test_cross_entropy_is_the_sum_over_labels_that_are_no_padding():
    total, count = token_cross_entropy(jnp.asarray(LOGITS), LABELS)
    expected = -sum(log_p(*place) for place in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert count == 5


def test_sums_of_parts_are_the_sum_of_the_whole():
    whole = token_cross_entropy(jnp.asarray(LOGITS), LABELS)
    parts = [token_cross_entropy(jnp.asarray(LOGITS[i : i + 1]), LABELS[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)


def test_sequence_log_probability_sums_a_row():
    rows = sequence_log_probability(jnp.asarray(LOGITS), LABELS)
    expected = [log_p(0, 0) + log_p(0, 1) + log_p(0, 2), log_p(1, 0) + log_p(1, 1), 0.0]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_gradient_is_softmax_minus_one_hot_and_zero_at_padding():
    gradient = jax.grad(lambda logits: token_cross_entropy(logits, LABELS)[0])(jnp.asarray(LOGITS))
    expected = np.array(jax.nn.softmax(LOGITS[0, 0]))
    expected[LABELS[0, 0]] -= 1
    np.testing.assert_allclose(gradient[0, 0], expected, atol=1e-6)
    assert not gradient[0, 3].any()
    assert not gradient[1, 2:].any()


@pytest.mark.parametrize("pad", [0, 6])
def test_padding_is_what_the_tokenizer_calls_it(pad):
    assert token_cross_entropy(jnp.asarray(LOGITS), np.full((3, 4), pad), pad=pad)[1] == 0
