"""Retrieved items of a prompt, and further examples from a profile."""

from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.inputs.generator import (
    ExampleMaker,
    load_examples,
    make_prompts,
    past_questions,
    prompt_examples,
    retrieved_items,
)
from lamp_jax.inputs.tokenizer import train_tokenizer
from lamp_jax.options import CORRECT, REFERENCE, Prompting, Prompts
from lamp_jax.retrieval.rankers import RETRIEVERS
from lamp_jax.retrieval.recency import dense_and_newest
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-3")
WORDS = ("alpha", "beta", "gamma", "delta")
PROFILE = tuple(
    {"id": f"1{n}", "text": f"{word} story", "score": str(n + 1), "date": f"200{n}-01-01"}
    for n, word in enumerate(WORDS)
)
QUESTION = Question("1", TASK.input_for("gamma again"), PROFILE, user_id=7, output="4")


def prompts_of(count, compatibility=CORRECT):
    return Prompts("LaMP-3", "", "", "", prompting=Prompting(num_retrieved=count), compatibility=compatibility)


def items(retriever, count=2, question=QUESTION):
    chosen = retrieved_items([question], TASK, prompts_of(count), retriever=retriever)
    return [item["id"] for item in next(chosen)]


def test_retrievers_choose_the_expected_items():
    assert items("file") == ["10", "11"]
    assert items("none") == []
    assert items("bm25")[0] == "12"
    assert items("recency") == ["13", "12"]
    assert set(items("random", 4)) == {"10", "11", "12", "13"}


def test_zero_items_give_the_question_alone():
    assert items("file", 0) == items("bm25", 0) == []


def test_an_empty_profile_is_valid_for_every_retriever():
    for retriever in RETRIEVERS:
        assert items(retriever, question=replace(QUESTION, profile=())) == []


def in_dense_order(*years):
    """A profile whose items, best first, have these dates; ids are their positions."""
    profile = tuple({"id": str(n), "text": "t", "score": "1", "date": str(year)} for n, year in enumerate(years))
    return replace(QUESTION, profile=profile)


def dense_and_recent(count, *years, halves: Literal["distinct", "doubled"] = "distinct"):
    chosen = dense_and_newest(in_dense_order(*years), count, halves=halves)
    return [int(str(item["id"])) for item in chosen]


years = st.lists(st.integers(2000, 2004), max_size=9)


