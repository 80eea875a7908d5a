"""Weights arranged for decoding steps: the same products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lamp_jax.models.layers import project
from lamp_jax.models.lora import Adapted
from lamp_jax.models.quantized import Quantized, quantize
from lamp_jax.models.step_weight import StepWeight, arranged
from lamp_jax.sharding import DATA_PARALLEL, RULES
from tests.models.tiny import GATED, TIED, build


def _random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("subscripts", "shape", "x", "inputs"),
    [
        ("btd,df->btf", (6, 10), (2, 3, 6), 1),
        ("btd,dhk->bthk", (6, 2, 5), (2, 3, 6), 1),
        ("bthk,hkd->btd", (2, 5, 6), (2, 3, 2, 5), 2),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "adapted", "quantized"])
def test_an_arranged_weight_has_the_same_product(subscripts, shape, x, inputs, kind):
    weight, rows, outputs = nnx.Param(_random(*shape)), _random(*x), shape[inputs:]
    if kind == "quantized":
        steps, scale = quantize(np.asarray(weight[...])[None], inputs=inputs)
        weight = Quantized(jnp.asarray(steps[0]), jnp.asarray(scale[0]))
    if kind == "adapted":
        down, up = _random(2, *shape[:inputs], 4), _random(2, 4, *outputs)
        weight = Adapted(weight, down, up, scale=0.5, rate=0.0, key=None)
    found = project(subscripts, rows, arranged(weight, inputs=inputs), DATA_PARALLEL)
    np.testing.assert_allclose(found, project(subscripts, rows, weight, DATA_PARALLEL), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [TIED, GATED])
def test_a_model_arranged_for_steps_has_the_same_logits_and_leaves_the_model_as_it_is(config):
    model = build(config, attention="rows")
    before = jax.tree.map(np.asarray, model)
    source = model.read_source(jnp.asarray([[5, 7, 9, 1], [4, 1, 0, 0]]))
    arranged_model = model.for_steps()
    assert isinstance(arranged_model.head, StepWeight)
    tokens, cache = model.start(source, hypotheses=3, max_length=2)
    for position in range(2):
        plain, _ = model.step(tokens, jnp.int32(position), cache, source)
        found, cache = arranged_model.step(tokens, jnp.int32(position), cache, source)
        np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-5)
        tokens = jnp.argsort(found, axis=-1)[:, 0, -3:]
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, model), before)


@pytest.mark.parametrize(("attention", "rules"), [("whole", "data"), ("rows", "tensor"), ("rows", "fsdp")])
def test_only_complete_weights_are_arranged_and_only_on_a_cpu(attention, rules):
    model = build(TIED, attention=attention, rules=RULES[rules])
    assert model.for_steps() is model


def test_a_mesh_that_shards_rows_changes_nothing():
    model = build(GATED, attention="rows")
    tokens = jnp.asarray([[5, 7, 9, 1], [4, 1, 0, 0]])

    def logits(model, tokens):
        source = model.read_source(tokens)
        first, cache = model.start(source, hypotheses=2, max_length=2)
        return model.for_steps().step(first, jnp.int32(0), cache, source)[0]

    alone = jax.jit(logits)(model, tokens)
    with jax.set_mesh(jax.make_mesh((2, 1), ("data", "model"), devices=jax.devices()[:2])):
        rows = jax.device_put(tokens, jax.P("data"))
        found = jax.jit(logits)(build(GATED, attention="rows"), rows)
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-5)
