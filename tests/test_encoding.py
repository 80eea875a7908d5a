"""Vectors of texts: dependent only on the text."""

import functools
import shutil

import jax
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_jax import encoding
from lamp_jax.config import Devices
from lamp_jax.encoding import open_encoder
from lamp_jax.errors import LampError
from lamp_jax.inputs.tokenizer import load_tokenizer, tokenize
from lamp_jax.models.bert import BertConfig
from lamp_jax.models.weights import save_bert
from lamp_jax.retrieval.dense import embed_all
from lamp_jax.retrieval.encoders import EncoderSettings, check_length, write_settings
from lamp_jax.sharding import make_mesh
from tests.goldens.cases import CASES
from tests.models.tiny import build_bert

CONFIG = BertConfig(
    vocab_size=3000,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=32,
    initializer_range=0.2,
)
# Texts for two batch lengths, 16 and 32; the last text is truncated.
TEXTS = ["", "a", "the end", "a story of the sea and the sky " * 2, "model of language", "b " * 20, "the sea " * 40]


@functools.cache
def tokenizer():
    return load_tokenizer(CASES / "tiny" / "bert")


def opened(directory, devices=Devices()):  # noqa: B008 (frozen)
    return open_encoder(str(directory), devices, max_length=32).documents


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    save_bert(build_bert(CONFIG), path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CASES / "tiny" / "bert" / name, path)
    return path


@pytest.fixture(scope="module")
def encoder(directory):
    return opened(directory)


@pytest.fixture(scope="module")
def separate_vectors(encoder):
    """The vector of every text, each in a separate batch."""
    return {text: embed_all([text], encoder)[0] for text in TEXTS}


def check(texts, embed, separate_vectors):
    found = embed_all(texts, embed)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack([separate_vectors[text] for text in texts]), atol=1e-5)


@given(st.lists(st.text(max_size=30), max_size=4), st.integers(2, 24))
def test_texts_are_cut_to_the_length_between_their_special_tokens(texts, length):
    cls, sep = tokenizer().cls_token_id, tokenizer().sep_token_id
    complete = tokenize(texts, tokenizer(), max_length=512)
    cut = tokenize(texts, tokenizer(), max_length=length)
    assert len(cut) == len(complete) == len(texts)
    for short, row in zip(cut, complete, strict=True):
        assert (row[0], row[-1]) == (cls, sep)
        assert short == (row if len(row) <= length else [*row[: length - 1], sep])


def test_an_empty_text_consists_of_its_special_tokens():
    assert tokenize([""], tokenizer(), max_length=16) == [[tokenizer().cls_token_id, tokenizer().sep_token_id]]


def test_lone_surrogates_can_be_read():
    surrogate, replaced = tokenize(["a \ud83d b", "a ? b"], tokenizer(), max_length=16)
    assert surrogate == replaced


@given(texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=20))
@settings(max_examples=40)
def test_order_and_other_texts_of_the_batch_do_not_change_a_vector(encoder, separate_vectors, texts):
    check(texts, encoder, separate_vectors)


def test_a_vector_equals_that_of_the_model(encoder, separate_vectors):
    ids = tokenize([TEXTS[1]], tokenizer(), max_length=32)
    expected = jax.jit(lambda model, tokens: model.embed(tokens))(build_bert(CONFIG), np.array(ids, np.int32))
    np.testing.assert_allclose(separate_vectors[TEXTS[1]], expected[0], atol=1e-5)


def test_no_texts_have_no_vectors(encoder):
    assert list(encoder([])) == []


def test_different_texts_have_different_vectors(separate_vectors):
    vectors = np.stack(list(separate_vectors.values()))
    distances = np.abs(vectors[:, None] - vectors[None]).max(axis=-1)
    assert distances[~np.eye(len(TEXTS), dtype=bool)].min() > 0.01


def test_every_position_is_returned_once(encoder):
    texts = TEXTS * 4
    places = [place for part, vectors in encoder(texts) for place in part if len(vectors) == len(part)]
    assert sorted(places) == list(range(len(texts)))


def test_long_lists_are_read_in_chunks(monkeypatch, encoder, separate_vectors):
    monkeypatch.setattr(encoding, "WINDOW", 3)
    check(TEXTS[::-1] * 2, encoder, separate_vectors)


def test_vectors_do_not_depend_on_the_mesh(directory, separate_vectors):
    with jax.set_mesh(make_mesh(4, 2)):
        check(TEXTS, opened(directory, Devices(sharding="fsdp+tensor", model_parallel=2)), separate_vectors)


def test_pooling_is_read_from_the_files_of_a_hub_name(directory, encoder, tmp_path, monkeypatch):
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    shutil.copytree(directory, hub)
    write_settings(hub, EncoderSettings(("cls",), normalize=True, query_length=32, document_length=32), width=16)
    (hub / "retriever.json").unlink()
    files = [str(path.relative_to(hub)) for path in hub.rglob("*") if path.is_file()]

    def download(name, allow_patterns):
        assert name == "some/encoder"
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(hub / file, cache / file)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(encoding, "load_tokenizer", lambda name: tokenizer() if name == "some/encoder" else None)
    found = open_encoder("some/encoder", Devices())
    assert (found.settings.pooling, found.settings.normalize) == (("cls",), True)
    first = jax.jit(lambda model, tokens: model(tokens)[:, 0])
    ids = tokenize([TEXTS[2]], tokenizer(), max_length=32)
    expected = np.asarray(first(build_bert(CONFIG), np.array(ids, np.int32)))[0]
    np.testing.assert_allclose(embed_all([TEXTS[2]], found.queries)[0], expected / np.linalg.norm(expected), atol=1e-5)


def test_texts_beyond_the_encoders_positions_are_an_error_with_the_remedy(directory):
    check_length(CONFIG.longest, 32, "some/encoder")
    message = "reads texts of at most 32 tokens, not 33; give --max-length 32 or less"
    with pytest.raises(LampError, match=f"some/encoder: {message}"):
        check_length(CONFIG.longest, 33, "some/encoder")
    with pytest.raises(LampError, match=message) as caught:
        open_encoder(str(directory), Devices(), max_length=33)
    assert str(directory) in str(caught.value)
