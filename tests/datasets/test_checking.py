"""Checks of a file: every finding with its examples, the facts, and no stop at an invalid record."""

import json
from pathlib import Path
from typing import Any

import pytest

from lamp_jax.config import Work
from lamp_jax.data import chunks
from lamp_jax.datasets.checking import FINDINGS, FileCheck, check_file
from lamp_jax.runs import workers
from lamp_jax.tasks.catalog import find_task

ONE = Work(workers=1)
TASK = find_task("LaMP-3")


def item(key: str, text: str = "", **more: Any) -> dict[str, Any]:
    return {"id": key, "text": text or f"text of {key}", "score": "4", **more}


def question(key: Any = "1", profile: Any = None, **more: Any) -> dict[str, Any]:
    asked = TASK.input_for(f"film {key}")
    return {"id": key, "input": asked, "profile": [item(f"{key}0")] if profile is None else profile, **more}


def check(path: Path, content: Any, **options: Any) -> FileCheck:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return check_file(path, work=ONE, **options)


def findings_of(checked: FileCheck) -> dict[str, tuple[int, list[str]]]:
    return {one["name"]: (one["count"], one["examples"]) for one in checked.findings}


def test_a_sound_file_has_facts_and_no_findings(tmp_path):
    profiles = [[item(f"{key}{place}", date=f"200{key}") for place in range(int(key))] for key in "1236"]
    questions = [question(key, profile, user_id=7) for key, profile in zip("1236", profiles, strict=True)]
    checked = check(tmp_path / "q.json", questions)
    assert (checked.form, checked.task, checked.findings, checked.errors) == ("questions", "LaMP-3", [], 0)
    assert checked.facts == {
        "records": 4,
        "items": 12,
        "profile sizes": {"min": 1, "median": 2.5, "mean": 3.0, "max": 6},
        "with gold": 0,
        "with user_id": 4,
        "items with dates": 12,
        "dates": {"first": "2001", "last": "2006"},
        "bytes": (tmp_path / "q.json").stat().st_size,
    }


def test_questions_with_golds_are_reported_as_merged(tmp_path):
    checked = check(tmp_path / "q.json", [question(output="4"), question("2")])
    assert (checked.form, checked.facts["with gold"], checked.findings) == ("merged questions", 1, [])


GOOD = json.dumps(question("9")).encode()
IN_QUESTIONS = {  # finding: a file of LaMP-3's questions with exactly that finding, and its example
    "broken file": (b"[" + GOOD + b', {"id": "2', "{path}: truncated JSON, which ends after 1 complete records"),
    "broken record": (b"[" + GOOD + b', {"id" 2}]', "record 1, byte "),
    "nan": (b"[" + GOOD + b', {"id": NaN}]', "record 1, byte "),
    "key twice": (b"[" + GOOD + b', {"id": "1", "id": "2"}]', "record 1, byte "),
    "encoding": (b"[" + GOOD + b', {"id": "\xe9"}]', "record 1, byte "),
    "no object": ([question("9"), ["id"]], "record 1, byte "),
    "bad field": ([question(), {**question("2"), "input": None}], "question '2': 'input', found None"),
    "bad item": ([question(profile=[item("10"), {"text": "x"}])], "question '1', index 1 of the profile"),
    "missing text": ([question(profile=[item("10", score=None)])], "question '1', item '10': 'score'"),
    "id twice": ([question(1), question("2"), question("1")], "question '1'"),
    "no marker": ([question(), {**question("2"), "input": "bare"}], "question '2': no 'review:'"),
    "bad date": ([question(profile=[item("10", date="soon")])], "question '1', item '10'"),
    "some dates": ([question(profile=[item("10", date=2003), item("11")])], "question '1'"),
    "unknown gold": ([question(output="4.0")], "question '1'"),
    "byte order mark": (b"\xef\xbb\xbf[" + GOOD + b"]", None),
    "empty profile": ([question(profile=[])], "question '1'"),
    "empty text": ([question(profile=[item("10", " ")])], "question '1', item '10': 'text'"),
    "unknown label": ([question(profile=[item("10", score="6")])], "question '1', item '10'"),
    "same item": ([question(profile=[item("10", "x"), item("11", "x")])], "question '1', item '11'"),
    "item id twice": ([question(profile=[item("10"), item("10", "x")])], "question '1', item '10'"),
    "shared id": ([question(), question("2", [item("10", "x")])], "question '2', item '10'"),
    "query in profile": ([question(profile=[item("10", "film 1")])], "question '1', item '10'"),
    "surrogate": ([question(profile=[item("10", "half \ud83d")])], "question '1'"),
    "line separator": ([question(profile=[item("10", "a\u0085b")])], "question '1'"),
    "big number": ([question(profile=[item("10", votes=2**64)])], "question '1', item '10'"),
}


