import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from lamp_jax.errors import LampError
from lamp_jax.models.bert import NO_TOKEN, Bert, BertConfig
from lamp_jax.models.hf_names import bert_places
from lamp_jax.models.weights import hf_tensors, load_bert, save_bert
from lamp_jax.sharding import FSDP, FSDP_AND_TENSOR_PARALLEL, RULES, TENSOR_PARALLEL, make_mesh, place_batch
from tests.models.tiny import BERT, build_bert

LENGTHS = (12, 1, 5, 12, 3, 7, 2, 9)
KEY = jax.random.key(3)


def make_texts(seed=0):
    """[8, 12]: texts of the lengths above, [PAD] (0) among their tokens."""
    random = np.random.default_rng(seed)
    tokens = np.full((len(LENGTHS), 12), NO_TOKEN, np.int32)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = random.integers(0, 48, length)
    return tokens


TEXTS = make_texts()


pooled = jax.jit(lambda model, tokens, key=None: model.embed(tokens, key=key))
hidden_states = jax.jit(lambda model, tokens: model(tokens))


def embed(tokens, config=BERT, key=None, **options):
    return np.asarray(pooled(build_bert(config, **options), tokens, key))


def hide(tokens):
    return np.asarray(hidden_states(build_bert(), tokens))


def value(model, tokens):
    """A scalar that depends on every element of every vector."""
    vectors = model.embed(tokens)
    weights = jnp.sin(jnp.arange(vectors.size, dtype=jnp.float32)).reshape(vectors.shape)
    return jnp.sum(jnp.tanh(vectors) * weights)


differentiate = jax.jit(jax.value_and_grad(value))


@functools.cache
def value_and_gradients(**options):
    return jax.device_get(differentiate(build_bert(**options), TEXTS))


def check(found, gradients):
    expected, wanted = value_and_gradients()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for got, want in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_a_vector_is_the_mean_over_the_texts_tokens():
    hidden, vectors = hide(TEXTS), embed(TEXTS)
    assert hidden.shape == (8, 12, 16)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(vectors[row], hidden[row, :length].astype(np.float64).mean(axis=0), atol=1e-6)


def test_padding_does_not_change_a_vector():
    longer = np.pad(TEXTS, ((0, 0), (0, 4)), constant_values=NO_TOKEN)
    np.testing.assert_allclose(embed(longer), embed(TEXTS), atol=1e-6)


def test_other_rows_of_the_batch_do_not_change_a_vector():
    order = np.array([3, 1, 4, 0, 5, 7, 2, 6])
    np.testing.assert_allclose(embed(TEXTS[order]), embed(TEXTS)[order], atol=1e-6)
    others = np.where(np.arange(8)[:, None] == 2, TEXTS, make_texts(seed=1))
    np.testing.assert_allclose(embed(others)[2], embed(TEXTS)[2], atol=1e-6)


def test_a_pad_token_in_a_text_is_a_token():
    texts = np.full_like(TEXTS, NO_TOKEN)
    texts[0, :3], texts[1, :3], texts[2, :2] = (5, 7, 0), (5, 0, 7), (5, 7)
    hidden, vectors = hide(texts), embed(texts)
    np.testing.assert_allclose(vectors[:2], hidden[:2, :3].mean(axis=1), atol=1e-6)
    assert np.abs(hidden[0, :2] - hidden[2, :2]).max() > 0.01


def test_the_order_of_tokens_matters():
    assert np.abs(embed(TEXTS[:, ::-1].copy()) - embed(TEXTS))[[0, 3]].max() > 0.01


def test_attention_by_rows_equals_attention_of_the_complete_batch():
    np.testing.assert_allclose(embed(TEXTS, attention="rows"), embed(TEXTS), atol=1e-5)


def test_rematerialization_changes_no_gradient():
    check(*value_and_gradients(remat="full"))


def test_a_row_of_only_padding_gives_zeros_and_finite_gradients():
    texts = TEXTS.copy()
    texts[4] = NO_TOKEN
    assert not embed(texts)[4].any()
    found, gradients = jax.device_get(differentiate(build_bert(), texts))
    assert np.isfinite(found)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
    alone = np.full_like(TEXTS, NO_TOKEN)
    for gradient in jax.tree.leaves(differentiate(build_bert(), alone)[1]):
        assert not np.asarray(gradient).any()


def test_every_parameter_has_a_gradient():
    gradients = value_and_gradients()[1]
    for path, gradient in jax.tree.leaves_with_path(gradients):
        # Softmax is invariant to a bias shared by all keys.
        assert gradient.any() or "key_bias" in jax.tree_util.keystr(path), path


