"""Selector candidates: round trip through files, and errors that name invalid content."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.artifacts.selector import (
    Candidate,
    CandidateSet,
    QuestionCandidates,
    check_same_candidates,
    read_candidates,
    write_candidates,
)
from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import find_task

NAMES = ("none", "bm25", "dense")


def candidate(name, reward: float | None = 1.0):
    return Candidate(f"prompt of {name}", f"output of {name}", reward, {"wig": 0.5})


def question(key, *names, reward: float | None = 1.0):
    return QuestionCandidates(key, f"input of {key}", "gold", {name: candidate(name, reward) for name in names})


POOL = CandidateSet(find_task("LaMP-2"), "accuracy", NAMES, [question("1", *NAMES), question("2", "bm25", "dense")])

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.floats(allow_nan=False)
CANDIDATES = st.builds(Candidate, TEXTS, TEXTS, st.none() | NUMBERS, st.dictionaries(TEXTS, NUMBERS, max_size=2))


@st.composite
def candidate_sets(draw):
    names = draw(st.lists(TEXTS, min_size=1, max_size=4, unique=True))
    questions = []
    for key in draw(st.lists(TEXTS, min_size=1, max_size=4, unique=True)):
        there = draw(st.sets(st.sampled_from(names), min_size=1))
        candidates = {name: draw(CANDIDATES) for name in names if name in there}
        questions.append(QuestionCandidates(key, draw(TEXTS), draw(st.none() | TEXTS), candidates))
    task = find_task(draw(st.sampled_from(["LaMP-1", "LaMP-3", "LaMP-7"])))
    return CandidateSet(task, draw(st.sampled_from(["accuracy", "mae"])), tuple(names), questions)


@given(candidate_sets())
def test_written_candidates_are_read_unchanged(tmp_path_factory, pool):
    path = tmp_path_factory.mktemp("pool") / "pool.json"
    write_candidates(path, pool)
    found = read_candidates(path)
    assert found == pool
    assert [list(one.candidates) for one in found.questions] == [list(one.candidates) for one in pool.questions]


def test_candidates_are_read_in_the_order_of_the_set(tmp_path):
    write_candidates(tmp_path / "pool.json", replace(POOL, questions=[question("1", *NAMES[::-1])]))
    (one,) = read_candidates(tmp_path / "pool.json").questions
    assert tuple(one.candidates) == NAMES


def test_a_file_that_was_read_is_rewritten_unchanged(tmp_path):
    write_candidates(tmp_path / "one.json", POOL)
    write_candidates(tmp_path / "other.json", read_candidates(tmp_path / "one.json"))
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "other.json").read_bytes()


def test_a_set_has_rewards_if_every_candidate_has_a_reward():
    assert POOL.rewarded
    assert replace(POOL, questions=[question("1", *NAMES, reward=0.0)]).rewarded
    assert not replace(POOL, questions=[question("1", "bm25"), question("2", "bm25", reward=None)]).rewarded


# --- restrict


def test_a_restricted_set_has_the_given_order():
    found = POOL.restrict(["dense", "bm25"], "pool.json")
    assert found.names == ("dense", "bm25")
    assert [list(one.candidates) for one in found.questions] == [["dense", "bm25"]] * 2
    assert found == replace(POOL, names=("dense", "bm25"), questions=[question(key, "dense", "bm25") for key in "12"])


def test_restricting_to_all_retrievers_changes_nothing():
    assert POOL.restrict(NAMES, "pool.json") == POOL


def test_a_restricted_set_has_the_same_missing_candidates():
    found = POOL.restrict(["none", "bm25"], "pool.json")
    assert [list(one.candidates) for one in found.questions] == [["none", "bm25"], ["bm25"]]


@given(st.permutations(NAMES), st.integers(1, 3))
def test_a_restricted_set_can_be_written_and_read(tmp_path_factory, order, count):
    path = tmp_path_factory.mktemp("pool") / "pool.json"
    pool = replace(POOL, questions=[question("1", *NAMES), question("2", *NAMES)]).restrict(order[:count], path)
    write_candidates(path, pool)
    assert read_candidates(path) == pool


def test_retrievers_that_are_not_in_the_set_are_named_with_the_file():
    with pytest.raises(LampError, match=r"data/pool\.json: no candidates of bm52, rrf; .* are none, bm25, dense"):
        POOL.restrict(["bm52", "dense", "rrf"], "data/pool.json")


def test_a_question_without_remaining_candidates_is_named_with_the_file():
    with pytest.raises(LampError, match=r"data/pool\.json: 1 questions have no candidates \(2\)"):
        POOL.restrict(["none"], "data/pool.json")


# --- two files


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"task": find_task("LaMP-3")}, ["task", "LaMP-2", "LaMP-3"]),
        ({"metric": "mae"}, ["metric", "accuracy", "mae"]),
        ({"names": ("none", "dense")}, ["pool", "none, bm25, dense", "none, dense"]),
        ({"names": ("bm25", "none", "dense")}, ["pool", "none, bm25, dense", "bm25, none, dense"]),
    ],
)
def test_files_that_differ_are_an_error_with_both(other, words):
    with pytest.raises(LampError) as caught:
        check_same_candidates(POOL, replace(POOL, **other), "train.json", "validation.json")
    for word in ("train.json", "validation.json", *words):
        assert word in str(caught.value)


def test_files_may_differ_in_their_questions():
    check_same_candidates(POOL, replace(POOL, questions=[question("9", "bm25")]), "train.json", "validation.json")


# --- broken files


def broken(tmp_path, change):
    """Error message for POOL's file after a change."""
    path = tmp_path / "pool.json"
    write_candidates(path, POOL)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(LampError) as caught:
        read_candidates(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", ["task", "metric", "pool", "questions"])
def test_a_file_of_another_form_names_the_command_that_makes_it(tmp_path, key):
    assert "`lamp selector-data`" in broken(tmp_path, lambda content: content.pop(key))


def test_a_list_is_not_a_candidate_set(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(LampError, match=r"list\.json: not a file of candidates; make it with `lamp selector-data`"):
        read_candidates(tmp_path / "list.json")


def test_a_missing_or_truncated_file_is_named(tmp_path):
    with pytest.raises(LampError, match=r"pool\.json: no such file"):
        read_candidates(tmp_path / "pool.json")
    write_candidates(tmp_path / "pool.json", POOL)
    (tmp_path / "pool.json").write_bytes((tmp_path / "pool.json").read_bytes()[:-9])
    with pytest.raises(LampError, match=r"pool\.json: invalid JSON"):
        read_candidates(tmp_path / "pool.json")


def test_a_file_without_questions_is_an_error(tmp_path):
    assert "no questions" in broken(tmp_path, lambda content: content["questions"].clear())


@pytest.mark.parametrize("key", ["input", "gold", "candidates"])
def test_a_question_without_a_required_field_is_named(tmp_path, key):
    message = broken(tmp_path, lambda content: content["questions"][1].pop(key))
    assert "question '2'" in message
    assert key in message


def test_a_question_without_an_id_is_an_error(tmp_path):
    assert "question 1: not a question" in broken(tmp_path, lambda content: content["questions"][1].pop("id"))


@pytest.mark.parametrize("record", [{}, {"prompt": "p"}, {"prompt": "p", "output": "o", "score": 1}, "text", None, []])
def test_a_broken_candidate_is_an_error_with_its_question(tmp_path, record):
    message = broken(tmp_path, lambda content: content["questions"][1]["candidates"].update(dense=record))
    assert "question '2'" in message


def test_a_candidate_of_an_unknown_retriever_is_an_error_with_its_question(tmp_path):
    message = broken(tmp_path, lambda content: content["pool"].remove("dense"))
    assert "question '1': candidates of dense, but 'pool' lists none, bm25" in message


def test_questions_without_candidates_are_counted_and_named(tmp_path):
    def empty(content):
        for record in content["questions"]:
            record["candidates"] = {}

    assert "2 questions have no candidates (1, 2)" in broken(tmp_path, empty)