@given(years, st.integers(1, 12))
def test_half_of_the_items_are_ranked_by_dense_and_the_rest_by_recency(years, count):
    chosen = dense_and_recent(count, *years)
    half = -(-count // 2)
    assert len(chosen) == len(set(chosen)) == min(count, len(years))
    assert chosen[:half] == list(range(len(years)))[:half]
    newest = chosen[half:]
    # Newest first, equal dates in dense order; and no newer item is left out.
    assert newest == sorted(newest, key=lambda place: (-years[place], place))
    left_out = set(range(half, len(years))) - set(newest)
    assert all((-years[taken], taken) < (-years[left], left) for taken in newest for left in left_out)


def test_an_odd_number_of_items_has_one_more_by_dense():
    assert dense_and_recent(1, 2001, 2002, 2003) == [0]
    assert dense_and_recent(3, 2001, 2002, 2003, 2004) == [0, 1, 3]


def test_more_items_than_the_profile_has_give_each_item_once():
    assert dense_and_recent(9, 2001, 2003, 2002) == [0, 1, 2]
    assert dense_and_recent(4, 2001, 2002, 2003) == [0, 1, 2]


def test_equal_dates_are_in_dense_order():
    assert dense_and_recent(6, 2000, 2000, 2000, 2001, 2002, 2001, 2002) == [0, 1, 2, 4, 6, 3]


@given(years.filter(bool), st.integers(1, 12))
def test_halves_that_may_overlap_equal_the_public_codes(years, count):
    half = count // 2
    oldest_first = sorted(enumerate(years), key=lambda item: item[1])
    expected = list(range(len(years)))[:half] + [place for place, _ in oldest_first[-half:][::-1]]
    assert dense_and_recent(count, *years, halves="doubled") == expected


def test_halves_that_may_overlap_share_items_and_reverse_equal_dates():
    assert dense_and_recent(4, 2003, 2001, 2001, 2002, halves="doubled") == [0, 1, 0, 3]
    assert dense_and_recent(4, 2000, 2001, 2001, 2001, halves="doubled") == [0, 1, 3, 2]
    assert dense_and_recent(5, 2003, 2001, 2002, halves="doubled") == [0, 1, 0, 2]


def test_the_overlapping_half_of_one_item_is_the_complete_profile_newest_first():
    assert dense_and_recent(1, 2001, 2003, 2002, 2003, halves="doubled") == [3, 1, 2, 0]


def test_compatibility_selects_the_halves_of_a_prompt():
    question = in_dense_order(2003, 2001, 2002)
    for compatibility, expected in ((CORRECT, ["0", "2"]), (REFERENCE, ["0", "0"])):
        (chosen,) = retrieved_items([question], TASK, prompts_of(2, compatibility), retriever="recency+dense")
        assert [item["id"] for item in chosen] == expected


def test_halves_need_dates():
    undated = replace(QUESTION, profile=({"id": "1", "text": "t", "score": "1"},))
    with pytest.raises(LampError, match="question '1': no profile item has a 'date'"):
        dense_and_newest(undated, 2, halves="distinct")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([QUESTION.input, *WORDS, "1 2 3 4 5 is the score for story"] * 5, vocab_size=200)


def test_an_example_has_prompt_and_gold(tokenizer):
    def prompts():
        return make_prompts([QUESTION], TASK, tokenizer, prompts_of(1), retriever="bm25")

    (prompt,) = prompts()
    assert prompt.text == f'3 is the score for "gamma story" . {QUESTION.input}'
    make = ExampleMaker(TASK, tokenizer, prompts_of(1), retriever="bm25", longest_answer=8)
    (example,) = load_examples([QUESTION], make)
    assert tokenizer.decode(example.target) == "4</s>"
    assert list(example.source) == tokenizer(prompt.text).input_ids
    assert list(prompt_examples([QUESTION], prompts())[0].source) == list(example.source)


MANY = [replace(QUESTION, id=str(number), output=str(number % 5 + 1)) for number in range(50)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_examples_have_the_questions_order_for_any_number_of_workers(tokenizer, workers):
    make = ExampleMaker(TASK, tokenizer, prompts_of(1), retriever="recency", longest_answer=8)
    made = list(load_examples(MANY, make, workers=workers))
    assert made == [make(question) for question in MANY]
    assert [tokenizer.decode(example.target) for example in made] == [f"{question.output}</s>" for question in MANY]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_question_without_gold_cannot_be_an_example(tokenizer, workers):
    make = ExampleMaker(TASK, tokenizer, prompts_of(1), retriever="none", longest_answer=8, name="train.json")
    with pytest.raises(LampError, match=r"train\.json: question '7' has no reference"):
        list(load_examples([*MANY[:7], replace(MANY[7], output=None), *MANY[8:]], make, workers=workers))


def test_an_id_that_occurs_twice_is_an_error(tokenizer):
    make = ExampleMaker(TASK, tokenizer, prompts_of(1), retriever="none", longest_answer=8)
    with pytest.raises(LampError, match="'0': this id occurs twice"):
        list(load_examples([*MANY, MANY[0]], make))


@pytest.mark.parametrize("longest", [1, 2, 3, 9])
def test_an_answer_is_cut_as_the_tokenizer_would(tokenizer, longest):
    question = replace(QUESTION, output="the score for story 1 2 3 4 5")
    make = ExampleMaker(TASK, tokenizer, prompts_of(1), retriever="none", longest_answer=longest)
    (example,) = load_examples([question], make)
    assert list(example.target) == tokenizer(question.output, truncation=True, max_length=longest).input_ids


def test_past_questions_have_only_earlier_items():
    shuffled = replace(QUESTION, profile=(PROFILE[2], PROFILE[0], PROFILE[3], PROFILE[1]))
    past = past_questions([shuffled], TASK, newest=3)
    assert [question.output for question in past] == ["2", "3", "4"]
    for question in past:
        dates = [item["date"] for item in question.profile]
        asked = next(item for item in PROFILE if TASK.input_for(item["text"]) == question.input)
        assert all(date < asked["date"] for date in dates)
        assert len(dates) == PROFILE.index(asked)


def test_past_questions_of_a_user_are_unique_and_differ_from_the_questions():
    later = replace(QUESTION, id="2", input=TASK.input_for("delta story"))
    past = past_questions([QUESTION, later], TASK, newest=4)
    assert [question.output for question in past] == ["1", "2", "3"]
    stranger = replace(QUESTION, id="3", user_id=8)
    assert len(past_questions([QUESTION, stranger], TASK, newest=4)) == 8


def test_tasks_whose_items_cannot_be_examples_are_refused():
    for name in ("LaMP-1", "LaMP-7"):
        with pytest.raises(LampError, match="not examples of the task"):
            past_questions([QUESTION], find_task(name), newest=1)
