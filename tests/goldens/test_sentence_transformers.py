"""Vectors of encoders: those of sentence-transformers (`pip install -e .[parity]`), with its files and with lamp's."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from lamp_jax.config import Devices
from lamp_jax.data.files import Question
from lamp_jax.encoding import open_encoder
from lamp_jax.models.bert import BertConfig
from lamp_jax.models.weights import save_bert
from lamp_jax.retrieval.dense import embed_all, rank_dense
from lamp_jax.retrieval.encoders import EncoderSettings, write_settings
from lamp_jax.tasks.catalog import find_task
from tests.goldens.cases import CASES
from tests.goldens.minilm import find_directory, make_texts
from tests.models.tiny import build_bert

theirs = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers, of the extra `parity`")
from sentence_transformers.sentence_transformer import modules  # noqa: E402 (only where it is installed)

pytestmark = pytest.mark.parity

WIDTH = 16
CONFIG = BertConfig(
    vocab_size=3000,
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=48,
    initializer_range=0.2,
)
QUERIES = ["the sea", "", "a story of a long WINTER " * 4, "query: query"]
DOCUMENTS = ["The end.", "", "a story of the sea and the sky " * 8, "model", "passage: the sea", "the sea"]
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An encoder without files about pooling."""
    path = tmp_path_factory.mktemp("encoder")
    save_bert(build_bert(CONFIG), path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CASES / "tiny" / "bert" / name, path)
    return path


def describe(plain, directory, pooling, *, normalize=False, **files):
    """A copy with the files that releases 1 to 5.3 write; `files` are further files, by their names without `.json`."""
    shutil.copytree(plain, directory)
    kinds = {"Transformer": "", "Pooling": "1_Pooling"} | ({"Normalize": "2_Normalize"} if normalize else {})
    described = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(kinds.items())
    ]
    (directory / "modules.json").write_text(json.dumps(described))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **pooling}))
    for name, values in files.items():
        (directory / f"{name}.json").write_text(json.dumps(values))
    return directory


def check(directory, *, queries=None, documents=None):
    """Our vectors of queries and of documents equal theirs for an encoder's directory."""
    model = theirs.SentenceTransformer(str(directory), device="cpu")
    opened = open_encoder(str(directory), Devices())
    expected = model.encode_query(QUERIES) if queries is None else queries(model)
    np.testing.assert_allclose(embed_all(QUERIES, opened.queries), expected, atol=1e-5)
    expected = model.encode_document(DOCUMENTS) if documents is None else documents(model)
    np.testing.assert_allclose(embed_all(DOCUMENTS, opened.documents), expected, atol=1e-5)
    return model, opened


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_vectors_with_old_files(plain, tmp_path, mode, normalize):
    pooling = {name: key == mode for key, name in OLD.items()}
    _, opened = check(describe(plain, tmp_path / "old", pooling, normalize=normalize))
    assert opened.settings.pooling == (mode,)
    assert opened.queries is opened.documents


def test_modes_of_old_files_are_concatenated_in_their_order(plain, tmp_path):
    pooling = {OLD[mode]: mode in ("mean", "cls", "lasttoken") for mode in MODES}
    _, opened = check(describe(plain, tmp_path / "old", pooling))
    assert opened.settings.pooling == ("cls", "mean", "lasttoken")


def test_vectors_with_files_without_modes_and_without_files(plain, tmp_path):
    check(describe(plain, tmp_path / "old", {}))
    check(plain)


@pytest.mark.parametrize("mode", [*MODES, ("weightedmean", "cls")])
def test_vectors_with_the_files_of_this_release(plain, tmp_path, mode):
    parts = [modules.Transformer(str(plain)), modules.Pooling(WIDTH, mode), modules.Normalize()]
    model = theirs.SentenceTransformer(modules=parts, prompts={"query": "query: ", "document": "a "}, device="cpu")
    model.max_seq_length = 24
    model.save(str(tmp_path / "new"))
    _, opened = check(tmp_path / "new")
    assert opened.settings.query_length == opened.settings.document_length == 24
    assert (opened.settings.query_prompt, opened.settings.document_prompt) == ("query: ", "a ")


