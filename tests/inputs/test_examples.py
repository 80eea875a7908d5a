"""Which items a prompt holds, and which further examples a profile gives."""

from dataclasses import replace

import pytest

from lamp_jax.config import Prompting, Prompts
from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.inputs.examples import make_examples, make_prompts, past_questions, prompt_examples, retrieved_items
from lamp_jax.inputs.tokenizer import train_tokenizer
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-3")
WORDS = ("alpha", "beta", "gamma", "delta")
PROFILE = tuple(
    {"id": f"1{n}", "text": f"{word} story", "score": str(n + 1), "date": f"200{n}-01-01"}
    for n, word in enumerate(WORDS)
)
QUESTION = Question("1", TASK.input_for("gamma again"), PROFILE, user_id=7, output="4")


def told(count):
    return Prompts("LaMP-3", "", "", "", prompting=Prompting(num_retrieved=count))


def items(retriever, count=2, question=QUESTION):
    chosen = retrieved_items([question], TASK, told(count), retriever=retriever)
    return [item["id"] for item in next(chosen)]


def test_retrievers_choose_the_items_they_promise():
    assert items("file") == ["10", "11"]
    assert items("none") == []
    assert items("bm25")[0] == "12"
    assert items("recency") == ["13", "12"]
    assert set(items("random", 4)) == {"10", "11", "12", "13"}


def test_no_items_asked_for_is_the_bare_input():
    assert items("file", 0) == items("bm25", 0) == []


def test_an_empty_profile_is_legal_for_everybody():
    for retriever in ("file", "none", "bm25", "recency", "random"):
        assert items(retriever, question=replace(QUESTION, profile=())) == []


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([QUESTION.input, *WORDS, "1 2 3 4 5 is the score for story"] * 5, vocab_size=200)


def test_an_example_holds_prompt_and_gold(tokenizer):
    def prompts():
        return make_prompts([QUESTION], TASK, tokenizer, told(1), retriever="bm25")

    (prompt,) = prompts()
    assert prompt.text == f'3 is the score for "gamma story" . {QUESTION.input}'
    (example,) = make_examples([QUESTION], prompts(), tokenizer, longest_answer=8)
    assert tokenizer.decode(example.target) == "4</s>"
    assert list(example.source) == tokenizer(prompt.text).input_ids
    assert prompt_examples([QUESTION], prompts())[0].source == example.source


def test_a_question_without_gold_cannot_be_an_example(tokenizer):
    with pytest.raises(LampError, match="'1' has no gold"):
        make_examples([replace(QUESTION, output=None)], [], tokenizer, longest_answer=8)


def test_past_questions_see_only_what_came_before():
    shuffled = replace(QUESTION, profile=(PROFILE[2], PROFILE[0], PROFILE[3], PROFILE[1]))
    past = past_questions([shuffled], TASK, newest=3)
    assert [question.output for question in past] == ["2", "3", "4"]
    for question in past:
        dates = [item["date"] for item in question.profile]
        asked = next(item for item in PROFILE if TASK.input_for(item["text"]) == question.input)
        assert all(date < asked["date"] for date in dates)
        assert len(dates) == PROFILE.index(asked)


def test_a_past_question_is_asked_once_for_a_user_and_never_repeats_a_question():
    later = replace(QUESTION, id="2", input=TASK.input_for("delta story"))
    past = past_questions([QUESTION, later], TASK, newest=4)
    assert [question.output for question in past] == ["1", "2", "3"]
    stranger = replace(QUESTION, id="3", user_id=8)
    assert len(past_questions([QUESTION, stranger], TASK, newest=4)) == 8


def test_tasks_whose_items_are_no_examples_are_refused():
    for name in ("LaMP-1", "LaMP-7"):
        with pytest.raises(LampError, match="not examples of the task"):
            past_questions([QUESTION], find_task(name), newest=1)
