"""One update of a retriever."""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lamp_jax import losses
from lamp_jax.models.bert import NO_TOKEN
from lamp_jax.options import CORRECT, TrainRetriever
from lamp_jax.sharding import RULES, make_mesh, place_batch
from lamp_jax.steps.retriever import choose_objective, retriever_loss, score_candidates
from lamp_jax.steps.update import make_update, start
from tests.models.tiny import BERT, build_bert

CONFIG = replace(BERT, num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
KD = TrainRetriever("LaMP-2", "questions", ("feedback",), "output", score_temperature=0.7, reward_temperature=0.4)
PADDED = replace(CORRECT, ropg="padded")
COUNTS = (4, 1, 3, 0, 2, 4, 0, 3)
"""Number of candidates of the eight questions, of which two are padding."""
QUESTIONS = sum(count > 0 for count in COUNTS)


def make_batch() -> Any:
    random = np.random.default_rng(0)
    tokens = np.full((8, 5, 6), NO_TOKEN, np.int32)
    rewards, mask = np.zeros((8, 4), np.float32), np.zeros((8, 4), bool)
    baseline = random.uniform(size=8).astype(np.float32)
    for row, count in enumerate(COUNTS):
        for place in range((1 + count) if count else 0):
            length = random.integers(2, 7)
            tokens[row, place, :length] = random.integers(0, 48, length)
        rewards[row, :count], mask[row, :count] = random.uniform(size=count), True
    return tokens, rewards, mask, baseline


def one_device():
    return jax.set_mesh(make_mesh(devices=jax.devices()[:1]))


@cache
def compiled(accumulation=1):
    """The first state and the update; compiled once for all tests that use it."""
    with one_device():
        model = build_bert(CONFIG)
        graph, params = nnx.split(model)
        # Not Adam, which makes full steps of gradients that are only rounding error (the keys' biases).
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.2))
        loss = retriever_loss(graph, choose_objective(KD, compatibility=CORRECT))
        update = make_update(loss, optimizer, seed=0, accumulation=accumulation, rules=model.rules)
        return start(params, optimizer), update


def after(steps, batch=None, **settings):
    state, update = compiled(**settings)
    state, found = jax.tree.map(jnp.copy, state), []  # the update donates its argument
    with one_device():
        for _ in range(steps):
            state, metrics = update(state, place_batch(batch or make_batch()))
            found.append(float(metrics["loss"]))
    return state, found


@cache
def score():
    return jax.jit(lambda model, tokens: score_candidates(model, tokens))


def expected_scores() -> Any:
    """Scores of the batch, on one device."""
    with one_device():
        return np.asarray(score()(build_bert(CONFIG), place_batch(make_batch()[0])))


def test_scores_are_dot_products_of_the_query_with_each_document():
    tokens = make_batch()[0]
    model = build_bert(CONFIG)
    vectors = np.asarray(jax.jit(lambda model, rows: model.embed(rows))(model, tokens.reshape(40, 6)), np.float64)
    vectors = vectors.reshape(8, 5, -1)
    np.testing.assert_allclose(expected_scores(), np.einsum("bnd,bd->bn", vectors[:, 1:], vectors[:, 0]), atol=1e-4)


def test_the_loss_is_the_mean_over_questions_that_have_items():
    _, rewards, mask, _ = make_batch()
    each = losses.kd_loss(expected_scores(), rewards, mask, score_temperature=0.7, reward_temperature=0.4)
    _, found = after(1)
    assert found[0] == pytest.approx(float(each.sum()) / QUESTIONS, rel=1e-5)


def test_updates_reduce_the_loss():
    _, found = after(30)
    assert found[-1] < 0.2 * found[0]


def assert_same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, other)


def test_accumulated_microbatches_make_the_same_update():
    """Microbatches have one, two and no padding rows, so that a mean of means would be detected."""
    (complete, losses_whole), (parts, losses_parts) = after(3), after(3, accumulation=4)
    assert_same(complete.params, parts.params)
    assert losses_parts == pytest.approx(losses_whole, rel=1e-5)


