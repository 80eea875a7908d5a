"""Encoders in commands: pooling, prompts and lengths, in rankings, caches and trained encoders."""

import json
import shutil

import numpy as np
import pytest

from lamp_jax.config import Devices, Encoding
from lamp_jax.data.files import read_questions
from lamp_jax.encoding import open_encoder
from lamp_jax.models.bert import BertConfig
from lamp_jax.models.weights import save_bert
from lamp_jax.retrieval.dense import embed_all
from lamp_jax.retrieval.texts import documents_of, query_of
from tests.goldens.cases import CASES
from tests.models.tiny import build_bert
from tests.stages.test_train_retriever import TASK, data, lamp, read_record, words

_ = data  # also used as a fixture of this file

CONFIG = BertConfig(
    vocab_size=3000,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
    initializer_range=0.2,
)
CLS = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
KINDS = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    save_bert(build_bert(CONFIG), path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CASES / "tiny" / "bert" / name, path)
    return path


@pytest.fixture(scope="module")
def bge(plain, tmp_path_factory):
    """The same weights, with sentence-transformers' files for first-token pooling, unit length and a query prompt."""
    path = tmp_path_factory.mktemp("bge") / "bge"
    shutil.copytree(plain, path)
    described = [{"path": folder, "type": f"sentence_transformers.models.{kind}"} for kind, folder in KINDS.items()]
    (path / "modules.json").write_text(json.dumps(described))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(CLS))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    prompts = {"prompts": {"query": "search: "}}
    (path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return path


def rank(data, encoder, output, *more):
    given = ("--task", "LaMP-2", "--questions", data / "questions.json", "--ranker", "dense", "--encoder", encoder)
    return lamp("rank", *given, "--output", output, "--scores", output.with_suffix(".scores.json"), *more)


def read_scores(output):
    return json.loads(output.with_suffix(".scores.json").read_text())


def expected_scores(data, encoder, *, use_date=False, **encoding):
    """Scores by dot product, from vectors of separately embedded texts."""
    opened = open_encoder(str(encoder), Devices(), Encoding(**encoding), batch_tokens=1)
    for question in read_questions(data / "questions.json", task=TASK):
        (query,) = embed_all([query_of(question, TASK)], opened.queries).astype(np.float64)
        documents = embed_all(documents_of(question, TASK, use_date=use_date), opened.documents)
        yield question.id, sorted(documents.astype(np.float64) @ query, reverse=True)


def assert_scores(found, expected):
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, atol=1e-4)


def test_a_ranking_uses_and_records_the_pooling_of_the_files(data, plain, bge, tmp_path, capsys):
    assert rank(data, bge, tmp_path / "bge.json") == 0
    assert "by dense (cls pooling, normalized, query prompt 'search: ')" in capsys.readouterr().out
    assert rank(data, plain, tmp_path / "plain.json") == 0
    assert "by dense (mean pooling)" in capsys.readouterr().out
    found = read_scores(tmp_path / "bge.json")
    assert_scores(found, dict(expected_scores(data, bge)))
    same = {"pooling": ("cls",), "normalize": True, "query_prompt": "search: "}
    assert_scores(found, dict(expected_scores(data, plain, **same)))
    assert all(-1.0001 < score < 1.0001 for scores in found.values() for score in scores)
    recorded = json.loads((tmp_path / "bge.json.run.json").read_text())["encoder"]
    assert recorded == {
        "pooling": ["cls"],
        "normalize": True,
        "query_prompt": "search: ",
        "document_prompt": "",
        "include_prompt": True,
        "query_length": 24,
        "document_length": 24,
        "similarity": "dot",
        "lower_case": False,
        "use_date": None,
    }


def test_options_replace_the_files_of_an_encoder_and_override_them(data, plain, bge, tmp_path):
    given = ("--pooling", "cls", "--normalize", "True", "--query-prompt", "search: ", "--max-length", 24)
    assert rank(data, plain, tmp_path / "given.json", *given) == rank(data, bge, tmp_path / "bge.json") == 0
    assert read_scores(tmp_path / "given.json") == read_scores(tmp_path / "bge.json")
    given = ("--pooling", "mean", "--normalize", "False", "--query-prompt", "", "--max-length", 64)
    assert rank(data, bge, tmp_path / "means.json", *given) == rank(data, plain, tmp_path / "plain.json") == 0
    assert read_scores(tmp_path / "means.json") == read_scores(tmp_path / "plain.json")


def test_queries_and_documents_have_separate_lengths(data, plain, tmp_path):
    assert rank(data, plain, tmp_path / "r.json", "--query-length", 3, "--document-length", 4) == 0
    found = read_scores(tmp_path / "r.json")
    assert_scores(found, dict(expected_scores(data, plain, query_length=3, document_length=4)))
    assert rank(data, plain, tmp_path / "both.json", "--max-length", 4, "--query-length", 3) == 0
    assert read_scores(tmp_path / "both.json") == found
    assert rank(data, plain, tmp_path / "other.json", "--max-length", 4) == 0
    assert read_scores(tmp_path / "other.json") != found


def test_cosine_similarity_is_that_of_unit_vectors(data, plain, tmp_path):
    assert rank(data, plain, tmp_path / "cosine.json", "--similarity", "cosine") == 0
    assert_scores(read_scores(tmp_path / "cosine.json"), dict(expected_scores(data, plain, normalize=True)))


