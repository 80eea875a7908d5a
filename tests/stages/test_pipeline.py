"""Stages in sequence, as commands, on files of every task; and killed runs."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from lamp_jax import cli
from lamp_jax.data.files import read_outputs, read_questions
from lamp_jax.runs.journals import Journal
from lamp_jax.stages import generate as generate_stage
from lamp_jax.tasks.catalog import TASKS
from lamp_jax.training.checkpoints import Checkpoints

MODEL = str(Path(__file__).parents[1] / "cases" / "tiny" / "t5_ft")
SMALL = ("--max-length", "64", "--num-retrieved", "2", "--batch-size", "8")


def lamp(*words) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def synth(tmp_path_factory):
    """Files of each task, made once."""
    made: dict[str, Path] = {}

    def make(task: str) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp(task)
            words = ("synth", "--task", task, "--questions", 24, "--profile-size", 5, "--output", made[task] / "data")
            assert lamp(*words) == 0
        return made[task] / "data"

    return make


def merged(synth, task: str, folder: Path, split: str = "dev", count: int = 24) -> Path:
    """The first questions of a split, ranked and merged by the commands."""
    data = synth(task)
    questions = read_questions(data / f"{split}_questions.json")[:count]
    golds = read_outputs(data / f"{split}_outputs.json").by_id
    (folder / "q.json").write_text(
        json.dumps([{"id": q.id, "input": q.input, "profile": list(q.profile)} for q in questions])
    )
    (folder / "o.json").write_text(
        json.dumps({"task": "x", "golds": [{"id": q.id, "output": golds[q.id]} for q in questions]})
    )
    ranked = ("--task", task, "--questions", folder / "q.json", "--output", folder / "r.json")
    assert lamp("rank", *ranked, "--workers", 1) == 0
    sources = ("--questions", folder / "q.json", "--outputs", folder / "o.json", "--ranking", folder / "r.json")
    assert lamp("merge", *sources, "--output", folder / f"{split}.json") == 0
    return folder / f"{split}.json"


@pytest.mark.parametrize("task", TASKS)
def test_rank_merge_prompts_generate_evaluate(synth, task, tmp_path, capsys):
    dev = merged(synth, task, tmp_path)
    words = ("--task", task, "--tokenizer", MODEL, "--num-retrieved", 2, "--max-length", 64)
    assert lamp("prompts", "--merged", dev, *words, "--output", tmp_path / "p.jsonl") == 0
    prompts = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().split("\n") if line]
    assert [prompt["id"] for prompt in prompts] == [question.id for question in read_questions(dev)]
    out = tmp_path / "predictions.json"
    words = ("--task", task, "--questions", dev, "--model", MODEL, *SMALL, "--decode", "greedy")
    assert lamp("generate", *words, "--generation-max-length", 8, "--output", out) == 0
    assert read_outputs(out).task == TASKS[task].official_name
    golds = {"task": TASKS[task].official_name, "golds": json.loads((tmp_path / "o.json").read_text())["golds"]}
    (tmp_path / "golds.json").write_text(json.dumps(golds))
    words = ("--task", task.replace("-", "_", 1), "--golds", tmp_path / "golds.json", "--predictions", out)
    assert lamp("evaluate", *words, "--output", tmp_path / "scores.json") == 0
    evaluated = json.loads((tmp_path / "scores.json").read_text())["tasks"]
    generated = json.loads((tmp_path / "predictions.scores.json").read_text())["tasks"]
    assert evaluated == generated


@pytest.fixture(scope="module")
def movie(synth, tmp_path_factory):
    return merged(synth, "LaMP-2", tmp_path_factory.mktemp("movie"))


def generate_words(movie, folder, *more):
    words = ("--task", "LaMP-2", "--questions", movie, "--model", MODEL, *SMALL, "--decode", "labels", *more)
    return ("generate", *words, "--output", folder / "p.json")


def test_label_decoding_answers_labels_only(movie, tmp_path):
    assert lamp(*generate_words(movie, tmp_path)) == 0
    assert set(read_outputs(tmp_path / "p.json").by_id.values()) <= set(TASKS["LaMP-2"].labels)


def test_the_same_command_again_does_nothing_and_another_is_refused(movie, tmp_path, capsys):
    assert lamp(*generate_words(movie, tmp_path)) == 0
    first = (tmp_path / "p.json").stat()
    assert lamp(*generate_words(movie, tmp_path)) == 0
    assert "already generated" in capsys.readouterr().out
    assert (tmp_path / "p.json").stat().st_mtime_ns == first.st_mtime_ns
    assert lamp(*generate_words(movie, tmp_path, "--retriever", "none")) == 1
    assert "--force" in capsys.readouterr().err
    assert lamp(*generate_words(movie, tmp_path, "--retriever", "none", "--force")) == 0


def test_a_killed_generation_resumes_to_the_same_bytes(movie, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    assert lamp(*generate_words(movie, tmp_path / "whole")) == 0
    answered = []

    class Dying(Journal):
        def append(self, entries):
            if answered:
                raise KeyboardInterrupt
            super().append(entries)
            answered.append(len(self.entries))

    with monkeypatch.context() as patch:
        patch.setattr(generate_stage, "Journal", Dying)
        assert lamp(*generate_words(movie, tmp_path)) == 130
    assert not (tmp_path / "p.json").exists()
    again = []
    original = generate_stage.Answerer.__call__
    monkeypatch.setattr(
        generate_stage.Answerer, "__call__", lambda self, *given: again.append(1) or original(self, *given)
    )
    assert lamp(*generate_words(movie, tmp_path)) == 0
    assert len(again) == 2  # three batches of eight, of which one was answered before
    assert (tmp_path / "p.json").read_bytes() == (tmp_path / "whole" / "p.json").read_bytes()
    assert not (tmp_path / "p.json.journal.jsonl").exists()


def test_test_questions_without_golds_get_predictions_and_no_scores(movie, tmp_path):
    questions = [{**record, "output": None} for record in json.loads(movie.read_text())]
    (tmp_path / "test.json").write_text(json.dumps(questions))
    assert lamp(*generate_words(tmp_path / "test.json", tmp_path)) == 0
    assert not (tmp_path / "p.scores.json").exists()


def train_words(movie, folder, *more):
    size = ("--d-model", 16, "--d-ff", 32, "--num-layers", 1, "--num-decoder-layers", 1, "--num-heads", 2)
    words = ("--task", "LaMP-2", "--train", movie, "--validation", movie, "--model", "scratch", *size)
    words += ("--vocab-size", 300, "--epochs", 4, "--learning-rate", 1e-2, "--decode", "labels", *SMALL)
    return ("train", *words, *more, "--output", folder)


def test_a_model_trained_from_scratch_is_a_hugging_face_directory(movie, tmp_path):
    out = tmp_path / "model"
    assert lamp(*train_words(movie, out, "--retrievers", "none", "bm25")) == 0
    for name in ("config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl", "run.json"):
        assert (out / name).is_file()
    record = json.loads((out / "run.json").read_text())
    assert record["finished"]
    assert record["settings"]["compatibility"]["zero_budget"] == "nothing"
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    model, tokenizer = T5ForConditionalGeneration.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        assert model.generate(**tokenizer("a movie", return_tensors="pt"), max_new_tokens=4).shape[0] == 1


def test_a_batch_size_not_divisible_by_the_accumulation_is_an_error(movie, tmp_path, capsys):
    assert lamp(*train_words(movie, tmp_path / "m", "--batch-size", 8, "--accumulation", 3)) == 1
    assert "--batch-size 8 is not a multiple of --accumulation 3" in capsys.readouterr().err


def saved_state(checkpoints: Path):
    """All arrays of the newest checkpoint: parameters, optimizer, step."""
    (newest,) = [path for path in checkpoints.iterdir() if path.name.isdigit()]
    with pytest.warns(UserWarning, match="Sharding info"):  # no sharding is requested
        return ocp.load(newest)


@pytest.mark.slow
def test_a_resumed_training_is_bit_identical(movie, tmp_path, monkeypatch):
    assert lamp(*train_words(movie, tmp_path / "whole")) == 0
    save = Checkpoints.save

    def save_and_die(self, step, *given):
        save(self, step, *given)
        if step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        assert lamp(*train_words(movie, tmp_path / "cut")) == 130
    assert lamp(*train_words(movie, tmp_path / "cut")) == 0
    states = [saved_state(tmp_path / name / "checkpoints") for name in ("whole", "cut")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "cut" / "model.safetensors"
    ).read_bytes()


def test_fine_tuning_starts_from_the_given_model(movie, tmp_path):
    words = ("--task", "LaMP-2", "--train", movie, "--validation", movie, "--model", MODEL, "--decode", "labels")
    assert lamp("train", *words, *SMALL, "--epochs", 1, "--learning-rate", 0, "--output", tmp_path / "tuned") == 0
    before, after = (Path(MODEL) / "model.safetensors", tmp_path / "tuned" / "model.safetensors")
    from safetensors.numpy import load_file

    tensors, tuned = load_file(before), load_file(after)
    for name, values in tuned.items():
        assert (values == tensors[name]).all()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "dev.json").write_text("[{"), "truncated JSON"),
        (lambda folder: (folder / "dev.json").unlink(), "no such file"),
        (lambda folder: (folder / "model" / "model.safetensors").unlink(), "model.safetensors"),
    ],
)
def test_bad_input_is_named_without_a_traceback(movie, tmp_path, capsys, spoil, words):
    shutil.copy(movie, tmp_path / "dev.json")
    shutil.copytree(MODEL, tmp_path / "model")
    spoil(tmp_path)
    given = ("--task", "LaMP-2", "--questions", tmp_path / "dev.json", "--model", tmp_path / "model")
    assert lamp("generate", *given, "--output", tmp_path / "p.json") == 1
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_another_tasks_file_is_named(movie, tmp_path, capsys):
    words = ("--task", "LaMP-3", "--questions", movie, "--output", tmp_path / "r.json")
    assert lamp("rank", *words) == 1
    assert "is this a file of LaMP-3?" in capsys.readouterr().err


def test_label_decoding_needs_a_label_task(synth, tmp_path, capsys):
    dev = merged(synth, "LaMP-4", tmp_path)
    words = ("--task", "LaMP-4", "--questions", dev, "--model", MODEL, "--decode", "labels")
    assert lamp("generate", *words, "--output", tmp_path / "p.json") == 1
    assert "LaMP-4 has no labels" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "said"), [("gold", "has no reference"), ("id", "this id occurs twice")])
def test_bad_train_questions_are_named_before_a_forced_run_removes_anything(tmp_path, change, said, capsys):
    item = {"id": "1", "text": "fine", "score": "4"}
    questions = [{"id": key, "input": "review: fine", "profile": [item], "output": "4"} for key in ("1", "2", "3")]
    (tmp_path / "good.json").write_text(json.dumps(questions))
    if change == "gold":
        del questions[2]["output"]
    else:
        questions[2]["id"] = "1"
    (tmp_path / "bad.json").write_text(json.dumps(questions))
    (tmp_path / "model").mkdir()
    record = {"stage": "train", "fingerprint": "another", "finished": True, "makes": ["model.safetensors"]}
    (tmp_path / "model/run.json").write_text(json.dumps(record))
    (tmp_path / "model/model.safetensors").write_text("{}")
    files = ("--train", tmp_path / "bad.json", "--validation", tmp_path / "good.json", "--output", tmp_path / "model")
    assert lamp("train", "--task", "LaMP-3", *files, "--model", "scratch", "--force") == 1
    error = capsys.readouterr().err
    assert said in error
    assert "bad.json" in error
    assert (tmp_path / "model/model.safetensors").exists()
