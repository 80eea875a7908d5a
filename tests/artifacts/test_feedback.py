"""Feedback on pairs of question and item, read from directories and from the public code's file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.artifacts.feedback import (
    feedback_record,
    first_pairs,
    read_feedback,
    read_records,
    read_retriever_feedback,
    shard_file,
    write_reference,
)
from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-2")


def question(key, *items):
    return Question(key, "input", tuple({"id": item} for item in items))


def worth(pair):
    """Metrics whose values identify the pair."""
    return {"accuracy": float(sum(map(ord, pair.question.id + pair.item_id)))}


def write_directory(path, questions, *, task="LaMP-2", stage="feedbackitems", shards=1, finished=True, size=16):
    """Writes an output directory of `lamp feedback items`."""
    path.mkdir()
    run = {"stage": stage, "finished": finished, "settings": {"task": task, "shards": shards}}
    (path / "run.json").write_text(json.dumps(run))
    for shard in range(shards):
        records = [
            feedback_record("items", pair.names, "", "text", worth(pair))
            for pair in first_pairs(questions[shard::shards], size)
        ]
        (path / shard_file("items", shard, shards)).write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_file(path, metrics):
    path.write_text(json.dumps(metrics))
    return path


QUESTIONS = [question("1", "a", "b", "c"), question("2"), question("3", "a", "d"), question("4", "e")]
PAIRS = [("1", "a"), ("1", "b"), ("3", "a"), ("3", "d"), ("4", "e")]


def expected(questions=QUESTIONS, size=2):
    pairs = list(first_pairs(questions, size))
    return {one.id: [worth(pair) for pair in pairs if pair.question is one] for one in questions}


def test_pairs_are_the_first_items_of_every_question_in_order():
    pairs = list(first_pairs(QUESTIONS, 2))
    assert [(pair.question.id, pair.item_id) for pair in pairs] == PAIRS
    assert [pair.rank for pair in pairs] == [0, 1, 0, 1, 0]


def test_an_id_that_occurs_twice_in_a_profile_counts_at_its_first_place():
    twice = question("1", "a", "b", "a", 7, "7", "c")
    assert [(pair.item_id, pair.rank) for pair in first_pairs([twice], 6)] == [("a", 0), ("b", 1), ("7", 3), ("c", 5)]
    assert [pair.item_id for pair in first_pairs([twice], 3)] == ["a", "b"]


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_directory_of_any_number_of_shards_is_read(tmp_path, shards):
    directory = write_directory(tmp_path / "feedback", QUESTIONS, shards=shards)
    assert len(list(read_records(directory, "items"))) == 6
    assert read_feedback([directory], TASK, QUESTIONS, profile_size=2) == expected()


def test_directories_and_files_are_read_together(tmp_path):
    sources = [write_directory(tmp_path / one.id, [one]) for one in QUESTIONS[:3]]
    sources.append(write_file(tmp_path / "4.json", {"4-e": expected()["4"][0]}))
    assert read_feedback(sources, TASK, QUESTIONS, profile_size=2) == expected()


def test_another_tasks_feedback_is_refused(tmp_path):
    directory = write_directory(tmp_path / "feedback", QUESTIONS, task="LaMP_3")
    with pytest.raises(LampError, match=r"feedback of LaMP-3, but the task is LaMP-2"):
        read_feedback([directory], TASK, QUESTIONS, profile_size=2)


def test_a_tasks_other_spelling_is_the_same_task(tmp_path):
    directory = write_directory(tmp_path / "feedback", QUESTIONS, task="LaMP_2")
    assert read_feedback([directory], TASK, QUESTIONS, profile_size=2) == expected()


def test_missing_pairs_are_counted_and_named_with_the_command_that_makes_them(tmp_path):
    directory = write_directory(tmp_path / "feedback", QUESTIONS, size=1)
    with pytest.raises(LampError) as caught:
        read_feedback([directory], TASK, QUESTIONS, profile_size=2)
    message = str(caught.value)
    assert "no feedback for 2 of 5 question-item pairs (1-b, 3-d)" in message
    assert "`lamp feedback items --task LaMP-2 --profile-size 2`" in message
    assert str(directory) in message


def test_the_first_of_many_missing_pairs_are_named(tmp_path):
    source = write_file(tmp_path / "none.json", {})
    with pytest.raises(LampError, match=r"8 of 8 question-item pairs \(9-a, 9-b, 9-c, 9-d, 9-e, \.\.\.\)"):
        read_feedback([source], TASK, [question("9", *"abcdefgh")], profile_size=16)


def test_a_pair_that_occurs_twice_is_an_error(tmp_path):
    sources = [write_directory(tmp_path / name, QUESTIONS) for name in ("one", "other")]
    with pytest.raises(LampError, match=r"other: question '1', item 'a': occurs twice"):
        read_feedback(sources, TASK, QUESTIONS, profile_size=2)


def test_an_unfinished_directory_is_an_error(tmp_path):
    directory = write_directory(tmp_path / "feedback", QUESTIONS, finished=False)
    with pytest.raises(LampError, match=r"not finished; run the same `lamp feedback items` command again"):
        read_feedback([directory], TASK, QUESTIONS, profile_size=2)


def test_another_stages_directory_is_an_error(tmp_path):
    directory = write_directory(tmp_path / "model", QUESTIONS, stage="train")
    with pytest.raises(LampError, match=r"made by `lamp train`; give a directory of `lamp feedback items`"):
        read_feedback([directory], TASK, QUESTIONS, profile_size=2)


WRONG = st.sampled_from([None, True, -1, 10**30, "x", [], [1], {}, {"accuracy": "high"}, "a directory"])


@given(st.data())
def test_a_directory_with_a_field_missing_or_of_another_type_is_a_named_error(tmp_path_factory, data):
    """The directory is read instead where the field may be missing or of that type."""
    path = write_directory(tmp_path_factory.mktemp("broken") / "feedback", QUESTIONS)
    run = json.loads((path / "run.json").read_text())
    line = json.loads((path / "items-0-of-1.jsonl").read_text().splitlines()[0])
    holder = data.draw(st.sampled_from([run, run["settings"], line]))
    name = data.draw(st.sampled_from(sorted(holder)))
    if data.draw(st.booleans()):
        del holder[name]
    else:
        holder[name] = data.draw(WRONG)
    complete = data.draw(st.sampled_from(["run", "line", "neither"]))
    (path / "run.json").write_text(json.dumps([run] if complete == "run" else run))
    rest = (path / "items-0-of-1.jsonl").read_text().splitlines()[1:]
    (path / "items-0-of-1.jsonl").write_text(
        "\n".join([json.dumps([line] if complete == "line" else line), *rest]) + "\n"
    )
    try:
        read_feedback([path], TASK, QUESTIONS, profile_size=2)
    except LampError as error:
        assert "feedback" in str(error) or "task" in str(error)  # noqa: PT017 (both outcomes are correct)


def write_retrievers(path, records):
    """Writes an output directory of `lamp feedback retrievers` with two retrievers."""
    path.mkdir()
    settings = {"task": "LaMP-2", "shards": 1, "pool": ["none", "bm25=ranked.json"]}
    (path / "run.json").write_text(json.dumps({"stage": "feedbackretrievers", "finished": True, "settings": settings}))
    (path / shard_file("retrievers", 0, 1)).write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_record_of_a_retriever_that_occurs_twice_is_refused(tmp_path):
    records = [
        feedback_record("retrievers", {"question": one.id, "retriever": name}, "p", "text", {"accuracy": 1.0})
        for one in QUESTIONS
        for name in ("none", "bm25")
    ]
    pool, found = read_retriever_feedback(write_retrievers(tmp_path / "one", records), TASK, QUESTIONS)
    assert pool == ["none", "bm25"]
    assert [record for by_name in found.values() for record in by_name.values()] == records
    with pytest.raises(LampError, match="question '1', retriever 'bm25': occurs twice"):
        read_retriever_feedback(write_retrievers(tmp_path / "two", [*records, records[1]]), TASK, QUESTIONS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None])
def test_a_metric_that_is_not_a_number_is_named_with_its_line(tmp_path, value):
    directory = write_directory(tmp_path / "feedback", QUESTIONS)
    path = directory / "items-0-of-1.jsonl"
    first, *rest = path.read_text().splitlines()
    record = json.loads(first) | {"metrics": {"accuracy": value}}
    path.write_text("\n".join([json.dumps(record), *rest]) + "\n")
    with pytest.raises(LampError, match="line 1: 'metrics' cannot be"):
        read_feedback([directory], TASK, QUESTIONS, profile_size=2)


def test_a_directory_without_a_record_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LampError, match=r"run\.json"):
        read_feedback([tmp_path / "empty"], TASK, QUESTIONS, profile_size=2)


def test_the_reference_file_round_trips_when_ids_contain_dashes(tmp_path):
    questions = [question("u-1", "a-b", "c"), question("u", "2-a", "b")]
    directory = write_directory(tmp_path / "feedback", questions)
    write_reference(tmp_path / "scores.json", read_records(directory, "items"))
    written = json.loads((tmp_path / "scores.json").read_text())
    assert list(written) == ["u-1-a-b", "u-1-c", "u-2-a", "u-b"]
    assert written["u-2-a"] == expected(questions)["u"][0]
    assert read_feedback([tmp_path / "scores.json"], TASK, questions, profile_size=2) == expected(questions)


AMBIGUOUS = [question("u", "1-a"), question("u-1", "a")]


def test_a_reference_file_with_one_name_for_two_pairs_is_neither_written_nor_read(tmp_path):
    directory = write_directory(tmp_path / "feedback", AMBIGUOUS)
    with pytest.raises(LampError, match=r"'u-1-a' would be the key of two pairs"):
        write_reference(tmp_path / "scores.json", read_records(directory, "items"))
    assert not (tmp_path / "scores.json").exists()
    source = write_file(tmp_path / "scores.json", {"u-1-a": {"accuracy": 1.0}})
    with pytest.raises(LampError, match=r"'u-1-a' would be the key of two pairs"):
        read_feedback([source], TASK, AMBIGUOUS, profile_size=2)
    # In a directory each pair has its own name.
    assert read_feedback([directory], TASK, AMBIGUOUS, profile_size=2) == expected(AMBIGUOUS)


IDS = st.text("ab-", min_size=1, max_size=3)


@given(st.dictionaries(IDS, st.lists(IDS, max_size=3), min_size=1, max_size=4))
def test_names_in_a_reference_file_are_an_error_only_where_two_pairs_share_a_name(tmp_path_factory, profiles):
    questions = [question(key, *items) for key, items in profiles.items()]
    pairs = list(first_pairs(questions, 3))
    names = [f"{pair.question.id}-{pair.item_id}" for pair in pairs]
    folder = tmp_path_factory.mktemp("feedback")
    records = [feedback_record("items", pair.names, "", None, worth(pair)) for pair in pairs]
    if len(set(names)) < len(names):
        with pytest.raises(LampError, match="would be the key of two pairs"):
            write_reference(folder / "scores.json", records)
    else:
        write_reference(folder / "scores.json", records)
        found = read_feedback([folder / "scores.json"], TASK, questions, profile_size=3)
        assert found == expected(questions, size=3)


@pytest.mark.parametrize(
    ("content", "words"),
    [("[]", "as the public code writes it"), ('{"1-a": 1.0}', "as the public code writes it"), ("{", "invalid JSON")],
)
def test_a_file_of_another_form_is_named(tmp_path, content, words):
    source = tmp_path / "scores.json"
    source.write_text(content)
    with pytest.raises(LampError, match=words) as caught:
        read_feedback([source], TASK, QUESTIONS, profile_size=2)
    assert str(source) in str(caught.value)


def test_a_pair_in_two_reference_files_is_an_error(tmp_path):
    sources = [write_file(tmp_path / f"{n}.json", {"4-e": {"accuracy": float(n)}}) for n in range(2)]
    with pytest.raises(LampError, match="in another file too"):
        read_feedback(sources, TASK, QUESTIONS[3:], profile_size=2)
