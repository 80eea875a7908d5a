import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from lamp_jax.errors import LampError
from lamp_jax.models.generator import decoder_inputs
from lamp_jax.models.layers import normal
from lamp_jax.models.t5 import T5
from lamp_jax.models.t5_config import SIZES, T5Config
from lamp_jax.sharding import (
    DATA_PARALLEL,
    FSDP,
    FSDP_AND_TENSOR_PARALLEL,
    TENSOR_PARALLEL,
    make_mesh,
    place_batch,
)
from tests.models.tiny import GATED, TIED, build, make_batch, mean_loss


@pytest.mark.parametrize("config", [TIED, GATED], ids=["tied", "gated"])
def test_cached_decoding_equals_full_decoding(config):
    model = build(config)
    tokens, labels = make_batch()
    target = decoder_inputs(jnp.asarray(labels), config)

    @jax.jit
    def run(model):
        source = model.read_source(tokens)
        first, cache = model.start(source, hypotheses=1, max_length=target.shape[1])

        def step(cache, xs):
            token, position = xs
            logits, cache = model.step(token[:, None], position, cache, source)
            return cache, logits[:, 0]

        _, stepped = jax.lax.scan(step, cache, (target.T, jnp.arange(target.shape[1])))
        at_once = model.logits(model.read_target(jnp.asarray(labels), source))
        return first, model.target_logits(tokens, jnp.asarray(labels)), jnp.swapaxes(stepped, 0, 1), at_once

    first, full, stepped, at_once = run(model)
    np.testing.assert_array_equal(first, target[:, :1])
    np.testing.assert_allclose(stepped, full, atol=1e-5)
    np.testing.assert_allclose(at_once, full, atol=1e-5)


@pytest.mark.parametrize("attention", ["whole", "rows"])
def test_hypotheses_continue_those_that_were_chosen(attention):
    """Each step's logits are those of the hypothesis's own tokens, whatever hypotheses wrote them to the cache."""
    model, rng, hypotheses, length = build(TIED, attention=attention), np.random.default_rng(0), 3, 5
    tokens = make_batch(rows=2)[0]
    chosen = rng.integers(0, hypotheses, (length, 2, hypotheses))
    drawn = rng.integers(2, 48, (length, 2, hypotheses))

    @jax.jit
    def run(model):
        source = model.read_source(tokens)
        last, cache = model.start(source, hypotheses=hypotheses, max_length=length)
        stepped = []
        for position in range(length):
            logits, cache = model.step(last, jnp.int32(position), cache, source)
            stepped.append(logits)
            last, cache = jnp.asarray(drawn[position]), model.choose(cache, jnp.asarray(chosen[position]))
        return jnp.stack(stepped)

    stepped, full = run(model), jax.jit(lambda model, labels: model.target_logits(tokens, labels))
    paths = np.zeros((2, hypotheses, 0), int)
    for position in range(length):
        for one in range(hypotheses):
            labels = np.concatenate([paths[:, one], np.zeros((2, length - position), int)], axis=1)
            expected = full(model, jnp.asarray(labels))[:, position]
            np.testing.assert_allclose(stepped[position][:, one], expected, atol=1e-5, err_msg=f"{position} {one}")
        parents = np.take_along_axis(paths, chosen[position][..., None], axis=1)
        paths = np.concatenate([parents, drawn[position][..., None]], axis=2)


def test_masked_tokens_change_nothing():
    model = build(GATED)
    tokens, labels = make_batch()
    mask = tokens != 0

    @jax.jit
    def read(tokens):
        return model.decode(jnp.asarray(labels), model.encode(tokens, mask=mask), mask)

    np.testing.assert_allclose(read(np.where(mask, tokens, 7)), read(tokens), atol=1e-6)


def test_a_position_sees_no_later_target():
    model = build(TIED)
    tokens, labels = make_batch()
    decode = jax.jit(lambda target: model.decode(target, model.encode(tokens), model.source_mask(tokens)))
    before, after = decode(labels), decode(np.where(np.arange(labels.shape[1]) == 3, 7, labels))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not jnp.allclose(before[:, 3:], after[:, 3:])


KEY = jax.random.key(3)


@functools.cache
def loss_and_gradients(**options):
    """Loss and gradients with dropout, so that dropout masks are compared too."""
    model = build(GATED, **options)
    return jax.device_get(jax.jit(jax.value_and_grad(mean_loss))(model, *make_batch(), KEY))


def check_gradients(gradients):
    for got, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(loss_and_gradients()[1]), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("options", [{"remat": "full"}, {"remat": "attention", "attention": "rows"}], ids=str)
def test_remat_and_attention_options_change_no_gradient(options):
    loss, gradients = loss_and_gradients(**options)
    np.testing.assert_allclose(loss, loss_and_gradients()[0], rtol=1e-6)
    check_gradients(gradients)


def test_bfloat16_is_near_and_logits_and_gradients_are_float32():
    model = build(GATED, dtype=jnp.bfloat16)
    tokens, labels = make_batch()
    logits = jax.eval_shape(lambda model: model.decode(labels, model.encode(tokens), model.source_mask(tokens)), model)
    assert logits.dtype == jnp.float32
    gradients = jax.eval_shape(jax.grad(mean_loss), model, tokens, labels)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(jax.jit(mean_loss)(model, tokens, labels, KEY), loss_and_gradients()[0], rtol=0.02)


