"""Longformer attention in blocks: equal to attention with a band mask, in memory linear in the length."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lamp_jax.errors import LampError
from lamp_jax.models.bert import NO_TOKEN
from lamp_jax.models.kernels import attend_nearby
from lamp_jax.models.longformer import Longformer, LongformerConfig
from lamp_jax.models.weights import load_longformer, save_longformer
from lamp_jax.sharding import DATA_PARALLEL, FSDP, FSDP_AND_TENSOR_PARALLEL, TENSOR_PARALLEL, make_mesh, place_batch
from tests.models.tiny import place_values

CONFIG = LongformerConfig(
    vocab_size=48,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=66,
    hidden_dropout_prob=0.25,
    attention_probs_dropout_prob=0.25,
    initializer_range=0.2,
    attention_window=8,
)
LENGTHS = [40, 37, 1, 9, 24, 5, 12, 33]


@functools.cache
def values():
    """Biases and norms are random too: if they were 0 or 1 everywhere, omitting them would not be detected."""
    random = np.random.default_rng(0)
    drawn = jax.device_get(nnx.state(Longformer(CONFIG, rngs=nnx.Rngs(0))))
    return jax.tree.map(lambda leaf: leaf + 0.1 * random.standard_normal(leaf.shape, np.float32), drawn)


def build(**options) -> Longformer:
    return place_values(jax.eval_shape(lambda: Longformer(CONFIG, rngs=nnx.Rngs(0), **options)), values())


def make_texts() -> np.ndarray:
    texts = np.full((8, 40), NO_TOKEN, np.int32)
    random = np.random.default_rng(0)
    for row, length in enumerate(LENGTHS):
        texts[row, :length] = random.integers(0, 48, length)
    return texts


TEXTS = make_texts()


@functools.cache
def scores(**options):
    return np.asarray(jax.jit(lambda model: model.score(TEXTS))(build(**options)))


def banded(query, keys, values, padding, reach, first):
    """The definition, with all scores at once in float64."""
    scores = np.einsum("bthk,bshk->bhts", query.astype(np.float64), keys) + padding
    places = np.arange(query.shape[1])
    near = np.abs(places[:, None] - places) <= reach
    if first == "seen by all":
        near[:, 0] = True
    scores = np.where(near, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bhts,bshk->bthk", weights / weights.sum(axis=-1, keepdims=True), values)


@pytest.mark.parametrize("order", ["whole", "rows"])
@given(
    length=st.integers(1, 30),
    reach=st.integers(1, 9),
    real=st.integers(1, 30),
    first=st.sampled_from(["seen by all", "like others"]),
)
@settings(max_examples=12)  # each compiles about ten programs
def test_attention_in_blocks_equals_attention_with_a_band_mask(order, length, reach, real, first):
    random = np.random.default_rng(length * reach)
    query, keys, values = random.standard_normal((3, 2, length, 3, 4)).astype(np.float32)
    padding = np.where(np.arange(length) < real, 0, -1e9).astype(np.float32)[None, None, None].repeat(2, axis=0)
    found = attend_nearby(query, keys, values, padding, reach=reach, first=first, order=order, rules=DATA_PARALLEL)
    expected = banded(query, keys, values, padding, reach, first)
    real = min(real, length)
    np.testing.assert_allclose(found[:, :real], expected[:, :real], atol=1e-5)


def test_attention_by_rows_equals_attention_of_the_complete_batch():
    np.testing.assert_allclose(scores(attention="rows"), scores(), atol=1e-5)


@pytest.mark.parametrize("first_token", ["global", "local"])
def test_padding_and_other_rows_of_the_batch_change_no_score(first_token):
    run = jax.jit(lambda model, tokens: model.score(tokens))
    model = build(first_token=first_token)
    longer = np.pad(TEXTS[::-1], ((0, 0), (0, 9)), constant_values=NO_TOKEN)
    np.testing.assert_allclose(run(model, longer)[::-1], scores(first_token=first_token), atol=1e-5)


def test_only_a_global_first_token_sees_the_end_of_a_long_text():
    other = TEXTS.copy()
    other[0, 39] = (other[0, 39] + 1) % 48
    run = jax.jit(lambda model, tokens: model.score(tokens))
    changes = {
        first: float(np.abs(run(build(first_token=first), other) - scores(first_token=first)).max())
        for first in ("global", "local")
    }
    assert changes["local"] == 0  # two layers of four tokens each way reach eight
    assert changes["global"] > 1e-4


def test_every_parameter_has_a_gradient():
    gradients = jax.jit(jax.grad(lambda model: model.score(TEXTS).sum()))(build())
    for path, gradient in jax.tree.leaves_with_path(gradients):
        # Softmax is invariant to a bias shared by all keys.
        assert np.any(gradient) or (jax.tree_util.keystr(path).count("key") and "bias" in jax.tree_util.keystr(path)), (
            path
        )


def test_tokens_of_a_new_model_attend_to_equal_tokens():
    config = dataclasses.replace(CONFIG, hidden_size=64, num_attention_heads=8, initializer_range=64**-0.5)
    model = Longformer(config, rngs=nnx.Rngs(0))
    model.start_alike()
    random = np.random.default_rng(0)
    text = random.permutation(np.repeat(random.permutation(48)[:16], 2))  # 16 tokens, each of them occurs twice
    x = model.first_norm(model.words[...][text] + model.positions[...][2 : 2 + len(text)])
    query, key = (np.einsum("sd,dhk->hsk", x, w[...][0]) for w in (model.layers.query, model.layers.key))
    scores = np.einsum("hsk,htk->st", query, key) - 1e9 * np.eye(len(text))
    np.testing.assert_array_equal(text[scores.argmax(axis=1)], text)


def test_dropout_follows_its_key():
    run = jax.jit(lambda model, key: model.score(TEXTS, key=key))
    one, again, other = (np.asarray(run(build(), jax.random.key(seed))) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - scores()).max() > 1e-3


@pytest.mark.parametrize(
    ("shape", "rules"),
    [
        pytest.param((8, 1), FSDP, id="8x1", marks=pytest.mark.slow),
        pytest.param((4, 2), TENSOR_PARALLEL, id="4x2", marks=pytest.mark.slow),
        pytest.param((2, 4), FSDP_AND_TENSOR_PARALLEL, id="2x4"),
    ],
)
def test_meshes_agree(shape, rules):
    def loss(model, tokens):
        return (model.score(tokens) ** 2).mean()

    expected, wanted = jax.device_get(jax.jit(jax.value_and_grad(loss))(build(attention="rows"), TEXTS))
    with jax.set_mesh(make_mesh(*shape)):
        model = build(attention="rows", rules=rules)
        found, gradients = jax.device_get(jax.jit(jax.value_and_grad(loss))(model, place_batch(TEXTS, rules=rules)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for got, want in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def largest(jaxpr) -> int:
    """Elements of the largest array that a program makes, its inner programs included."""
    sizes = [math.prod(one.aval.shape) for equation in jaxpr.eqns for one in equation.outvars]
    parameters = [value for equation in jaxpr.eqns for value in jax.tree.leaves(list(equation.params.values()))]
    inner = [getattr(value, "jaxpr", value) for value in parameters]  # closed, or not
    return max([0, *sizes, *(largest(one) for one in inner if hasattr(one, "eqns"))])


@pytest.mark.parametrize("order", ["whole", "rows"])
def test_no_array_of_a_forward_pass_grows_faster_than_the_text(order):
    def elements(length, window):
        config = LongformerConfig(64, 32, 2, 4, 64, max_position_embeddings=4098, attention_window=window)
        model = jax.eval_shape(lambda: Longformer(config, rngs=nnx.Rngs(0), attention=order))
        tokens = jax.ShapeDtypeStruct((1, length), np.int32)
        return largest(jax.make_jaxpr(lambda model, tokens: model.score(tokens))(model, tokens).jaxpr)

    short, *longer = (elements(length, window=64) for length in (512, 1024, 2048, 4096))
    for doublings, found in enumerate(longer, start=1):
        assert found <= 1.1 * 2**doublings * short
    assert elements(4096, window=8192) > 7 * elements(4096, window=64)  # size of complete attention


def test_a_saved_model_is_loaded_unchanged(tmp_path):
    save_longformer(build(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attention_window"] == [8, 8]
    jax.tree.map(np.testing.assert_array_equal, load_longformer(tmp_path), build())


@pytest.mark.parametrize("first_token", ["global", "local"])
def test_a_saved_model_has_the_same_scores_in_hugging_face(tmp_path, first_token):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    save_longformer(build(), tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokens, mask = torch.tensor(np.maximum(TEXTS, 0)).long(), torch.tensor(TEXTS != NO_TOKEN).long()
    tokens[mask == 0] = CONFIG.pad_token_id
    everywhere_local = {"global_attention_mask": torch.zeros_like(mask)} if first_token == "local" else {}
    # In Hugging Face positions count tokens by id: a [PAD] id inside a text has no position.
    tokens[(tokens == CONFIG.pad_token_id) & (mask == 1)] = 7
    ours = np.where(mask.numpy() == 1, tokens.numpy(), NO_TOKEN).astype(np.int32)
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=mask, **everywhere_local).logits[:, 0].numpy()
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda model: model.score(ours))(build(first_token=first_token))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def rename(directory, change):
    tensors = load_file(directory / "model.safetensors")
    save_file(
        {new: values for name, values in tensors.items() if (new := change(name))}, directory / "model.safetensors"
    )


@pytest.mark.parametrize("body", ["", "longformer.", "model."])
def test_a_base_model_gets_a_head_from_the_seed(tmp_path, body):
    save_longformer(build(), tmp_path)
    rename(tmp_path, lambda name: name.replace("longformer.", body) if name.startswith("longformer.") else "")
    one, again, other = (load_longformer(tmp_path, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.words[...], build().words[...])
    np.testing.assert_array_equal(one.head[...], again.head[...])
    assert np.any(one.head[...] != other.head[...])
    assert np.any(one.pooler[...] != other.pooler[...])


def test_the_pooler_of_a_base_model_is_read_and_other_heads_are_ignored(tmp_path):
    save_longformer(build(), tmp_path)
    names = {"classifier.dense": "longformer.pooler.dense", "classifier.out_proj": "lm_head.dense"}
    rename(tmp_path, lambda name: next((name.replace(a, b) for a, b in names.items() if name.startswith(a)), name))
    np.testing.assert_array_equal(load_longformer(tmp_path).pooler[...], build().pooler[...])


def test_a_file_that_lacks_a_layer_is_an_error(tmp_path):
    save_longformer(build(), tmp_path)
    rename(tmp_path, lambda name: "" if "layer.1.attention.self.key_global" in name else name)
    with pytest.raises(LampError, match=r"missing: longformer\.encoder\.layer\.1\.attention\.self\.key_global\.weight"):
        load_longformer(tmp_path)


@pytest.mark.parametrize("windows", [[8, 16], 7, 0])
def test_invalid_windows_are_an_error(windows):
    with pytest.raises(LampError, match=r"config: attention_window .* all layers need one even window"):
        LongformerConfig.from_hf({"model_type": "longformer", "attention_window": windows}, source="config")


def test_another_model_is_an_error():
    with pytest.raises(LampError, match="model_type is 'bert', not 'longformer'; give a model such as allenai"):
        LongformerConfig.from_hf({"model_type": "bert"}, source="config")
