from functools import cache
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from lamp_jax.losses import (
    IGNORED,
    expected_reward_loss,
    kd_loss,
    kd_loss_of_probabilities,
    reinforce_loss,
    sample_items,
    sequence_log_probability,
    token_cross_entropy,
)

LOGITS = np.random.default_rng(0).normal(size=(3, 4, 7)).astype(np.float32) * 3
LABELS = np.array([[5, 2, 1, 0], [3, 1, IGNORED, IGNORED], [0, 0, 0, 0]])


def log_p(row, token):
    """Log-probability of the label, computed in float64."""
    logits = LOGITS[row, token].astype(np.float64)
    return logits[LABELS[row, token]] - np.log(np.exp(logits).sum())


def test_cross_entropy_is_the_sum_over_labels_without_padding():
    total, count = token_cross_entropy(jnp.asarray(LOGITS), LABELS, pad=0)
    expected = -sum(log_p(*place) for place in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert count == 5


def test_sums_of_microbatches_equal_the_sum_of_the_batch():
    complete = token_cross_entropy(jnp.asarray(LOGITS), LABELS, pad=0)
    parts = [token_cross_entropy(jnp.asarray(LOGITS[i : i + 1]), LABELS[i : i + 1], pad=0) for i in range(3)]
    np.testing.assert_allclose(complete, np.sum(parts, axis=0), rtol=1e-6)


def test_sequence_log_probability_sums_a_row():
    rows = sequence_log_probability(jnp.asarray(LOGITS), LABELS, pad=0)
    expected = [log_p(0, 0) + log_p(0, 1) + log_p(0, 2), log_p(1, 0) + log_p(1, 1), 0.0]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_gradient_is_softmax_minus_one_hot_and_zero_at_padding():
    gradient = jax.grad(lambda logits: token_cross_entropy(logits, LABELS, pad=0)[0])(jnp.asarray(LOGITS))
    expected = np.array(jax.nn.softmax(LOGITS[0, 0]))
    expected[LABELS[0, 0]] -= 1
    np.testing.assert_allclose(gradient[0, 0], expected, atol=1e-6)
    assert not gradient[0, 3].any()
    assert not gradient[1, 2:].any()


@pytest.mark.parametrize("pad", [0, 6])
def test_padding_is_the_token_of_the_tokenizer(pad):
    assert token_cross_entropy(jnp.asarray(LOGITS), np.full((3, 4), pad), pad=pad)[1] == 0


# Four questions of four items; the last has none.
SCORES: Any = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32) * 2
REWARDS: Any = np.random.default_rng(2).uniform(size=(4, 4)).astype(np.float32)
MASK: Any = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
BASELINE: Any = np.array([0.3, 0.0, 0.9, 0.5], np.float32)


def policy(row, scores=SCORES):
    """pi(d | x) over one question's items, float64, 0 elsewhere."""
    return scipy.special.softmax(np.where(MASK[row], scores[row].astype(np.float64), -np.inf))


def gradient_of(loss, scores=SCORES):
    return np.asarray(jax.grad(lambda scores: jnp.sum(loss(scores)))(jnp.asarray(scores)))


def divergence(row, score_temperature, reward_temperature):
    real = MASK[row]
    target = scipy.special.softmax(REWARDS[row, real].astype(np.float64) / reward_temperature)
    found = scipy.special.softmax(SCORES[row, real].astype(np.float64) / score_temperature)
    return scipy.stats.entropy(target, found)


def test_kd_of_two_items_by_hand():
    """Rewards give 3/4 and 1/4, scores 1/2 and 1/2: KL = 3/4 log(3/2) + 1/4 log(1/2)."""
    scores, rewards = jnp.zeros((1, 2)), jnp.array([[np.log(3.0), 0.0]])
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    np.testing.assert_allclose(kd_loss(scores, rewards, jnp.ones((1, 2), bool)), [expected], rtol=1e-5)
    # At T' = 2 the rewards must be twice as far apart for the same target; the loss is then twice as large.
    found = kd_loss(scores, 2 * rewards, jnp.ones((1, 2), bool), reward_temperature=2.0)
    np.testing.assert_allclose(found, [2 * expected], rtol=1e-5)


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.1), (2.0, 0.7)])
def test_kd_is_the_divergence_of_the_policy_from_the_rewards_over_real_items(temperatures):
    found = kd_loss(SCORES, REWARDS, MASK, score_temperature=temperatures[0], reward_temperature=temperatures[1])
    expected = [np.prod(temperatures) * divergence(row, *temperatures) for row in range(3)]
    np.testing.assert_allclose(found, [*expected, 0.0], rtol=1e-4, atol=1e-6)


