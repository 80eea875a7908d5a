"""Damaged models and foreign tokenizers: every stage that reads a model rejects them before it starts work."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lamp_jax import cli
from lamp_jax.artifacts.selector import Candidate, CandidateSet, QuestionCandidates, write_candidates
from lamp_jax.inputs.selector import SelectorSettings, write_settings
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.tasks.catalog import find_task
from tests.goldens import cases

TINY = cases.CASES / "tiny"
MODELS = {"t5": TINY / "t5_ft", "bert": TINY / "bert", "longformer": TINY / "longformer_w512"}
STAGES = {
    "generate": "t5",
    "feedback items": "t5",
    "feedback retrievers": "t5",
    "train": "t5",
    "train-adapters": "t5",
    "rank": "bert",
    "train-retriever": "bert",
    "train-selector": "longformer",
    "select": "longformer",
}


@pytest.fixture
def files(tmp_path):
    """Questions with golds, feedback on their items, and candidates to choose among."""
    questions = [
        {
            "id": str(number),
            "input": find_task("LaMP-3").template.format(text="good"),
            "profile": [{"id": f"{number}{place}", "text": "a film", "score": "4", "date": "2003"} for place in (0, 1)],
            "user_id": f"u{number}",
            "output": "4",
        }
        for number in range(4)
    ]
    (tmp_path / "q.json").write_text(json.dumps(questions))
    feedback = {f"{number}-{number}{place}": {"mae": float(place)} for number in range(4) for place in (0, 1)}
    (tmp_path / "f.json").write_text(json.dumps(feedback))
    candidates = {name: Candidate("a prompt", "4", float(name == "bm25"), {}) for name in ("none", "bm25")}
    questions = [QuestionCandidates(str(number), "an input", "4", candidates) for number in range(4)]
    write_candidates(tmp_path / "d.json", CandidateSet(find_task("LaMP-3"), "mae", ("none", "bm25"), questions))
    return tmp_path


def copy(kind, folder):
    directory = folder / "model"
    shutil.copytree(MODELS[kind], directory)
    settings = SelectorSettings("LaMP-3", "mae", ("none", "bm25"), "pre", 64, "cased", "prompt", "global")
    write_settings(directory, settings)
    return directory


def words_of(stage, model, files):
    questions, output = files / "q.json", files / "out"
    task, length, held = ("--task", "LaMP-3"), ("--max-length", 64), ("--held-out", 0.5)
    return {
        "generate": (*task, "--questions", questions, "--model", model, *length),
        "feedback items": (*task, "--merged", questions, "--model", model, *length),
        "feedback retrievers": (*task, "--pool", "none", f"bm25={questions}", "--model", model, *length),
        "train": (*task, "--train", questions, "--validation", questions, "--model", model, *length),
        "train-adapters": (*task, "--questions", questions, "--model", model, *length),
        "rank": (*task, "--questions", questions, "--ranker", "dense", "--encoder", model, *length),
        "train-retriever": (*task, "--questions", questions, "--feedback", files / "f.json", "--encoder", model, *held),
        "train-selector": ("--train", files / "d.json", "--validation", files / "d.json", "--model", model, *length),
        "select": ("--selector", model, "--data", files / "d.json"),
    }[stage] + ("--output", output)


def refused(stage, model, files, capsys):
    """The error of a stage, which wrote no answers and no model."""
    status = cli.main([*stage.split(), *(str(word) for word in words_of(stage, model, files))])
    assert status == 1
    written = [files / "out", *(files / "out").glob("*")]
    assert not [path for path in written if path.is_file() and path.suffix in ("", ".safetensors")]
    return capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_a_tokenizer_with_more_ids_than_rows_is_refused_with_both_sizes(stage, files, capsys):
    model = copy(STAGES[stage], files)
    ids = {*load_tokenizer(model).get_vocab().values()}
    config = json.loads((model / "config.json").read_text())
    rows, tensors = max(ids), load_file(model / "model.safetensors")  # one row too few
    for name, values in tensors.items():
        if values.shape[:1] == (config["vocab_size"],):
            tensors[name] = values[:rows]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    error = refused(stage, model, files, capsys)
    assert f"the tokenizer has {len(ids)} ids up to {rows}, and the embedding has {rows} rows" in error


@pytest.mark.parametrize("stage", STAGES)
def test_weights_that_are_not_finite_are_refused_with_the_tensors_name(stage, files, capsys):
    model = copy(STAGES[stage], files)
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith(("layer_norm.weight", "LayerNorm.bias")))
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert f"values of {name} are not finite" in refused(stage, model, files, capsys)


def test_a_selector_that_reads_longer_texts_than_it_has_positions_for_is_refused(files, capsys):
    model = copy("longformer", files)
    settings = json.loads((model / "selector.json").read_text())
    (model / "selector.json").write_text(json.dumps(settings | {"max_length": 4096}))
    assert "reads texts of at most" in refused("select", model, files, capsys)


@pytest.mark.parametrize(("name", "value"), [("max_length", "64"), ("pool", None), ("mode", 3), ("cut", "middle")])
def test_invalid_selector_settings_are_refused(files, capsys, name, value):
    model = copy("longformer", files)
    settings = json.loads((model / "selector.json").read_text())
    (model / "selector.json").write_text(json.dumps(settings | {name: value}))
    assert f"selector.json: {name} is" in refused("select", model, files, capsys)
