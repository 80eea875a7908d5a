"""Reading and writing of LaMP files."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.data.files import (
    Question,
    add_outputs,
    question_record,
    read_outputs,
    read_questions,
    write_predictions,
    write_questions,
)
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import atomic_write, read_json
from lamp_jax.tasks.catalog import find_task

ITEM = {"id": "10", "text": "good\u0085film\r\n", "score": "4"}
RECORD = {"id": "1", "input": "review: fine", "profile": [ITEM]}


def written(path: Path, value) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_official_lists_and_objects_give_the_same_questions(tmp_path):
    plain = read_questions(written(tmp_path / "plain.json", [RECORD]))
    wrapped = read_questions(written(tmp_path / "wrapped.json", {"task": "LaMP_3", "golds": [RECORD]}))
    assert plain == wrapped == [Question("1", "review: fine", (ITEM,))]


def test_outputs_are_read_in_both_formats_with_their_task(tmp_path):
    golds = [{"id": "011", "output": "4"}, {"id": 12, "output": 5}]
    official = read_outputs(written(tmp_path / "a.json", {"task": "LaMP_3", "golds": golds}))
    assert official == ("LaMP_3", {"011": "4", "12": "5"})
    assert read_outputs(written(tmp_path / "b.json", golds)) == (None, official.by_id)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "neither a JSON list nor an object"),
        ("<!DOCTYPE html>", "neither a JSON list nor an object"),
        ([], "no records"),
        ([RECORD, RECORD], "'1': this id occurs twice"),
        ([{"id": "1", "profile": []}], "'input' must be a text, found nothing"),
        ([{"id": "1", "input": "x"}], "'profile' must be a list, found nothing"),
        ([{"id": "1", "input": "x", "profile": [{"text": "y"}]}], "profile item 0 has no 'id'"),
        (["x"], "record 0, byte 1: expected an object, found '\"x\"'"),
        ([{"id": "1", "input": "x", "profile": [{"id": "10", "text": "y"}]}], "item '10': 'score' must be a text"),
        ([{"id": "1", "input": "x", "profile": [{**ITEM, "score": None}]}], "'score' must be a text, found None"),
    ],
)
def test_bad_questions_are_named(tmp_path, content, words):
    path = written(tmp_path / "bad.json", content)
    with pytest.raises(LampError, match=r"bad\.json") as error:
        read_questions(path, task=find_task("LaMP-3"))
    assert words in str(error.value)


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    for path, words in ((tmp_path / "none.json", "no such file"), (tmp_path, "a directory")):
        with pytest.raises(LampError, match=words):
            read_questions(path)


@given(st.integers(1, 200))
def test_a_file_cut_off_anywhere_is_an_error_that_names_it(tmp_path_factory, cut):
    complete = json.dumps([RECORD, {**RECORD, "id": "2"}])
    path = tmp_path_factory.mktemp("cut") / "cut.json"
    path.write_text(complete[: min(cut, len(complete) - 1)], encoding="utf-8")
    with pytest.raises(LampError, match=r"cut\.json"):
        read_questions(path)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.lists(
        st.tuples(TEXT, TEXT, st.one_of(st.none(), st.integers(1 - 2**63, 2**63 - 1), TEXT)), min_size=1, max_size=5
    )
)
def test_questions_survive_writing_and_reading(tmp_path_factory, rows):
    questions = [
        Question(str(place), text, ({"id": "1", "text": output, "score": 3},), user_id=user, output=output)
        for place, (text, output, user) in enumerate(rows)
    ]
    path = tmp_path_factory.mktemp("trip") / "questions.json"
    assert write_questions(path, questions) == len(questions)
    assert read_questions(path) == questions
    assert json.loads(path.read_text(encoding="utf-8"))[0] == question_record(questions[0])


@pytest.mark.parametrize("field", ["id", "user_id"])
def test_a_number_beyond_64_bits_is_an_error_that_names_the_file(tmp_path, field):
    path = written(tmp_path / "big.json", [{**RECORD, field: 2**64}])
    with pytest.raises(LampError, match=rf"big\.json, record 0, byte 1: '{field}' must be .*, found 1\.8"):
        read_questions(path)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"1": [%s]}' % ("9" * 5000), '{"1": "\udcff"}x', "{"])
def test_json_that_cannot_be_read_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(LampError, match=r"bad\.json: invalid JSON"):
        read_json(tmp_path / "bad.json")


def test_only_the_movie_without_an_instruction_is_corrected(tmp_path):
    movie = {"id": "1100", "tag": "comedy", "description": "x"}
    bare = {"id": "110", "input": "A bare film.", "profile": [movie]}
    complete, empty = tmp_path / "whole.json", tmp_path / "empty.json"
    patched = find_task("LaMP-2").input_for("A bare film.")
    assert read_questions(written(complete, [bare]))[0].input == patched
    assert read_questions(complete, patches=())[0].input == "A bare film."
    # An empty profile is valid for any task.
    assert read_questions(written(empty, [{**bare, "profile": []}]))[0].input == "A bare film."


def test_lone_surrogates_survive(tmp_path):
    path = written(tmp_path / "tweet.json", [{**RECORD, "input": "half \ud83d"}])
    questions = read_questions(path)
    write_questions(tmp_path / "again.json", questions)
    assert read_questions(tmp_path / "again.json") == questions


def test_golds_must_match_their_questions():
    questions = [Question(key, "", ()) for key in ("1", "2")]
    assert [q.output for q in add_outputs(questions, {"2": "b", "1": "a"})] == ["a", "b"]
    with pytest.raises(LampError, match=r"1 ids of the questions are not in the outputs \(2\)") as error:
        add_outputs(questions, {"1": "a", "3": "c"})
    assert "1 ids of the outputs are not in the questions (3)" in str(error.value)


def test_predictions_have_the_official_format(tmp_path):
    write_predictions(tmp_path / "p.json", find_task("LaMP-3"), {"7": "4"})
    assert json.loads((tmp_path / "p.json").read_text()) == {"task": "LaMP_3", "golds": [{"id": "7", "output": "4"}]}


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = written(tmp_path / "out.json", "old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.write("half" + file.write("whole"))  # pyright: ignore[reportOperatorIssue] (the intended failure)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