@pytest.mark.parametrize("name", IN_QUESTIONS)
def test_a_finding_in_questions_is_named_with_its_example(tmp_path, name):
    content, example = IN_QUESTIONS[name]
    checked = check(tmp_path / "q.json", content)
    assert checked.task == "LaMP-3"
    assert list(findings_of(checked)) == [name]
    count, examples = findings_of(checked)[name]
    assert count == 1
    assert len(examples) == (example is not None)
    assert all(one.startswith(example.replace("{path}", str(tmp_path / "q.json"))) for one in examples)
    assert checked.errors == (FINDINGS[name].severity == "error")


def test_every_finding_is_covered_by_a_test():
    others = {"no item ids", "unknown answer", "unknown task", "other count", "patched"}
    assert FINDINGS.keys() == IN_QUESTIONS.keys() | others


def test_a_bad_record_does_not_end_the_check(tmp_path):
    bad = [b'{"id": NaN}', b"[]", b'{"id": "\xe9"}', b'{"id": "3"}', b'{"a" 1}']
    checked = check(tmp_path / "q.json", b"[" + b", ".join([*bad, json.dumps(question(profile=[])).encode()]) + b"]")
    assert {name: count for name, (count, _) in findings_of(checked).items()} == {
        **dict.fromkeys(("broken record", "nan", "encoding", "no object", "empty profile"), 1),
        "bad field": 2,  # input and profile
    }
    assert checked.facts["records"] == 6


