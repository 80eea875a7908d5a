"""Diffs of the package's README: each applies to a copy of the package, whose commands then have the new function.

If the lines around a diff have changed, make its change by hand, and put the output of `git diff -U1` into the README.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lamp_jax.data.files import read_questions
from lamp_jax.datasets.synthetic import write_benchmark
from lamp_jax.tasks.catalog import find_task
from tests.goldens.cases import CASES
from tests.stages.test_train_retriever import make_feedback, make_questions, words

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "lamp_jax" / "README.md"
COMMANDS = """
import json, sys
from lamp_jax import cli
for words in json.load(sys.stdin):
    assert cli.main(words) == 0, words
"""


def read_diff(heading: str) -> str:
    """The diff below a heading."""
    (section,) = re.findall(rf"^### {heading}\n(.*?)(?=^##)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (diff,) = re.findall(r"^```diff\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return diff


@pytest.fixture
def extend(tmp_path):
    """Applies the diff below a heading to a copy of the package; returns a function that runs commands with it."""

    def apply(heading: str):
        copy = tmp_path / "copy"
        shutil.copytree(ROOT / "lamp_jax", copy / "lamp_jax", ignore=shutil.ignore_patterns("__pycache__"))
        outside = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}  # of any repository
        applied = subprocess.run(["git", "apply", "-"], input=read_diff(heading), text=True, cwd=copy, env=outside)
        assert not applied.returncode, f"{PAGE}, {heading}: the diff does not apply any more; see this module"
        return run

    def run(*commands):
        words = json.dumps([[str(word) for word in command] for command in commands])
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "copy"), "JAX_PLATFORMS": "cpu"}
        arguments = [sys.executable, "-c", COMMANDS]
        done = subprocess.run(arguments, input=words, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return apply


def test_a_task_of_any_name_works_in_the_commands(extend, tmp_path):
    questions, outputs = tmp_path / "data/train_questions.json", tmp_path / "data/train_outputs.json"
    named = ("--task", "Recipes")
    predictions = tmp_path / "predictions.json"
    run = extend("A task")
    run(("synth", *named, "--questions", 12, "--dev-questions", 5, "--output", tmp_path / "data"))
    golds = json.loads(outputs.read_text())
    assert golds["task"] == "Recipes"
    predictions.write_text(json.dumps(golds))
    table = run(
        ("check", questions, outputs, predictions, "--output", tmp_path / "found.json"),
        ("rank", *named, "--questions", questions, "--output", tmp_path / "ranking.json", "--workers", 1),
        *[("merge", "--questions", questions, "--outputs", outputs, "--ranking", tmp_path / "ranking.json",
           "--output", tmp_path / "merged.json", "--workers", 1)],
        *[("prompts", *named, "--merged", tmp_path / "merged.json", "--tokenizer", CASES / "tiny" / "t5",
           "--output", tmp_path / "prompts.jsonl")],
        ("evaluate", "--golds", outputs, "--predictions", predictions, "--output", tmp_path / "scores.json"),
        ("rank", "--all", tmp_path / "data", *named, "--output", tmp_path / "tree", "--workers", 1),
    )  # fmt: skip
    assert "train_questions.json: questions of Recipes" in table
    assert [one["task"] for one in json.loads((tmp_path / "found.json").read_text())] == ["Recipes"] * 3
    ids = [question["id"] for question in json.loads(questions.read_text())]
    assert all(key.startswith("7") for key in ids)
    prompts = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [one["id"] for one in prompts] == ids
    assert all(re.search(r'" is a (starter|main|dessert)', one["prompt"]) for one in prompts)
    assert json.loads((tmp_path / "scores.json").read_text())["tasks"]["Recipes"]["mean"]["accuracy"] == 1.0
    assert (tmp_path / "tree" / "Recipes" / "train_bm25.json").is_file()


def test_a_ranker_of_one_row_and_one_function_works_in_the_commands(extend, tmp_path):
    task = find_task("LaMP-3")
    write_benchmark(task, tmp_path / "data", questions=12, dev_questions=5, profile_size=6, seed=0)
    questions, ranking, merged = tmp_path / "data/train_questions.json", tmp_path / "r.json", tmp_path / "m.json"
    run = extend("A retriever")
    run(
        ("rank", "--task", "LaMP-3", "--questions", questions, "--ranker", "longest", "--output", ranking),
        ("merge", "--questions", questions, "--ranking", ranking, "--output", merged),
        *[("prompts", "--task", "LaMP-3", "--merged", questions, "--tokenizer", CASES / "tiny" / "t5",
           "--retriever", "longest", "--output", tmp_path / "prompts.jsonl")],
        *[("prompts", "--task", "LaMP-3", "--merged", merged, "--tokenizer", CASES / "tiny" / "t5",
           "--output", tmp_path / "same.jsonl")],
    )  # fmt: skip
    found = read_questions(merged, task=task)
    lengths = [[len(str(item["text"])) for item in question.profile] for question in found]
    assert len(lengths) == 12
    assert all(one == sorted(one, reverse=True) for one in lengths)
    assert (tmp_path / "prompts.jsonl").read_text() == (tmp_path / "same.jsonl").read_text()
    helped = " ".join(explain(tmp_path, "rank").split())
    assert "bm25" in helped
    assert "`longest`: the longest text first" in helped
    assert "{file,none,longest,bm25" in explain(tmp_path, "generate").replace(" ", "").replace("\n", "")


@pytest.mark.slow
def test_a_training_method_of_three_files_trains(extend, tmp_path):
    (tmp_path / "questions.json").write_text(json.dumps(list(make_questions())))
    (tmp_path / "feedback.json").write_text(json.dumps(make_feedback()))
    assert len(re.findall(r"^\+\+\+ ", read_diff("A training method"), re.MULTILINE)) <= 4
    run = extend("A training method")
    output = tmp_path / "hinge"
    run((*words(tmp_path, output), "--method", "hinge", "--margin", 0.5, "--log-every", 0))
    record = json.loads((output / "run.json").read_text())
    assert record["finished"]
    assert (record["settings"]["method"], record["settings"]["margin"]) == ("hinge", 0.5)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses
    assert all(0 < loss < 10 for loss in losses)
    assert "`hinge`: difference by which" in " ".join(explain(tmp_path, "train-retriever").split())


def explain(folder: Path, command: str) -> str:
    """The help of a command of the copy, without the frame."""
    environment = os.environ | {"PYTHONPATH": str(folder / "copy"), "COLUMNS": "200"}
    arguments = [sys.executable, "-m", "lamp_jax.cli", command, "--help"]
    done = subprocess.run(arguments, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.replace("│", "")