@pytest.mark.parametrize("mode", MODES)
def test_vectors_with_prompts_excluded_from_pooling_and_two_lengths(plain, tmp_path, mode):
    model = theirs.SentenceTransformer(
        modules=[
            modules.Transformer(str(plain), query_length=9, document_length=21),
            modules.Pooling(WIDTH, mode, include_prompt=False),
        ],
        prompts={"query": "a model of: ", "document": "the "},
        device="cpu",
    )
    model.save(str(tmp_path / "new"))
    _, opened = check(tmp_path / "new")
    assert (opened.settings.query_length, opened.settings.document_length) == (9, 21)


def test_the_prompt_for_passages_applies_to_documents(plain, tmp_path):
    """Theirs is given the prompt's name: `encode_document` would use the empty default prompt, which no file has."""
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": None}
    directory = describe(plain, tmp_path / "e5", {}, config_sentence_transformers=prompts)
    check(directory, documents=lambda model: model.encode(DOCUMENTS, prompt_name="passage"))


def test_the_default_prompt_applies_to_texts_without_a_prompt(plain, tmp_path):
    prompts = {"prompts": {"all": "the model: "}, "default_prompt_name": "all"}
    directory = describe(plain, tmp_path / "all", {}, config_sentence_transformers=prompts)
    check(directory, queries=lambda model: model.encode(QUERIES), documents=lambda model: model.encode(DOCUMENTS))


def test_vectors_with_a_maximum_length_and_lower_case(plain, tmp_path):
    cased = tmp_path / "cased"
    shutil.copytree(plain, cased)
    tokenizer = json.loads((cased / "tokenizer_config.json").read_text())
    (cased / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"do_lower_case": False}))
    for lower in (True, False):
        lengths = {"max_seq_length": 8, "do_lower_case": lower}
        _, opened = check(describe(cased, tmp_path / str(lower), {}, sentence_bert_config=lengths))
        assert (opened.settings.query_length, opened.settings.lower_case) == (8, lower)
        upper, small = embed_all(["THE SEA", "the sea"], opened.queries)
        assert np.allclose(upper, small) == lower


@pytest.mark.skipif(find_directory() is None, reason="all-MiniLM-L6-v2 is not installed (see tests/goldens/minilm.py)")
def test_vectors_of_a_published_encoder():
    model, opened = check(find_directory())
    assert opened.settings == EncoderSettings(normalize=True, query_length=256, document_length=256)
    texts = make_texts()[::10]  # longer than 256 tokens, too
    np.testing.assert_allclose(embed_all(texts, opened.documents), model.encode(texts), atol=1e-5)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_scores_equal_their_similarity(plain, tmp_path, similarity):
    named = {"similarity_fn_name": similarity}
    model, opened = check(describe(plain, tmp_path / "named", {}, config_sentence_transformers=named))
    task = find_task("LaMP-7")
    profile = tuple({"id": str(place), "text": text} for place, text in enumerate(DOCUMENTS))
    question = Question("q", task.input_for("the long winter"), profile)
    (ranked,) = rank_dense([question], task, opened.documents, similarity=opened.settings.similarity)
    query = task.query(question.input)
    expected = model.similarity(model.encode_query([query]), model.encode_document(DOCUMENTS))[0].numpy()
    found = dict(zip(ranked.item_ids, ranked.scores, strict=True))
    np.testing.assert_allclose([found[str(place)] for place in range(len(DOCUMENTS))], expected, rtol=1e-4, atol=1e-4)


PLAIN = EncoderSettings(query_length=40, document_length=40)


@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        replace(PLAIN, pooling=("cls",), normalize=True, query_prompt="query: ", document_prompt="passage: "),
        replace(PLAIN, pooling=("mean", "cls"), query_length=8, include_prompt=False, query_prompt="the model "),
        replace(PLAIN, pooling=("cls", "max"), similarity="cosine", lower_case=True, use_date=True),
    ],
    ids=["plain", "prompts", "lengths", "cosine"],
)
def test_files_written_by_lamp_give_the_same_vectors(plain, tmp_path, settings):
    shutil.copytree(plain, tmp_path / "ours")
    write_settings(tmp_path / "ours", settings, width=WIDTH)
    model, opened = check(tmp_path / "ours")
    assert opened.settings == replace(settings, use_date=bool(settings.use_date))
    assert model.similarity_fn_name == settings.similarity
    (tmp_path / "ours" / "retriever.json").unlink()  # with their files only
    assert open_encoder(str(tmp_path / "ours"), Devices()).settings == replace(settings, use_date=None)