@pytest.mark.parametrize("chunk", [1, 500, 2**21])
def test_records_before_a_syntax_error_are_counted(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", chunk)
    complete = json.dumps([question(str(key), []) for key in range(20)]).encode()
    checked = check(tmp_path / "q.json", complete[:-2])
    assert checked.facts["records"] == 19
    assert findings_of(checked)["empty profile"] == (19, ["question '0'", "question '1'", "question '2'"])
    assert "ends after 19 complete records" in findings_of(checked)["broken file"][1][0]


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    questions = [
        question(str(key % 50), [item(f"{key % 7}", f"{key}", date=f"20{key:02}"), item("x", "y")]) for key in range(60)
    ]
    alone = check(tmp_path / "q.json", questions)
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", 300)
    assert check_file(tmp_path / "q.json", work=ONE) == alone
    monkeypatch.setattr(workers, "_BYTES_WORTH_A_PROCESS", 1)
    assert check_file(tmp_path / "q.json", work=Work(workers=2)) == alone
    assert findings_of(alone)["id twice"] == (10, ["question '0'", "question '1'", "question '2'"])
    assert findings_of(alone)["shared id"] == (53, [f"question '{key}', item '{key - 7}'" for key in (7, 8, 9)])


def test_equal_items_of_two_questions_may_share_an_id(tmp_path):
    assert check(tmp_path / "q.json", [question("1", [item("a")]), question("2", [item("a")])]).findings == []


def test_the_defect_of_a_published_file_is_a_note(tmp_path):
    movies = find_task("LaMP-2")
    profile = [{"id": "1100", "description": "a film", "tag": "comedy"}]
    other = {"id": "1", "input": movies.input_for("x"), "profile": profile}
    checked = check(tmp_path / "q.json", [other, {**other, "id": "110", "input": "A bare film."}])
    assert (checked.task, checked.errors) == ("LaMP-2", 0)
    assert findings_of(checked) == {"patched": (1, ["question '110': lamp2-dev-110"])}


GOLDS = [{"id": "1", "output": "4"}, {"id": "2", "output": "often"}]


@pytest.mark.parametrize(
    ("name", "form", "finding", "errors"),
    [
        ("dev_outputs.json", "outputs", "unknown gold", 1),
        ("golds.json", "outputs", "unknown gold", 1),
        ("p.json", "predictions", "unknown answer", 0),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_predictions_may_be_any_text_but_golds_must_be_valid(tmp_path, wrapped, name, form, finding, errors):
    checked = check(tmp_path / name, {"task": "LaMP_3", "golds": GOLDS} if wrapped else GOLDS, task=TASK)
    assert (checked.form, checked.errors, checked.facts["records"]) == (form, errors, 2)
    assert findings_of(checked) == {finding: (1, ["question '2'"])}


def test_outputs_without_an_id_or_a_text_are_named(tmp_path):
    bad = [{"output": "4"}, {"id": "1"}, {"id": "2", "output": None}, {"id": "3", "output": "4"}]
    checked = check(tmp_path / "outputs.json", {"task": "LaMP_3", "golds": bad})
    count, examples = findings_of(checked)["bad field"]
    assert count == 3
    assert examples[0].endswith("'id', found nothing")
    assert examples[1:] == ["question '1': 'output', found nothing", "question '2': 'output', found None"]


def test_rankings_are_checked(tmp_path):
    content = b'{"1": ["10", 11], "2": [], "3": ["a", "a"], "4": {"10": 1}, "1": ["10"], "5": "a"}'
    checked = check(tmp_path / "r.json", content)
    assert (checked.form, checked.task, checked.facts["records"], checked.facts["items"]) == ("ranking", None, 6, 5)
    assert findings_of(checked) == {
        "no item ids": (2, ["question '4'", "question '5'"]),
        "id twice": (1, ["question '1'"]),
        "empty profile": (1, ["question '2'"]),
        "item id twice": (1, ["question '3'"]),
    }
    assert check(tmp_path / "r.json", {"1": ["10"]}).findings == []
    for broken in (b'{"1": ["10"]', b"{}", b'{"1": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"):
        assert list(findings_of(check(tmp_path / "r.json", broken))) == ["broken file"]


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "neither"), (b"[]", "contains no records"), ("[{}]".encode("utf-16"), "UTF-16")]
)
def test_a_file_of_another_kind_is_a_single_error(tmp_path, content, words):
    checked = check(tmp_path / "q.json", content, task=TASK)
    assert checked.errors == 1
    assert words in findings_of(checked)["broken file"][1][0]


def test_a_missing_file_is_a_single_error(tmp_path):
    checked = check_file(tmp_path / "none.json", task=TASK, work=ONE)
    assert findings_of(checked) == {"broken file": (1, [f"{tmp_path / 'none.json'}: no such file"])}


@pytest.mark.parametrize("task", ["LaMP-1", "LaMP-2", "LaMP-2-old", "LaMP-3", "LaMP-4", "LaMP-5", "LaMP-6", "LaMP-7"])
def test_the_task_is_inferred_from_inputs(tmp_path, task):
    fields = {"title": "t", "ref1": "r", "ref2": "s", "text": "x"}
    asked = find_task(task).template.format(**fields)
    records = [{"id": str(key), "input": asked if key else "other", "profile": []} for key in range(3)]
    assert check(tmp_path / "LaMP_1" / "q.json", records).task == task


@pytest.mark.parametrize(
    ("name", "field", "task"),
    [
        ("LaMP_4/q.json", "text", "LaMP-4"),
        ("LaMP_3/LaMP-7/q.json", "text", "LaMP-7"),
        ("LaMP_2/q.json", "tag", "LaMP-2"),
        ("LaMP_2/q.json", "category", "LaMP-2-old"),
        ("LaMP_2/new/dev/q.json", "text", "LaMP-2"),
        ("LaMP_2/dev/q.json", "text", "LaMP-2-old"),
        ("q.json", "text", None),
    ],
)
def test_the_task_is_inferred_from_the_path_where_inputs_are_ambiguous(tmp_path, name, field, task):
    checked = check(tmp_path / name, [{"id": "1", "input": "bare", "profile": [{"id": "10", field: "x"}]}])
    assert checked.task == task
    assert ("unknown task" in findings_of(checked)) == (task is None)


@pytest.mark.parametrize(
    ("output", "task"), [("comedy", "LaMP-2"), ("politics", "LaMP-2-old"), ("neither of them", "LaMP-2")]
)
def test_golds_distinguish_the_two_tasks_named_lamp_2(tmp_path, output, task):
    golds = {"golds": [{"id": "1", "output": output}], "task": "LaMP_2"}
    assert check(tmp_path / "p.json", golds).task == task


@pytest.mark.parametrize(
    ("place", "published"), [("LaMP_3/dev", 2500), ("time/LaMP_4/dev", 1500), ("LaMP_4/dev", 1925), ("LaMP_3", None)]
)
def test_a_count_other_than_the_published_count_is_a_warning_where_the_path_names_the_split(tmp_path, place, published):
    task = find_task("LaMP-3" if "3" in place else "LaMP-4")
    golds = {"task": task.official_name, "golds": [{"id": "1", "output": "4"}]}
    checked = check(tmp_path / place / "dev_outputs.json", golds)
    expected = {} if published is None else {"other count": (1, [f"1 records, {published} published"])}
    assert findings_of(checked) == expected
