"""Generation settings of a model's files: followed and recorded by every stage that generates."""

import json
import shutil

import pytest

from lamp_jax import cli
from tests.goldens.cases import CASES

MODEL = CASES / "tiny" / "t5_ft"
FACTS = {"source": "generation_config.json", "applied": {"min_new_tokens": 6}, "ignored": {}}
SEARCH = ("--task", "LaMP-4", "--decode", "greedy", "--generation-max-length", 8, "--max-length", 64)


def lamp(*words) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture
def files(tmp_path):
    """A model whose settings require at least six tokens, and questions."""
    shutil.copytree(MODEL, tmp_path / "model")
    asked = {"min_new_tokens": 6, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(asked))
    item = {"id": "p", "title": "river", "text": "stone and cloud"}
    text = "Generate a headline for the following article: "
    questions = [{"id": f"{n}", "input": f"{text}{n}", "profile": [item], "output": "river"} for n in range(8)]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    return tmp_path


def generation_of(path) -> dict:
    return json.loads(path.read_text())["generation"]


def test_generate_and_feedback_record_the_settings(files, capsys):
    model, questions = files / "model", files / "questions.json"
    assert lamp("generate", *SEARCH, "--questions", questions, "--model", model, "--output", files / "g.json") == 0
    assert capsys.readouterr().out.count("min_new_tokens 6") == 1
    assert generation_of(files / "g.json.run.json") == FACTS
    assert lamp("feedback", "items", *SEARCH, "--merged", questions, "--model", model, "--output", files / "f") == 0
    assert generation_of(files / "f" / "run.json") == FACTS
    (model / "generation_config.json").write_text('{"do_sample": true}')
    assert lamp("generate", *SEARCH, "--questions", questions, "--model", model, "--output", files / "n.json") == 1
    assert "do_sample" in capsys.readouterr().err
    assert not (files / "n.json").exists()


def test_a_trained_model_keeps_the_settings(files):
    questions = ("--train", files / "questions.json", "--validation", files / "questions.json")
    learning = ("--epochs", 1, "--batch-size", 8, "--learning-rate", 1e-3)
    assert lamp("train", *SEARCH, *questions, *learning, "--model", files / "model", "--output", files / "t") == 0
    assert generation_of(files / "t" / "run.json") == FACTS
    kept, asked = (json.loads((files / name / "generation_config.json").read_text()) for name in ("t", "model"))
    assert kept == asked