def test_kd_gradient_is_the_difference_of_the_distributions_times_the_reward_temperature():
    """d/dscore of T T' KL is T' (pi - p): T is divided out, so that gradients keep their size."""
    for score_temperature, reward_temperature in ((1.0, 1.0), (0.1, 1.0), (3.0, 0.5)):
        found = gradient_of(
            lambda scores, one=score_temperature, other=reward_temperature: kd_loss(
                scores, REWARDS, MASK, score_temperature=one, reward_temperature=other
            )
        )
        for row in range(3):
            pull = policy(row, SCORES / score_temperature) - policy(row, REWARDS / reward_temperature)
            np.testing.assert_allclose(found[row], reward_temperature * pull, atol=2e-6)


def test_kd_keeps_its_size_at_high_temperatures():
    """At T = T' both distributions flatten; their difference falls by T, and T T' undoes one division each."""
    norms = [
        np.linalg.norm(
            gradient_of(
                lambda scores, t=temperature: kd_loss(scores, REWARDS, MASK, score_temperature=t, reward_temperature=t)
            )
        )
        for temperature in (10.0, 1000.0)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_kd_is_zero_where_scores_are_rewards_up_to_a_constant():
    shifted = REWARDS + np.array([[7.0], [-3.0], [0.0], [1.0]], np.float32)
    np.testing.assert_allclose(kd_loss(shifted, REWARDS, MASK), 0, atol=1e-6)
    assert np.abs(gradient_of(lambda scores: kd_loss(scores, REWARDS, MASK), shifted)).max() < 1e-6
    np.testing.assert_allclose(kd_loss(2 * shifted, REWARDS, MASK, score_temperature=2.0), 0, atol=1e-6)


ITEMS: Any = np.array([[2, 0], [2, 0], [1, 3], [0, 1]])
LOSSES = {
    "kd": lambda scores, rewards: kd_loss(scores, rewards, MASK),
    "expected": lambda scores, rewards: expected_reward_loss(scores, rewards, MASK, BASELINE),
    "sampled": lambda scores, rewards: reinforce_loss(scores, rewards, MASK, BASELINE, ITEMS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_questions_without_items_and_padding_do_not_change_the_loss(name):
    value, gradient = LOSSES[name](SCORES, REWARDS), gradient_of(lambda scores: LOSSES[name](scores, REWARDS))
    assert value[3] == 0
    assert np.isfinite(gradient).all()
    assert not gradient[~MASK].any()
    assert np.abs(gradient[:3]).max() > 0.01
    spoiled = [np.where(MASK, values, 50.0).astype(np.float32) for values in (SCORES, REWARDS)]
    np.testing.assert_array_equal(LOSSES[name](*spoiled), value)


def test_kd_of_probabilities_by_hand():
    """Scores give 3/4 and 1/4, which are used as logits again; the rewards' target is 1/2 and 1/2."""
    found = kd_loss_of_probabilities(jnp.array([[np.log(3.0), 0.0]]), jnp.zeros((1, 2)))
    expected = 0.5 * np.log(1 + np.exp(-0.5)) + 0.5 * np.log(1 + np.exp(0.5))
    np.testing.assert_allclose(found, [expected], rtol=1e-5)
    # One temperature divides both.
    found = kd_loss_of_probabilities(jnp.array([[2 * np.log(3.0), 0.0]]), jnp.zeros((1, 2)), temperature=2.0)
    np.testing.assert_allclose(found, [expected], rtol=1e-5)
    found = kd_loss_of_probabilities(jnp.zeros((1, 2)), jnp.array([[0.5 * np.log(3.0), 0.0]]), temperature=0.5)
    np.testing.assert_allclose(found, [np.log(2.0)], rtol=1e-5)


def test_the_expected_reward_is_weighted_by_the_policy():
    found = expected_reward_loss(SCORES, REWARDS, MASK, BASELINE)
    expected = [-(policy(row) @ (REWARDS[row] - BASELINE[row])) for row in range(3)]
    np.testing.assert_allclose(found, [*expected, 0.0], rtol=1e-5, atol=1e-6)


@cache
def reinforce(count):
    """scores, rewards, mask, baseline, items [B, count] -> (losses [B], their gradients [B, N]); compiled once."""

    def total(scores, rewards, mask, baseline, items):
        losses = reinforce_loss(scores, rewards, mask, baseline, items)
        return jnp.sum(losses), losses

    compiled = jax.jit(jax.value_and_grad(total, has_aux=True))

    def run(*given):
        (_, losses), gradients = compiled(*map(jnp.asarray, given))
        return np.asarray(losses, np.float64), np.asarray(gradients, np.float64)

    return run


def orders(row, count):
    """Every order in which `count` items of a question can be drawn, with its probability, and the rest as places."""
    real = [int(item) for item in np.flatnonzero(MASK[row])]
    drawn = min(count, len(real))
    for order in permutations(real, drawn):
        left, probability = policy(row), 1.0
        for item in order:
            probability *= left[item] / left.sum()
            left = np.where(np.arange(4) == item, 0.0, left)
        others = [item for item in range(4) if item not in real][: count - drawn]
        yield (*order, *others), drawn, probability


def reinforced(row, items, baseline=None):
    """Losses and gradients of one question for all these items [M, K]."""
    items = np.array(items)
    rows = [np.broadcast_to(values[row], (len(items), 4)) for values in (SCORES, REWARDS, MASK)]
    baselines = np.full(len(items), BASELINE[row] if baseline is None else baseline, np.float32)
    return reinforce(items.shape[1])(*rows, baselines, items)


@pytest.mark.parametrize("row", range(3))
def test_the_gradient_of_the_expected_reward_equals_the_mean_of_reinforce(row):
    """Over every single item, weighted by its probability."""
    drawn = list(orders(row, 1))
    _, gradients = reinforced(row, [items for items, _, _ in drawn])
    average = np.array([probability for _, _, probability in drawn]) @ gradients
    expected = gradient_of(lambda scores: expected_reward_loss(scores, REWARDS, MASK, BASELINE))[row]
    np.testing.assert_allclose(average, expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("row", range(3))
def test_reinforce_uses_the_log_probability_of_the_drawn_order(row, count):
    """Plackett-Luce: each draw is from the remaining items. A question with fewer items draws all of them."""
    drawn = list(orders(row, count))
    assert sum(probability for _, _, probability in drawn) == pytest.approx(1)
    losses, _ = reinforced(row, [items for items, _, _ in drawn])
    for loss, (items, real, probability) in zip(losses, drawn, strict=True):
        gain = REWARDS[row, list(items[:real])].mean() - BASELINE[row]
        assert loss == pytest.approx(-gain * np.log(probability), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("row", range(3))
def test_the_mean_of_reinforce_equals_the_gradient_of_the_expected_mean_reward(row, count):
    """Over all orders of all draws, against central differences in float64 of the enumerated expectation."""
    drawn = list(orders(row, count))
    _, gradients = reinforced(row, [items for items, _, _ in drawn])
    average = np.array([probability for _, _, probability in drawn]) @ gradients

    def expectation(scores):
        total, weights = 0.0, np.where(MASK[row], np.exp(scores), 0.0)
        for items, real, _ in drawn:
            left, probability = weights.copy(), 1.0
            for item in items[:real]:
                probability *= left[item] / left.sum()
                left[item] = 0.0
            total += probability * float(REWARDS[row, list(items[:real])].astype(np.float64).mean())
        return total

    scores, step = SCORES[row].astype(np.float64), 1e-5
    slopes = [
        (expectation(scores + step * axis) - expectation(scores - step * axis)) / (2 * step) for axis in np.eye(4)
    ]
    np.testing.assert_allclose(average, -np.array(slopes), atol=1e-5)


def test_items_are_drawn_with_the_probabilities_of_the_policy():
    """Pearson's chi-square over all orders of two draws from three items, with a fixed key."""
    draws = 20_000
    scores, mask = (jnp.broadcast_to(values[2], (draws, 4)) for values in (SCORES, MASK))
    drawn = np.asarray(sample_items(jax.random.key(0), scores, mask, count=2))
    cases = list(orders(2, 2))
    observed = np.array([(drawn == items).all(axis=1).sum() for items, _, _ in cases])
    assert observed.sum() == draws  # so no padding item was drawn
    expected = draws * np.array([probability for _, _, probability in cases])
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


def test_padding_items_are_drawn_last():
    """Whatever the scores: real items far below, others far above."""
    scores = jnp.where(MASK, -1e4, 1e4)
    for seed in range(20):
        drawn = np.asarray(sample_items(jax.random.key(seed), scores, jnp.asarray(MASK), count=4))
        assert (np.sort(drawn, axis=1) == np.arange(4)).all()
        for row, count in enumerate(MASK.sum(axis=1)):
            assert MASK[row, drawn[row, :count]].all()