def test_dropout_follows_its_key():
    one, again, other = (embed(TEXTS, key=jax.random.key(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    for vectors in (other, embed(TEXTS)):
        assert np.abs(one - vectors).max() > 0.01


def test_no_key_no_dropout():
    sober = BertConfig(**{**vars(BERT), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    np.testing.assert_array_equal(embed(TEXTS), embed(TEXTS, config=sober))


def test_attention_drops_values_out():
    only = BertConfig(**{**vars(BERT), "hidden_dropout_prob": 0.0})
    assert np.abs(embed(TEXTS, only, KEY) - embed(TEXTS)).max() > 0.01


def test_bfloat16_is_near_and_vectors_and_gradients_are_float32():
    model = build_bert(dtype=jnp.bfloat16)
    vectors = pooled(model, TEXTS)
    assert vectors.dtype == jnp.float32
    assert jax.eval_shape(lambda model: model(TEXTS), model).dtype == jnp.bfloat16
    np.testing.assert_allclose(vectors, embed(TEXTS), atol=0.1)
    gradients = jax.eval_shape(jax.grad(value), model, TEXTS)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("data", "model_axis", "sharding", "attention"),
    [(8, 1, "fsdp", "rows"), (4, 2, "fsdp+tensor", "whole"), (2, 4, "tensor", "rows")],
)
def test_values_and_gradients_do_not_depend_on_the_mesh(data, model_axis, sharding, attention):
    with jax.set_mesh(make_mesh(data, model_axis)):
        model = build_bert(rules=RULES[sharding], attention=attention)
        found, gradients = differentiate(model, place_batch(TEXTS))
    for parameter, gradient in zip(jax.tree.leaves(model), jax.tree.leaves(gradients), strict=True):
        assert gradient.sharding == parameter.sharding
    check(found, gradients)


@pytest.mark.parametrize(
    ("data", "model_axis", "sharding"),
    [
        *((8, 1, sharding) for sharding in ("data", "tensor")),
        *((4, 2, sharding) for sharding in ("data", "fsdp", "tensor")),
        *((2, 4, sharding) for sharding in ("data", "fsdp", "fsdp+tensor")),
    ],
)
def test_vectors_do_not_depend_on_the_mesh(data, model_axis, sharding):
    with jax.set_mesh(make_mesh(data, model_axis)):
        vectors = pooled(build_bert(rules=RULES[sharding], attention="rows"), place_batch(TEXTS))
    np.testing.assert_allclose(vectors, embed(TEXTS), atol=1e-5)


def test_dropout_does_not_depend_on_the_mesh():
    with jax.set_mesh(make_mesh(4, 2)):
        vectors = pooled(build_bert(rules=FSDP_AND_TENSOR_PARALLEL), place_batch(TEXTS), KEY)
    np.testing.assert_allclose(vectors, embed(TEXTS, key=KEY), atol=1e-5)


def spec_of(parameter):
    sharding = parameter[...].sharding
    assert isinstance(sharding, NamedSharding)
    return sharding.spec


def test_parameters_are_sharded_by_the_rules():
    with jax.set_mesh(make_mesh(4, 2)):
        model = build_bert(rules=FSDP_AND_TENSOR_PARALLEL)
    assert spec_of(model.words) == P("model", "data")
    assert spec_of(model.positions) == P(None, "data")
    assert spec_of(model.layers.query) == P(None, "data", "model", None)
    assert spec_of(model.layers.query_bias) == P(None, "model", None)
    assert spec_of(model.layers.outer) == P(None, "model", "data")


@pytest.mark.parametrize(
    ("values", "mesh", "rules", "message"),
    [
        ({"hidden_size": 20}, (8, 1), FSDP, "hidden_size 20 does not divide over 8 data shards; use 16 or 24"),
        ({}, (1, 8), TENSOR_PARALLEL, "num_attention_heads 4 does not divide over 8 model shards; use 8"),
        ({"intermediate_size": 30}, (2, 4), TENSOR_PARALLEL, "intermediate_size 30 does not divide over 4 model"),
        (
            {"vocab_size": 50},
            (2, 4),
            TENSOR_PARALLEL,
            "vocab_size 50 does not divide over 4 model shards; use 48 or 52",
        ),
    ],
)
def test_a_size_that_does_not_divide_is_an_error_with_the_remedy(values, mesh, rules, message):
    with jax.set_mesh(make_mesh(*mesh)), pytest.raises(LampError, match=message):
        Bert(BertConfig(**{**vars(BERT), **values}), rngs=nnx.Rngs(0), rules=rules)


def test_the_default_is_bert_base():
    model = jax.eval_shape(lambda: Bert(BertConfig(), rngs=nnx.Rngs(0)))
    # The published size without the pooler (768 * 768 + 768).
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == 109_482_240 - 590_592


@pytest.mark.parametrize("config", [BERT, BertConfig()])
def test_config_survives_hf_json(config):
    assert BertConfig.from_hf(json.loads(json.dumps(config.to_hf())), source="config.json") == config


def test_values_missing_in_a_config_are_the_defaults_of_hf():
    assert BertConfig.from_hf({"model_type": "bert", "hidden_size": 384}, source="") == BertConfig(hidden_size=384)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "t5"}, "model_type is 't5', not 'bert'"),
        ({"model_type": None}, "model_type is None, not 'bert'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
    ],
)
def test_a_config_that_is_not_supported_is_an_error_that_names_the_file(tmp_path, values, message):
    save_bert(build_bert(), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")
    with pytest.raises(LampError, match=message) as caught:
        load_bert(tmp_path)
    assert str(file) in str(caught.value)


@pytest.fixture
def directory(tmp_path):
    save_bert(build_bert(), tmp_path)
    return tmp_path


def change_tensors(directory, change):
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_saved_model_is_loaded_unchanged(directory):
    assert_same(load_bert(directory), build_bert())


def test_every_parameter_is_mapped_to_hf_tensors_exactly_once():
    model, places = build_bert(), bert_places(BERT)
    assert sum(tensor.size for tensor in hf_tensors(model, places).values()) == sum(
        leaf.size for leaf in jax.tree.leaves(model)
    )
    assert len({(place.path, place.layer) for place in places.values()}) == len(places)


def test_parameters_are_loaded_onto_the_mesh_and_saved_from_it(directory):
    with jax.set_mesh(make_mesh(4, 2)):
        model = load_bert(directory, rules=FSDP_AND_TENSOR_PARALLEL)
        save_bert(model, directory / "again")
    assert spec_of(model.layers.inner) == P(None, "data", "model")
    assert_same(load_bert(directory / "again"), build_bert())


def with_heads(tensors):
    return tensors | {"pooler.dense.weight": np.ones((16, 16), np.float32), "cls.predictions.bias": np.ones(48)}


def within_a_larger_model(tensors):
    heads = {"bert.pooler.dense.bias": np.ones(16), "cls.predictions.transform.dense.bias": np.ones(16)}
    return {f"bert.{name}": tensor for name, tensor in tensors.items()} | heads


def with_position_ids(tensors):
    return tensors | {"embeddings.position_ids": np.arange(16)[None]}


@pytest.mark.parametrize("change", [with_heads, within_a_larger_model, with_position_ids])
def test_tensors_outside_the_encoder_are_ignored(directory, change):
    change_tensors(directory, change)
    assert_same(load_bert(directory), build_bert())


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_all_mismatches_are_reported_together(directory, prefix):
    def spoil(tensors):
        del tensors["encoder.layer.1.attention.self.key.bias"]
        tensors["encoder.layer.0.output.dense.weight"] = np.zeros((16, 3), np.float32)
        tensors["encoder.layer.2.output.dense.bias"] = np.zeros(16, np.float32)
        return {prefix + name: tensor for name, tensor in tensors.items()}

    change_tensors(directory, spoil)
    with pytest.raises(LampError) as caught:
        load_bert(directory)
    message = str(caught.value)
    assert str(directory) in message
    assert "(3 mismatches)" in message
    assert f"missing: {prefix}encoder.layer.1.attention.self.key.bias" in message
    assert f"unexpected: {prefix}encoder.layer.2.output.dense.bias" in message
    assert f"shape of {prefix}encoder.layer.0.output.dense.weight: [16, 3] in the file, [16, 32]" in message


def hidden_of_transformers(model, tokens):
    import torch

    with torch.no_grad():
        ids, mask = torch.tensor(np.maximum(tokens, 0)), torch.tensor(tokens != NO_TOKEN).long()
        return model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()


def assert_same_hidden_states(ours, theirs):
    tokens = TEXTS != NO_TOKEN
    np.testing.assert_allclose(np.asarray(hidden_states(ours, TEXTS))[tokens], theirs[tokens], atol=1e-4)


@pytest.mark.parity
def test_transformers_loads_a_saved_model_with_the_same_outputs(directory):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs, report = transformers.AutoModel.from_pretrained(directory, output_loading_info=True)
    assert {name.split(".")[0] for name in report.pop("missing_keys")} == {"pooler"}
    assert not any(report.values())
    assert_same_hidden_states(build_bert(), hidden_of_transformers(theirs, TEXTS))


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
def test_a_model_saved_by_transformers_has_the_same_outputs(tmp_path, kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    values = {name: value for name, value in BERT.to_hf().items() if name not in ("architectures", "model_type")}
    theirs = getattr(transformers, kind)(transformers.BertConfig(**values)).eval()
    theirs.save_pretrained(tmp_path)
    assert_same_hidden_states(load_bert(tmp_path), hidden_of_transformers(getattr(theirs, "bert", theirs), TEXTS))