def test_a_cache_of_another_form_is_never_used(data, plain, bge, tmp_path, capsys):
    cache = ("--embeddings-cache", tmp_path / "cache")
    assert rank(data, plain, tmp_path / "first.json", *cache) == 0
    size = (tmp_path / "cache" / "vectors").stat().st_size
    assert rank(data, plain, tmp_path / "again.json", *cache, "--similarity", "cosine") == 0  # with the same vectors
    assert (tmp_path / "cache" / "vectors").stat().st_size == size
    for more, name in (
        (("--pooling", "cls"), "pooling"),
        (("--normalize", "True"), "normalize"),
        (("--query-prompt", "q "), "query_prompt"),
        (("--document-prompt", "d "), "document_prompt"),
        (("--query-length", 5), "query_length"),
        (("--document-length", 5), "document_length"),
    ):
        assert rank(data, plain, tmp_path / "other.json", *cache, *more) == 1
        assert f"another encoder's embeddings ({name} differ" in capsys.readouterr().err
    assert rank(data, bge, tmp_path / "other.json", *cache) == 1
    error = capsys.readouterr().err
    assert all(name in error for name in ("encoder", "normalize", "pooling", "query_prompt"))


def test_a_cache_keeps_queries_and_documents_separate(data, plain, tmp_path):
    form = ("--query-prompt", "search: ", "--document-length", 4)
    for number in (1, 2):
        cache = ("--embeddings-cache", tmp_path / "cache")
        assert rank(data, plain, tmp_path / f"{number}.json", *form, *cache) == 0
    assert rank(data, plain, tmp_path / "3.json", *form) == 0
    assert read_scores(tmp_path / "1.json") == read_scores(tmp_path / "2.json") == read_scores(tmp_path / "3.json")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--max-length", 65), "reads texts of at most 64 tokens, not 65; give --max-length 64 or less"),
        (("--document-length", 65), "give --document-length 64 or less"),
        (("--query-length", 2), "--query-length 2: leaves no room for text"),
        (("--query-prompt", "search for the story of: ", "--query-length", 6), "leaves no room for text in 6 tokens"),
    ],
)
def test_lengths_beyond_the_encoder_are_refused(data, plain, tmp_path, capsys, more, message):
    assert rank(data, plain, tmp_path / "r.json", *more) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()
    assert lamp(*words(data, tmp_path / "out", "--encoder", plain, *more)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_module_is_refused_before_work(data, bge, tmp_path, capsys):
    shutil.copytree(bge, tmp_path / "dense")
    described = json.loads((bge / "modules.json").read_text())
    described.insert(2, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "dense" / "modules.json").write_text(json.dumps(described))
    for command in (
        lambda: rank(data, tmp_path / "dense", tmp_path / "r.json"),
        lambda: lamp(*words(data, tmp_path / "out", "--encoder", tmp_path / "dense")),
    ):
        assert command() == 1
        error = capsys.readouterr().err
        assert f"{tmp_path / 'dense' / 'modules.json'}: module 'sentence_transformers.models.Dense'" in error
    assert not (tmp_path / "r.json").exists()
    assert not (tmp_path / "out").exists()


FORM = {
    "pooling": ["cls"],
    "normalize": True,
    "query_prompt": "search: ",
    "document_prompt": "",
    "include_prompt": True,
    "query_length": 9,
    "document_length": 12,
    "similarity": "dot",
    "lower_case": False,
    "use_date": True,
}


@pytest.fixture(scope="module")
def trained(data, bge, tmp_path_factory):
    """Trained from an encoder that pools the first token, with two lengths."""
    output = tmp_path_factory.mktemp("trained") / "kd"
    lengths = ("--query-length", 9, "--document-length", 12)
    assert lamp(*words(data, output, "--encoder", bge, *lengths)) == 0
    return output


def test_a_trained_encoder_records_the_settings_of_its_training(data, bge, trained, tmp_path):
    assert read_record(trained)["encoder"] == FORM
    assert json.loads((trained / "retriever.json").read_text()) == FORM
    assert rank(data, trained, tmp_path / "r.json") == 0
    found = read_scores(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json.run.json").read_text())["encoder"] == FORM
    assert_scores(found, dict(expected_scores(data, trained, use_date=True)))
    cut = {"query_length": 9, "document_length": 12}
    untrained = dict(expected_scores(data, bge, use_date=True, **cut))
    assert max(np.abs(np.subtract(found[key], untrained[key])).max() for key in found) > 0.01


def test_a_trained_encoders_score_is_that_of_its_vectors(data, trained, tmp_path):
    """The validation reward in the run record equals that of rankings by the written encoder."""
    assert 0 <= read_record(trained)["best"] <= 1
    again = tmp_path / "again"
    assert lamp(*words(data, again, "--encoder", trained, "--learning-rate", 0, "--epochs", 1)) == 0
    assert read_record(again)["encoder"] | {"query_length": 9, "document_length": 12} == FORM
    lengths = ("--query-length", 9, "--document-length", 12)
    same = tmp_path / "same"
    assert lamp(*words(data, same, "--encoder", trained, "--learning-rate", 0, "--epochs", 1, *lengths)) == 0
    assert read_record(same)["before"] == read_record(trained)["best"]


def test_sentence_transformers_reads_a_trained_encoder_to_the_same_vectors(data, trained):
    theirs = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers, of the extra `parity`")
    questions = read_questions(data / "questions.json", task=TASK)
    queries = [query_of(question, TASK) for question in questions]
    documents = [text for question in questions for text in documents_of(question, TASK, use_date=True)]
    model, opened = theirs.SentenceTransformer(str(trained), device="cpu"), open_encoder(str(trained), Devices())
    np.testing.assert_allclose(embed_all(queries, opened.queries), model.encode_query(queries), atol=1e-5)
    np.testing.assert_allclose(embed_all(documents, opened.documents), model.encode_document(documents), atol=1e-5)