def test_dropout_follows_its_key():
    loss = functools.partial(jax.jit(mean_loss), build(TIED), *make_batch())
    one, again, other = (float(loss(jax.random.key(seed))) for seed in (0, 0, 1))
    assert one == again
    assert len({one, other, float(loss())}) == 3


def test_ignored_labels_are_read_as_padding():
    labels = jnp.array([[5, 1, -100], [7, 8, 1]])
    assert decoder_inputs(labels, TIED).tolist() == [[0, 5, 1], [0, 7, 8]]


@pytest.mark.parametrize(
    ("data", "model_axis", "rules"),
    [
        pytest.param(1, 1, FSDP, marks=pytest.mark.slow),
        pytest.param(8, 1, FSDP, marks=pytest.mark.slow),
        (4, 2, FSDP_AND_TENSOR_PARALLEL),
    ],
)
def test_gradients_do_not_depend_on_the_mesh(data, model_axis, rules):
    with jax.set_mesh(make_mesh(data, model_axis, devices=jax.devices()[: data * model_axis])):
        model = build(GATED, rules=rules, attention="rows")
        loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(model, *place_batch(make_batch()), KEY)
    for parameter, gradient in zip(jax.tree.leaves(model), jax.tree.leaves(gradients), strict=True):
        assert gradient.sharding == parameter.sharding
    np.testing.assert_allclose(loss, loss_and_gradients()[0], atol=1e-5)
    check_gradients(gradients)


def test_loss_does_not_depend_on_the_mesh():
    with jax.set_mesh(make_mesh(2, 4)):
        model = build(GATED, rules=TENSOR_PARALLEL)
        loss = jax.jit(mean_loss)(model, *place_batch(make_batch()), KEY)
    np.testing.assert_allclose(loss, loss_and_gradients()[0], atol=1e-5)


def test_initial_parameters_do_not_depend_on_the_mesh():
    def draw():
        return normal(nnx.Rngs(0), (16, 48), deviation=0.1, rules=FSDP_AND_TENSOR_PARALLEL, axes=("embed", "mlp"))[...]

    expected = draw()
    with jax.set_mesh(make_mesh(4, 2)):
        drawn = draw()
    assert drawn.sharding.spec == P("data", "model")
    np.testing.assert_array_equal(drawn, expected)


def test_parameters_are_sharded_by_the_rules():
    with jax.set_mesh(make_mesh(4, 2)):
        model = build(GATED, rules=FSDP_AND_TENSOR_PARALLEL)
    assert model.embedding[...].sharding.spec == P("model", "data")
    assert model.encoder.attention.query[...].sharding.spec == P(None, "data", "model", None)
    assert model.decoder.cross.output[...].sharding.spec == P(None, "model", None, "data")
    assert model.decoder.mlp.gate[...].sharding.spec == P(None, "data", "model")
    assert model.decoder.mlp.outer[...].sharding.spec == P(None, "model", "data")
    assert model.encoder.mlp_norm.scale[...].sharding.spec == P(None, None)
    # [2, 16, 4, 8] over 4 x 2 devices
    assert model.encoder.attention.query[...].addressable_shards[0].data.shape == (2, 4, 2, 8)


def test_a_size_that_does_not_divide_is_an_error_with_the_remedy():
    with (
        jax.set_mesh(make_mesh(1, 8)),
        pytest.raises(LampError, match="num_heads 4 does not divide over 8 model shards; use 8"),
    ):
        build(GATED, rules=TENSOR_PARALLEL)


COUNTS = {
    # Published sizes, in parameters.
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "flan-t5-small": 76_961_152,
    "flan-t5-base": 247_577_856,
    "flan-t5-large": 783_150_080,
    "flan-t5-xl": 2_849_757_184,
    "flan-t5-xxl": 11_135_332_352,
}


@pytest.mark.parametrize("name", SIZES)
def test_named_sizes_have_the_published_number_of_parameters(name):
    model = jax.eval_shape(lambda: T5(SIZES[name], rngs=nnx.Rngs(0), rules=DATA_PARALLEL))
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == COUNTS[name]


@pytest.mark.parametrize("config", [TIED, GATED, *SIZES.values()])
def test_config_survives_hf_json(config):
    assert T5Config.from_hf(config.to_hf(), source="config.json") == config


def test_old_configs_without_the_newer_names_are_v1_0():
    config = T5Config.from_hf({"model_type": "t5", "num_layers": 12, "eos_token_id": [1]}, source="config.json")
    assert config.tie_word_embeddings
    assert (config.feed_forward_proj, config.num_decoder_layers, config.eos_token_id) == ("relu", 12, 1)


@pytest.mark.parametrize("scaled", [True, False])
def test_scale_decoder_outputs_of_newer_configs_is_read(scaled):
    values = {"model_type": "t5", "tie_word_embeddings": True, "scale_decoder_outputs": scaled}
    config = T5Config.from_hf(values, source="config.json")
    assert (config.tie_word_embeddings, config.scales_outputs) == (True, scaled)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"model_type": "t5", "feed_forward_proj": "gated-silu"}, "'gated-silu'.*not supported"),
        ({"model_type": "t5", "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "activation 'gelu'"),
        ({"model_type": "t5", "pad_token_id": [1, 2]}, r"pad_token_id \[1, 2\]"),
    ],
)
def test_unsupported_values_are_a_named_error(values, message):
    with pytest.raises(LampError, match=rf"dir/config\.json: .*{message}"):
        T5Config.from_hf(values, source="dir/config.json")
