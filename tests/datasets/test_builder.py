"""The TFDS data set `lamp`: every question is unchanged, and every distinct profile is stored once."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_jax.config import Work
from lamp_jax.data import chunks
from lamp_jax.data.files import Question, read_outputs, read_questions, write_questions
from lamp_jax.data.sources import LampSource
from lamp_jax.datasets import builder
from lamp_jax.datasets.synthetic import write_benchmark
from lamp_jax.errors import LampError
from lamp_jax.runs import workers
from lamp_jax.runs.records import digest
from lamp_jax.tasks.catalog import TASKS, find_task

TASK = find_task("LaMP-3")


def prepare(tree: Path, output: Path, *, task=TASK, **more) -> tfds.core.DatasetBuilder:
    made = tfds.builder(f"lamp/{builder.config_name(task, 'user')}", data_dir=output, source=tree, **more)
    made.download_and_prepare(file_format="array_record", download_dir=output / "downloads")
    return made


def question(number, *texts, **fields) -> Question:
    items = tuple({"id": f"{number}{place}", "text": text, "score": "5"} for place, text in enumerate(texts))
    return Question(str(number), f"review: {number}", items, **fields)


@pytest.fixture
def tree(tmp_path) -> Path:
    """60 train questions in pairs that share a profile in opposite orders, and 20 dev questions."""
    write_benchmark(TASK, tmp_path / "tree", questions=60, dev_questions=20, profile_size=6, seed=0)
    path = tmp_path / "tree/train_questions.json"
    questions = read_questions(path)
    for place in range(1, 60, 2):
        profile = [{**item, "id": f"{place}-{item['id']}"} for item in reversed(questions[place - 1].profile)]
        questions[place] = replace(questions[place], profile=tuple(profile))
    write_questions(path, questions)
    return tmp_path / "tree"


def expected(tree: Path, part: str) -> list[Question]:
    golds = read_outputs(tree / f"{part}_outputs.json").by_id
    return [replace(one, output=golds[one.id]) for one in read_questions(tree / f"{part}_questions.json")]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_questions_of_every_task_round_trip(tmp_path, task):
    write_benchmark(task, tmp_path, questions=8, dev_questions=4, profile_size=5, seed=0)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    made = prepare(tmp_path, tmp_path / "out", task=task)
    for part in ("train", "dev"):
        assert list(LampSource(made, part)) == expected(tmp_path, part)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.json")} == before


TEXT = st.text(st.characters(exclude_categories=[])) | st.sampled_from(["", "half \ud83d", "a\0"])
ID = st.text()
"""Without lone surrogates, unlike other texts."""
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=3,
)
ITEM = st.fixed_dictionaries(
    {"text": TEXT, "score": st.sampled_from(["5", 5, 5.0])}, optional={"date": TEXT, "éxtra": VALUE}
)


@st.composite
def question_lists(draw) -> list[Question]:
    """Questions with profiles drawn from a few profiles, each time in another order, with other ids or more items."""
    profiles = draw(st.lists(st.lists(ITEM, max_size=3), min_size=1, max_size=3))
    rows = []
    for number in range(draw(st.integers(1, 5))):
        items = draw(st.permutations(draw(st.sampled_from(profiles)) + draw(st.lists(ITEM, max_size=1))))
        profile = tuple({"id": draw(ID), **item} for item in items + draw(st.sampled_from([[], items[:1]])))
        user = draw(st.none() | ID | st.integers(-(2**63), 2**63 - 1))
        rows.append(Question(f"{number}{draw(ID)}", draw(TEXT), profile, user, draw(st.none() | TEXT)))
    return rows


@settings(max_examples=25)
@given(question_lists())
def test_any_questions_round_trip(tmp_path_factory, questions):
    tree = tmp_path_factory.mktemp("any")
    write_questions(tree / "test_questions.json", questions)
    source = LampSource(prepare(tree, tree / "out"), "test")
    read = read_questions(tree / "test_questions.json")
    assert list(source) == read == questions
    # Equal numbers, such as 5 and 5.0, may have different types.
    assert [_kinds(one) for one in source] == [_kinds(one) for one in questions]


def _kinds(question: Question) -> list[str]:
    items = [sorted((key, repr(value)) for key, value in item.items() if key != "éxtra") for item in question.profile]
    return [repr(question.user_id), repr(items)]


def test_a_profile_is_stored_once_for_all_questions_and_splits(tmp_path):
    gold = {"output": "5"}
    write_questions(tmp_path / "train_questions.json", [question(1, "a", "b", **gold), question(2, "b", "a", **gold)])
    rows = [question(3, "a", "b", "b"), question(4, "b", "a", "b"), question(5), question(6), question(7, "a", "b")]
    write_questions(tmp_path / "test_questions.json", rows)
    made = prepare(tmp_path, tmp_path / "out")
    assert {name: split.num_examples for name, split in made.info.splits.items()} == {
        "train": 2,
        "test": 5,
        "profiles": 3,
    }
    assert [one["profile"] for one in made.as_data_source("test")] == [1, 1, 2, 2, 0]
    assert list(LampSource(made, "test")) == rows


def test_a_missing_gold_and_an_empty_gold_are_distinguished(tmp_path):
    write_questions(tmp_path / "dev_questions.json", [question(1), question(2, output="")])
    made = prepare(tmp_path, tmp_path / "out")
    assert [one["output"] for one in made.as_data_source("dev")] == [None, b""]
    assert [one.output for one in LampSource(made, "dev")] == [None, ""]


def test_record_i_is_question_i_in_any_number_of_shards(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_SHARD_BYTES", 2**9)
    made = prepare(tree, tmp_path / "out")
    assert all(split.num_shards > 3 for split in made.info.splits.values())
    assert made.info.splits["profiles"].num_examples == 30 + 20
    assert list(LampSource(made, "train")) == expected(tree, "train")
    assert list(LampSource(made, "dev")) == expected(tree, "dev")


def test_several_processes_write_the_same_data_set_as_one(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", 2**11)
    monkeypatch.setattr(workers, "_BYTES_WORTH_A_PROCESS", 1)
    (tree / "dev_questions.json").unlink()
    made = [prepare(tree, tmp_path / str(count), work=Work(workers=count)) for count in (1, 2)]
    for split in ("train", "profiles"):
        one, other = (list(each.as_data_source(split)) for each in made)
        assert one
        assert other == one


def test_every_process_writes_the_same_bytes(tree, tmp_path):
    code = "import sys; from lamp_jax import cli; sys.exit(cli.main(sys.argv[1:]))"
    for output in ("one", "other"):
        words = ["tfds", "--task", TASK.name, "--data", str(tree), "--output", str(tmp_path / output)]
        subprocess.run([sys.executable, "-c", code, *words], check=True)
    one, other = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "other")
    )
    assert one == other
    assert len(one) > 4


def test_defects_are_corrected_and_the_files_are_recorded(tmp_path):
    task = find_task("LaMP-2")
    bare = Question("110", "A bare description.", ({"id": "1", "tag": "comedy", "description": "x"},), output="comedy")
    path = tmp_path / "dev_questions.json"
    write_questions(path, [bare])
    for patches, text in ((("lamp2-dev-110",), task.input_for(bare.input)), ((), bare.input)):
        made = prepare(tmp_path, tmp_path / f"out{len(patches)}", task=task, patches=patches)
        assert LampSource(made, "dev")[0].input == text
        assert json.loads(Path(made.data_dir, "metadata.json").read_text()) == {
            "task": "LaMP-2",
            "split": "user",
            "patches": list(patches),
            "sources": {path.name: {"bytes": path.stat().st_size, "sha256": digest(str(path))}},
        }


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("dev_questions.json", '[{"id": "1", "input": "x", "profile": []}, {"id": "2"', "truncated JSON"),
        (
            "dev_questions.json",
            '[{"id": "1", "input": "x", "profile": [{"id": "7", "text": "a"}]}]',
            "item '7': 'score'",
        ),
        ("dev_questions.json", '[{"id": "1", "input": "x", "profile": [], "user_id": 1.5}]', "'user_id' must be"),
        ("train_outputs.json", '[{"id": "none of them", "output": "5"}]', "1 ids of .*train_outputs"),
    ],
)
def test_a_bad_file_is_named_and_no_output_remains(tree, tmp_path, name, content, words):
    (tree / name).write_text(content)
    with pytest.raises(LampError, match=words) as error:
        prepare(tree, tmp_path / "out")
    assert name in str(error.value)
    assert not list((tmp_path / "out").rglob("*.array_record*"))
    assert not list((tmp_path / "out").rglob("1.0.0"))


def test_a_number_that_would_not_round_trip_is_refused(tmp_path):
    # With a lone surrogate the standard library reads the record, and keeps integers of any length.
    item = f'{{"id": "7", "text": "a", "score": {2**64 + 1}}}'
    content = f'[{{"id": "1", "input": "\\ud83d", "profile": [{item}]}}]'
    (tmp_path / "dev_questions.json").write_text(content)
    with pytest.raises(LampError, match=r"dev_questions\.json, question '1': contains a number"):
        prepare(tmp_path, tmp_path / "out")


def test_the_error_about_a_missing_source_names_the_argument(tmp_path):
    with pytest.raises(LampError, match=r"lamp_3_user.*give source=TREE"):
        prepare("", tmp_path)


def test_the_builder_needs_neither_tensorflow_nor_jax(tmp_path):
    write_questions(tmp_path / "dev_questions.json", [question(1, "a")])
    program = f"""
import sys
import lamp_jax.datasets.builder, tensorflow_datasets as tfds
from lamp_jax.data.sources import LampSource
made = tfds.builder("lamp/lamp_3_user", data_dir={str(tmp_path / "out")!r}, source={str(tmp_path)!r})
made.download_and_prepare(file_format="array_record")
assert LampSource(made, "dev")[0].id == "1"
assert not {{"jax", "tensorflow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