def test_padding_rows_of_the_batch_change_nothing():
    tokens, rewards, mask, baseline = make_batch()
    filling = ~mask.any(axis=1)
    # Put tokens into those rows; only the mask excludes them.
    tokens, rewards, baseline = tokens.copy(), rewards.copy(), baseline.copy()
    tokens[filling], rewards[filling], baseline[filling] = 5, 3.0, -2.0
    spoiled = after(2, (tokens, rewards, mask, baseline))
    clean = after(2)
    assert spoiled[1] == clean[1]
    jax.tree.map(np.testing.assert_array_equal, spoiled[0].params, clean[0].params)


def test_a_batch_of_only_padding_rows_has_no_loss_and_no_gradient():
    tokens, rewards, mask, baseline = make_batch()
    state, found = after(1, (np.full_like(tokens, NO_TOKEN), rewards, np.zeros_like(mask), baseline))
    assert found == [0.0]
    jax.tree.map(np.testing.assert_array_equal, state.params, compiled()[0].params)


def loss_on(mesh, rules, objective):
    """Loss and gradient of the batch on a mesh."""
    with jax.set_mesh(mesh):
        graph, params = nnx.split(build_bert(CONFIG, rules=RULES[rules]))
        loss_sum = retriever_loss(graph, objective)
        run = jax.jit(jax.value_and_grad(lambda params, batch: loss_sum(params, batch, jax.random.key(0))[0]))
        return jax.device_get(run(params, place_batch(make_batch(), rules=RULES[rules])))


@cache
def on_one_device():
    return loss_on(make_mesh(devices=jax.devices()[:1]), "data", choose_objective(KD, compatibility=CORRECT))


@pytest.mark.parametrize(("shape", "rules"), [((8, 1), "data"), ((4, 2), "tensor"), ((2, 4), "fsdp+tensor")])
def test_the_loss_on_a_mesh_equals_that_of_one_device(shape, rules):
    (found, gradient), (expected, wanted) = (
        loss_on(make_mesh(*shape), rules, choose_objective(KD, compatibility=CORRECT)),
        on_one_device(),
    )
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, wanted)


def objective_of(seed=0, **changes) -> Any:
    """Losses by the objective that these options choose, for fixed scores."""
    random = np.random.default_rng(1)
    scores = random.normal(size=(8, 4)).astype(np.float32)
    _, rewards, mask, baseline = make_batch()
    given: Any = tuple(map(jnp.asarray, (scores, rewards, mask, baseline)))
    options = replace(KD, **changes)
    objective = choose_objective(options, compatibility=options.compatibility)
    return np.asarray(objective(*given, jax.random.key(seed))), given


def test_kd_uses_its_two_temperatures():
    found, (scores, rewards, mask, _) = objective_of()
    expected = losses.kd_loss(scores, rewards, mask, score_temperature=0.7, reward_temperature=0.4)
    np.testing.assert_array_equal(found, expected)


def test_kd_padded_equals_the_public_codes_for_questions_with_items():
    found, (scores, rewards, mask, _) = objective_of(compatibility=PADDED, reward_temperature=0.7)
    expected = losses.kd_loss_of_probabilities(scores, rewards, temperature=0.7)
    np.testing.assert_array_equal(found, np.where(mask.any(axis=1), expected, 0))


@pytest.mark.parametrize("compatibility", [CORRECT, PADDED])
def test_rl_expected_equals_the_expected_reward(compatibility):
    found, given = objective_of(method="rl", gradient="expected", compatibility=compatibility)
    np.testing.assert_array_equal(found, losses.expected_reward_loss(*given))


@pytest.mark.parametrize("count", [1, 3, 9])
def test_rl_sampled_draws_at_most_all_items(count):
    found, (scores, rewards, mask, baseline) = objective_of(seed=4, method="rl", sampled_items=count)
    items = losses.sample_items(jax.random.key(4), scores, mask, count=min(count, 4))
    np.testing.assert_array_equal(found, losses.reinforce_loss(scores, rewards, mask, baseline, items))
    assert not np.array_equal(found, objective_of(seed=5, method="rl", sampled_items=count)[0])
