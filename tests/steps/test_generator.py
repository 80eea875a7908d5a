"""One update of the generator."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lamp_jax.config import Learning
from lamp_jax.models.generator import decoder_inputs
from lamp_jax.models.t5 import T5
from lamp_jax.sharding import DATA_PARALLEL, make_mesh, place_batch
from lamp_jax.steps.generator import generator_loss
from lamp_jax.steps.update import make_optimizer, make_update, start
from tests.models.tiny import GATED

CONFIG = replace(GATED, num_layers=1, num_decoder_layers=1, dropout_rate=0.0)


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        yield


def batch():
    rng = np.random.default_rng(0)
    source = rng.integers(3, 32, (4, 8)).astype(np.int32)
    target = rng.integers(3, 32, (4, 4)).astype(np.int32)
    target[1:, 2:] = 0  # rows of unequal length, so that a mean of means would show
    return source, target


def optimizer(**changes):
    settings = {"learning_rate": 1e-2, "warmup_ratio": 0.0, "weight_decay": 0.0, "clip": 1.0}
    return make_optimizer(Learning(**(settings | changes)), 40)


@cache
def compiled(*, accumulation=1, dropout_rate=0.0, **changes):
    """The first state and the update of a small model; compiled once for all tests that use it."""
    graph, params = nnx.split(T5(replace(CONFIG, dropout_rate=dropout_rate), rngs=nnx.Rngs(0)))
    transformation = optimizer(**changes)
    loss = generator_loss(graph)
    update = make_update(loss, transformation, seed=0, accumulation=accumulation, rules=DATA_PARALLEL)
    return start(params, transformation), update


def after(steps, **settings):
    state, update = compiled(**settings)
    state, losses = jax.tree.map(jnp.copy, state), []  # the update donates its argument
    for _ in range(steps):
        state, metrics = update(state, place_batch(batch()))
        losses.append(float(metrics["loss"]))
    return state, losses


def test_the_loss_is_the_mean_over_target_tokens():
    model = T5(CONFIG, rngs=nnx.Rngs(0))
    source, target = map(jnp.asarray, batch())
    logits = model.decode(decoder_inputs(target, CONFIG), model.encode(source), model.source_mask(source))
    each = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, target))
    real = np.asarray(target) != 0
    _, losses = after(1)
    assert losses[0] == pytest.approx(float(each[real].mean()), rel=1e-5)


def test_updates_reduce_the_loss():
    _, losses = after(40)
    assert losses[-1] < 0.2 * losses[0]


def test_accumulated_microbatches_make_the_same_update():
    complete, parts = after(3)[0], after(3, accumulation=2)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), complete.params, parts.params)


def test_the_learning_rate_warms_up_from_zero():
    """HF's linear schedule: the first update has learning rate 0."""
    model = nnx.state(T5(CONFIG, rngs=nnx.Rngs(0)))
    state, _ = after(1, warmup_ratio=0.5)
    jax.tree.map(np.testing.assert_array_equal, state.params, model)


def test_weight_decay_excludes_norms_and_position_biases():
    decayed, plain = (after(1, weight_decay=d)[0].params for d in (1.0, 0.0))
    pairs = zip(nnx.to_flat_state(decayed), nnx.to_flat_state(plain), strict=True)
    spared = {".".join(path): bool(np.array_equal(a[...], b[...])) for (path, a), (_, b) in pairs}
    assert spared == {name: "norm" in name or "positions" in name for name in spared}


def test_dropout_is_drawn_from_seed_and_step():
    first, second, dry = (after(3, dropout_rate=rate)[1] for rate in (0.3, 0.3, 0.0))
    assert first == second
    assert first != dry
