"""`lamp tfds` as a command: its output, repeated runs, and interrupted runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lamp_jax import cli
from lamp_jax.data.files import add_outputs, read_outputs, read_questions
from lamp_jax.data.sources import LampSource, open_source
from lamp_jax.datasets.synthetic import write_benchmark
from lamp_jax.inputs.generator import ExampleMaker, load_examples
from lamp_jax.inputs.tokenizer import train_tokenizer
from lamp_jax.options import Prompting, Train
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-3")


def lamp(*words) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture
def tree(tmp_path) -> Path:
    write_benchmark(TASK, tmp_path / "tree", questions=6, dev_questions=3, profile_size=4, seed=0)
    return tmp_path / "tree"


@pytest.fixture
def command(tree, tmp_path) -> tuple:
    return ("tfds", "--data", tree, "--task", "LaMP-3", "--split", "time", "--output", tmp_path / "out")


@pytest.fixture
def place(tmp_path) -> Path:
    return tmp_path / "out/lamp/lamp_3_time"


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_a_data_set_is_built_from_a_tree_once(command, tree, place, capsys):
    assert lamp(*command) == 0
    printed = capsys.readouterr().out
    assert "9 questions (train 6, dev 3) with 9 distinct profiles" in printed
    assert "Downloading" not in printed
    for part in ("train", "dev"):
        golds = read_outputs(tree / f"{part}_outputs.json").by_id
        asked = add_outputs(read_questions(tree / f"{part}_questions.json"), golds)
        assert list(LampSource(place / "1.0.0", part)) == asked
    record = json.loads((place / "run.json").read_text())
    assert (record["questions"], record["distinct_profiles"]) == ({"train": 6, "dev": 3}, 9)
    assert record["bytes_of_files"] == sum(path.stat().st_size for path in tree.glob("*_*.json"))
    before = contents(place)
    assert lamp(*command) == 0
    assert "already made" in capsys.readouterr().out
    assert contents(place) == before
    assert [path.name for path in place.parent.parent.iterdir()] == ["lamp"]


def test_a_tree_that_was_moved_is_the_same(command, tree, place, capsys):
    assert lamp(*command) == 0
    tree.rename(tree.with_name("moved"))
    assert lamp(*[tree.with_name("moved") if word == tree else word for word in command]) == 0
    assert "already made" in capsys.readouterr().out


def test_other_files_are_refused_and_forced(command, tree, place, capsys):
    assert lamp(*command) == 0
    before = contents(place)
    write_benchmark(TASK, tree, questions=5, dev_questions=3, profile_size=4, seed=1)
    assert lamp(*command) == 1
    assert "exists with other settings or inputs" in capsys.readouterr().err
    assert contents(place) == before
    assert lamp(*command, "--force") == 0
    inputs = [question.input for question in LampSource(place / "1.0.0", "train")]
    assert inputs == [question.input for question in read_questions(tree / "train_questions.json")]


def test_bad_files_keep_the_old_data_set(command, tree, place, capsys):
    (tree / "dev_outputs.json").write_text('[{"id": "other", "output": "5"}]')
    assert lamp(*command) == 1
    assert "dev_outputs.json" in capsys.readouterr().err
    assert not place.exists()
    (tree / "dev_outputs.json").unlink()
    assert lamp(*command) == 0
    before = contents(place)
    (tree / "dev_questions.json").write_text("[{")
    assert lamp(*command, "--force") == 1
    assert contents(place) == before


def test_a_killed_command_leaves_no_version_and_is_repeated_from_the_start(command, place):
    program = f"""
import os
from lamp_jax import cli
from lamp_jax.options import Prompting, Train
from lamp_jax.datasets import builder
builder.profiles_of = lambda *_, **__: os._exit(9)
cli.main({[str(word) for word in command]!r})
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 9
    assert len(list(place.glob(".building.unfinished/lamp/*/incomplete*/*.array_record*"))) > 0
    assert not (place / "1.0.0").exists()
    assert lamp(*command) == 0
    assert sorted(path.name for path in place.iterdir()) == ["1.0.0", "run.json"]
    assert len(LampSource(place / "1.0.0", "train")) == 6


def test_a_task_that_the_tree_does_not_have_is_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert lamp("tfds", "--data", tmp_path / "empty", "--task", "LaMP-3", "--output", tmp_path / "out") == 1
    assert "no questions of LaMP-3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_examples_of_a_data_set_equal_those_of_its_file(command, tree, tmp_path):
    assert lamp(*command) == 0
    golds, merged = tree / "train_outputs.json", tmp_path / "train.json"
    assert lamp("merge", "--questions", tree / "train_questions.json", "--outputs", golds, "--output", merged) == 0
    options = Train("LaMP-3", "", "", "", prompting=Prompting(num_retrieved=2))
    tokenizer = train_tokenizer([question.input for question in read_questions(merged)], vocab_size=200)
    make = ExampleMaker(TASK, tokenizer, options, retriever="recency", longest_answer=8)
    sources = [open_source(place, TASK) for place in (merged, tmp_path / "out" / "train")]
    examples, others = (list(load_examples(source, make)) for source in sources)
    assert len(examples) == 6
    assert others == examples
