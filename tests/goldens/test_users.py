"""Users' training examples from their profiles: equal to the public code's."""

import random
from typing import Any

import pytest

from lamp_jax.config import REFERENCE
from lamp_jax.data.files import Question, read_questions
from lamp_jax.errors import LampError
from lamp_jax.inputs.adapters import read_users
from lamp_jax.tasks.catalog import Task, find_task
from tests.goldens import cases

START = "Complete the following tweet: "


def read_golden(number: str) -> tuple[Task, list[Question], dict[str, Any]]:
    """The task, the questions and `{user id: [pair, ...]}` of the public code."""
    golden = cases.read_json(f"goldens/peft/per_user_{number}.json")
    task, (of_task, split, _) = find_task(f"LaMP-{number}"), cases.parse_source(golden["source"])
    questions = read_questions(cases.CASES / f"synth/LaMP_{of_task}/{split}_questions.json", task=task)
    return task, questions, golden


def read_pairs(task: Task, questions: list[Question], golden: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """The golden's users as this package reads them, in the golden's form."""
    users = read_users(questions, task, profiles="first", seed=0, path="merged.json", compatibility=REFERENCE)
    return {user.id: [pair._asdict() for pair in user.pairs] for user in users if user.id in golden["train"]}


@pytest.mark.golden
@pytest.mark.parametrize("number", ["1", "3", "4"])
def test_pairs_equal_the_public_codes(number):
    task, questions, golden = read_golden(number)
    found = read_pairs(task, questions, golden)
    assert found == golden["train"]
    assert list(found) == list(golden["train"])


@pytest.mark.golden
def test_tweets_have_the_public_codes_form():
    task, questions, golden = read_golden("7")
    found = read_pairs(task, questions, golden)
    assert found.keys() == golden["train"].keys()
    for user, expected in golden["train"].items():
        assert [pair["id"] for pair in found[user]] == [pair["id"] for pair in expected]
        for pair, theirs in zip(found[user], expected, strict=True):
            start, wanted = pair["source"].removeprefix(START), theirs["source"].removeprefix(START)
            assert pair["source"] == START + start
            assert f"{start} {pair['target']}".strip() == f"{wanted} {theirs['target']}".strip()
            words = f"{start} {pair['target']}".split()
            assert int(0.1 * len(words)) <= len(start.split()) <= int(0.25 * len(words))


@pytest.mark.golden
def test_tweets_equal_the_public_codes_for_its_random_draws(monkeypatch):
    task, questions, golden = read_golden("7")
    draws = random.Random(
        golden["python_random_seed"]
    )  # The public code drew from a single random sequence, user after user.
    monkeypatch.setattr("lamp_jax.inputs.adapters.random.Random", lambda name: draws)
    assert read_pairs(task, questions, golden) == golden["train"]


@pytest.mark.golden
@pytest.mark.parametrize("number", ["1", "3", "4", "7"])
def test_several_profiles_of_a_user_are_an_error_with_profiles_single(number):
    task, questions, golden = read_golden(number)
    user, others = questions[0].user, [one for one in questions if one.user == questions[0].user][1:]
    assert user in golden["train"]
    assert others
    with pytest.raises(LampError, match=f"merged.json, user '{user}'"):
        read_users(questions, task, profiles="single", seed=0, path="merged.json")
