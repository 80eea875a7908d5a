"""Models: the same activations, losses, gradients, generated tokens and scores as in Hugging Face's transformers."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamp_jax.decoding.beam import beam_search
from lamp_jax.decoding.greedy import greedy_search
from lamp_jax.inputs.batches import pad_rows
from lamp_jax.inputs.tokenizer import load_tokenizer, tokenize
from lamp_jax.losses import token_cross_entropy
from lamp_jax.models.bert import NO_TOKEN
from lamp_jax.models.families import load_generator
from lamp_jax.models.generator import decoder_inputs
from lamp_jax.models.hf_names import t5_places
from lamp_jax.models.weights import hf_tensors, load_bert, load_longformer
from tests.goldens.cases import CASES

pytestmark = pytest.mark.golden

FOLDER = CASES / "goldens" / "models"
FILES = sorted(path.name for path in FOLDER.glob("*")) if FOLDER.is_dir() else []
FORWARD = [name.removesuffix("_forward.npz") for name in FILES if re.fullmatch(r"t5.*_forward\.npz", name)]
GENERATED = [name.removesuffix("_gen.json") for name in FILES if re.fullmatch(r"t5.*_gen\.json", name)]
POOLED = [name.removesuffix("_pool.npz") for name in FILES if re.fullmatch(r"bert.*_pool\.npz", name)]
LONG_SINGLE = [name.removesuffix("_single.json") for name in FILES if re.fullmatch(r"longformer.*_single\.json", name)]
LONG_BATCH = [name.removesuffix("_batch.npz") for name in FILES if re.fullmatch(r"longformer.*_batch\.npz", name)]


def read_generated(name):
    return json.loads((FOLDER / f"{name}_gen.json").read_text(encoding="utf-8"))


SEARCHES = [(name, key) for name in GENERATED for key in read_generated(name) if key.startswith("beam")]
WITH_GRADIENTS = [name for name in GENERATED if name in FORWARD and "grad_norms" in read_generated(name)]
WITH_LOSSES = [name for name in GENERATED if name in FORWARD and "loss_each" in read_generated(name)]


@functools.cache
def load(name):
    return load_generator(CASES / "tiny" / name)


@functools.cache
def read_forward(name):
    with np.load(FOLDER / f"{name}_forward.npz") as arrays:
        return {key: arrays[key].astype(np.int32) if arrays[key].dtype.kind == "i" else arrays[key] for key in arrays}


@functools.cache
def forward(name):
    """Encoder output and logits of the complete batch."""

    @jax.jit
    def run(model, tokens, mask, target):
        encoded = model.encode(tokens, mask=mask)
        return encoded, model.decode(target, encoded, mask)

    golden = read_forward(name)
    mask = golden["attention_mask"].astype(bool)
    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(load(name), golden["input_ids"], mask, golden["decoder_input_ids"]))


@pytest.mark.parametrize("name", FORWARD, ids="models-{}".format)
def test_encoder_output_equals_hf(name):
    golden = read_forward(name)
    expected = golden["encoder_last_hidden"]
    tokens = golden["attention_mask"].astype(bool)[: len(expected)]
    np.testing.assert_allclose(forward(name)[0][: len(expected)][tokens], expected[tokens], atol=1e-4)


@pytest.mark.parametrize("name", FORWARD, ids="models-{}".format)
def test_logits_equal_hf(name):
    golden = read_forward(name)
    columns = golden.get("logits_columns", slice(None))
    np.testing.assert_allclose(forward(name)[1][..., columns], golden["logits"], atol=1e-4)


@pytest.mark.parametrize("name", FORWARD, ids="models-{}".format)
def test_decoder_inputs_equal_hf(name):
    golden = read_forward(name)
    ours = decoder_inputs(jnp.asarray(golden["labels"]), load(name).config)
    np.testing.assert_array_equal(ours, golden["decoder_input_ids"])


@pytest.mark.parametrize("name", FORWARD, ids="models-{}".format)
def test_loss_equals_hf(name):
    golden = read_forward(name)
    total, count = token_cross_entropy(jnp.asarray(forward(name)[1]), golden["labels"], pad=0)
    np.testing.assert_allclose(total / count, golden["loss"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", WITH_LOSSES, ids="models-{}".format)
def test_loss_of_each_sample_equals_hf(name):
    total, count = jax.vmap(functools.partial(token_cross_entropy, pad=0))(
        jnp.asarray(forward(name)[1]), read_forward(name)["labels"]
    )
    np.testing.assert_allclose(total / count, read_generated(name)["loss_each"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", WITH_GRADIENTS, ids="models-{}".format)
def test_gradient_norms_equal_hf(name):
    golden, expected = read_forward(name), read_generated(name)["grad_norms"]

    @jax.jit
    @jax.grad
    def differentiate(model, tokens, target, labels):
        logits = model.decode(target, model.encode(tokens), model.source_mask(tokens))
        total, count = token_cross_entropy(logits, labels, pad=0)
        return total / count

    model = load(name)
    with jax.default_matmul_precision("highest"):
        gradients = differentiate(model, golden["input_ids"], golden["decoder_input_ids"], golden["labels"])
    norms = {key: np.linalg.norm(value) for key, value in hf_tensors(gradients, t5_places(model.config)).items()}
    assert norms.keys() == expected.keys()
    for key, norm in expected.items():
        np.testing.assert_allclose(norms[key], norm, rtol=1e-3, err_msg=key)


@functools.cache
def search(num_beams, max_new_tokens):
    """The jitted search: sources -> best tokens, and their scores if the search has scores."""
    if num_beams == 1:
        return jax.jit(lambda model, tokens: (greedy_search(model, tokens, max_new_tokens=max_new_tokens), None))

    @jax.jit
    def run(model, tokens):
        beams = beam_search(model, tokens, num_beams=num_beams, max_new_tokens=max_new_tokens)
        return beams.tokens[:, 0], beams.scores[:, 0]

    return run


def up_to_end(row, end):
    row = [int(token) for token in row]
    return row[: row.index(end) + 1] if end in row else row


def check_search(name, key, sources, expected, scores):
    num_beams, max_length = (int(number) for number in re.findall(r"\d+", key))
    model = load(name)
    with jax.default_matmul_precision("highest"):
        tokens, ours = search(num_beams, max_length - 1)(model, sources)
    for row, golden in zip(tokens, expected, strict=True):
        # HF's sequences start with the start token.
        assert up_to_end(row, model.config.eos_token_id) == up_to_end(golden[1:], model.config.eos_token_id)
    if scores is not None:
        np.testing.assert_allclose(ours, scores, atol=1e-4)


@pytest.mark.parametrize(("name", "key"), SEARCHES, ids="models-{}".format)
def test_a_generated_batch_equals_hf(name, key):
    golden = read_generated(name)[key]
    check_search(name, key, read_forward(name)["input_ids"], golden["sequences"], golden.get("sequences_scores"))


@pytest.mark.parametrize(("name", "key"), SEARCHES, ids="models-{}".format)
def test_sequences_generated_separately_equal_hf(name, key):
    golden = read_generated(name)[key].get("sequences_batch1")
    if golden is None:
        pytest.skip("HF's outputs of single sources are not in this case")
    for source, expected in zip(read_forward(name)["input_ids"], golden, strict=True):
        check_search(name, key, source[None], [expected], None)


def read_texts(name):
    """{"texts": [...], "lengths": [...]}"""
    return json.loads((FOLDER / f"{name}_texts.json").read_text(encoding="utf-8"))


@functools.cache
def read_pooled(name):
    with np.load(FOLDER / f"{name}_pool.npz") as arrays:
        return {key: arrays[key] for key in arrays}


@functools.cache
def encode(name):
    """Hidden states and vectors of the golden's tokens."""
    golden = read_pooled(name)
    tokens = np.where(golden["attention_mask"] == 1, golden["input_ids"], NO_TOKEN).astype(np.int32)
    run = jax.jit(lambda model: (model(tokens), model.embed(tokens)))
    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(load_bert(CASES / "tiny" / name)))


@pytest.mark.parametrize("name", POOLED, ids="models-{}".format)
def test_tokens_of_texts_equal_hf(name):
    golden = read_pooled(name)
    texts, lengths = (read_texts(name)[key] for key in ("texts", "lengths"))
    rows = tokenize(texts, load_tokenizer(CASES / "tiny" / name), max_length=golden["input_ids"].shape[1])
    expected = [
        ids[mask == 1].tolist() for ids, mask in zip(golden["input_ids"], golden["attention_mask"], strict=True)
    ]
    assert rows == expected
    assert [len(row) for row in rows] == lengths


@pytest.mark.parametrize("name", POOLED, ids="models-{}".format)
def test_hidden_states_equal_hf(name):
    golden = read_pooled(name)
    expected = golden["last_hidden"]  # of the first texts, up to their greatest length
    texts, length = expected.shape[:2]
    mask = golden["attention_mask"][:texts]
    assert mask.sum(axis=1).max() <= length
    tokens = mask[:, :length] == 1
    np.testing.assert_allclose(encode(name)[0][:texts, :length][tokens], expected[tokens], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", POOLED, ids="models-{}".format)
def test_vectors_equal_hf(name):
    np.testing.assert_allclose(encode(name)[1], read_pooled(name)["emb"], atol=1e-4, rtol=1e-5)


@functools.cache
def read_long(name, first_token):
    """tokens [B, S] -> hidden states and pooled outputs of a Longformer, under both orders of attention."""

    def run(order):
        model = load_longformer(CASES / "tiny" / name, first_token=first_token, attention=order)
        return functools.partial(jax.jit(lambda model, tokens: (model(tokens), model.pool(tokens))), model)

    return {order: run(order) for order in ("whole", "rows")}


LONG_CASES = [
    (name, number, order)
    for name in LONG_SINGLE
    for number in range(len(json.loads((FOLDER / f"{name}_single.json").read_text(encoding="utf-8"))))
    for order in ("whole", "rows")
]


@pytest.mark.parametrize(("name", "number", "order"), LONG_CASES, ids="models-{}".format)
def test_single_texts_of_a_longformer_equal_hf(name, number, order):
    golden = json.loads((FOLDER / f"{name}_single.json").read_text(encoding="utf-8"))[number]
    first_token = {"none": "local", "first": "global"}[golden.get("global_attention", "none")]
    # Padded to few lengths, so that few programs are compiled; effects of padding would be detected.
    tokens = pad_rows([golden["input_ids"]], 1, 1 << (golden["len"] - 1).bit_length(), pad=NO_TOKEN)
    with jax.default_matmul_precision("highest"):
        hidden, pooled = jax.device_get(read_long(name, first_token)[order](tokens))
    np.testing.assert_allclose(pooled[0], golden["pooler"], atol=1e-4)
    for key, place in (("last_hidden_first", 0), ("last_hidden_last", golden["len"] - 1)):
        if key in golden:
            np.testing.assert_allclose(hidden[0, place], golden[key], atol=1e-4)


@pytest.mark.parametrize("name", LONG_BATCH, ids="models-{}".format)
def test_a_batch_of_a_longformer_equals_hf(name):
    with np.load(FOLDER / f"{name}_batch.npz") as golden:
        mask = golden["attention_mask"] == 1
        tokens = np.where(mask, golden["input_ids"], NO_TOKEN).astype(np.int32)
        with jax.default_matmul_precision("highest"):
            hidden, pooled = jax.device_get(read_long(name, "local")["whole"](tokens))
        np.testing.assert_allclose(pooled, golden["pooler"], atol=1e-4)
        expected = golden["last_hidden"]
        compared = mask[: len(expected), : expected.shape[1]]
        np.testing.assert_allclose(
            hidden[: len(expected), : expected.shape[1]][compared], expected[compared], atol=1e-4
        )
