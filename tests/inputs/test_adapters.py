"""Training pairs of users: every profile item is one example of its user, independent of other users in the file."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.config import CORRECT, REFERENCE, Compatibility, Profiles
from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.inputs.adapters import Pair, read_users
from lamp_jax.tasks.catalog import TASKS, Task, find_task

REVIEWS, TWEETS = find_task("LaMP-3"), find_task("LaMP-7")
START = "Complete the following tweet: "
EVERY_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)


def item_of(task: Task, number: int, text: str = "some words", **fields: Any) -> dict[str, Any]:
    return {"id": str(number), **{name: f"{text} of {name}" for name in task.fields}, **fields}


def review(number: int, text: str, score: str = "4") -> dict[str, Any]:
    return {"id": str(number), "text": text, "score": score}


def question_of(key: int, user: str | int | None, *profile: dict[str, Any]) -> Question:
    return Question(str(key), "any input", profile, user_id=user)


def pairs_of(
    questions: Sequence[Question],
    task: Task = REVIEWS,
    profiles: Profiles = "single",
    seed: int = 0,
    compatibility: Compatibility = CORRECT,
) -> dict[str, tuple[Pair, ...]]:
    users = read_users(questions, task, profiles=profiles, seed=seed, path="q.json", compatibility=compatibility)
    return {user.id: user.pairs for user in users}


def texts_of(questions: Sequence[Question], profiles: Profiles) -> dict[str, list[str]]:
    return {
        user: [one.source.split()[-1] for one in pairs]
        for user, pairs in pairs_of(questions, REVIEWS, profiles).items()
    }


@EVERY_TASK
def test_an_item_is_formatted_by_its_tasks_template_except_for_two_tasks(task):
    item = item_of(task, 5, text="a {brace}", start="a field of another's")
    ((pair,),) = pairs_of([question_of(1, 7, item)], task).values()
    if task.name == "LaMP-1":
        expected = ("Write an abstract for this title: a {brace} of title", "a {brace} of abstract")
    elif task.name == "LaMP-7":
        expected = (f"{START}a", "{brace} of text")
    else:
        expected = (task.input_for(item[task.source]), item[task.target])
    assert pair == ("7-1-0", *expected)


def test_scores_that_are_numbers_become_texts():
    (pair,) = pairs_of([question_of(1, 7, item_of(REVIEWS, 5, score=4))])["7"]
    assert pair.target == "4"


def test_each_question_without_a_user_id_is_a_separate_user():
    questions = [question_of(1, None, review(5, "a")), question_of(2, None, review(6, "b"))]
    assert [question.user for question in questions] == ["1", "2"]
    assert [pair.id for (pair,) in pairs_of(questions).values()] == ["1-1-0", "2-2-0"]
    assert question_of(1, 0).user == "0"


def test_users_have_the_order_of_their_first_questions_with_or_without_items():
    questions = [
        question_of(1, 9, review(5, "a")),
        question_of(2, 8),
        question_of(3, "9", review(5, "a")),
        question_of(4, 7, review(6, "b")),
    ]
    assert texts_of(questions, "single") == {"9": ["a"], "8": [], "7": ["b"]}


# Two questions of one user; the later has a newer item, and the older items under other ids.
GROWN = [
    question_of(1, 9, review(11, "a"), review(12, "b")),
    question_of(2, 8, review(13, "d")),
    question_of(3, 9, review(21, "b"), review(22, "c"), review(23, "a")),
]


def test_several_profiles_of_a_user_are_an_error_with_the_remedies():
    with pytest.raises(LampError) as error:
        read_users(GROWN, REVIEWS, profiles="single", seed=0, path="dev.json")
    for part in ("dev.json", "user '9'", "'1'", "'3'", "`--profiles first`", "`--profiles union`"):
        assert part in str(error.value)


def test_an_empty_and_a_nonempty_profile_of_a_user_are_an_error():
    with pytest.raises(LampError, match="differ"):
        pairs_of([question_of(1, 9), question_of(2, 9, review(11, "a"))])


def test_a_repeated_item_makes_another_profile():
    with pytest.raises(LampError, match="differ"):
        pairs_of([question_of(1, 9, review(11, "a")), question_of(2, 9, review(11, "a"), review(12, "a"))])


def test_equal_profiles_count_once_under_any_ids_and_in_any_order():
    same = [question_of(1, 9, review(11, "a"), review(12, "b")), question_of(2, 9, review(22, "b"), review(21, "a"))]
    assert pairs_of(same) == pairs_of(same[:1])


def test_the_first_profile_is_that_of_the_first_question():
    assert texts_of(GROWN, "first") == {"9": ["a", "b"], "8": ["d"]}
    assert texts_of(GROWN[::-1], "first") == {"9": ["b", "c", "a"], "8": ["d"]}


def test_the_union_has_every_item_once_at_its_first_place():
    assert texts_of(GROWN, "union") == {"9": ["a", "b", "c"], "8": ["d"]}
    assert [pair.id for pair in pairs_of(GROWN, REVIEWS, "union")["9"]] == ["9-1-0", "9-1-1", "9-3-1"]


def test_the_union_keeps_items_that_differ_in_any_field():
    questions = [question_of(1, 9, review(11, "a", "4")), question_of(2, 9, review(11, "a", "5"))]
    assert [pair.target for pair in pairs_of(questions, REVIEWS, "union")["9"]] == ["4", "5"]


@EVERY_TASK
def test_an_item_without_a_needed_field_is_named(task):
    for missing in task.fields:
        item = item_of(task, 5)
        del item[missing]
        with pytest.raises(LampError, match=rf"q\.json, question '1', profile item '5': '{missing}' must be a text"):
            pairs_of([question_of(1, 7, item_of(task, 4), item)], task)


def tweet(number: int, text: str) -> dict[str, Any]:
    return {"id": str(number), "text": text}


def cut(text: str, compatibility: Compatibility = CORRECT, seed: int = 0) -> tuple[str, str]:
    ((pair,),) = pairs_of([question_of(1, 7, tweet(5, text))], TWEETS, seed=seed, compatibility=compatibility).values()
    return pair.source.removeprefix(START), pair.target


@pytest.mark.parametrize("text", ["", " \t", "one"])
def test_a_tweet_of_fewer_than_two_words_gives_no_pair(text):
    assert cut(text) == cut(text, REFERENCE) == ("", text.strip())


def test_short_tweets_start_with_one_word_where_the_public_code_has_none():
    assert cut("two words") == ("two", "words")
    assert cut("two words", REFERENCE) == ("", "two words")


def test_the_share_is_drawn_between_a_tenth_and_a_quarter():
    text = " ".join("abcdefghijklmnopqrstuvwxyz" * 40)
    shares = sorted(len(cut(text, seed=seed)[0].split()) / 1040 for seed in range(200))
    assert 0.099 <= shares[0] < 0.11
    assert 0.24 < shares[-1] <= 0.25
    assert 0.16 < sum(shares) / 200 < 0.19


def test_a_cut_depends_only_on_seed_user_and_item():
    text = " ".join("abcdefghijklmnopqrstuvwxyz" * 40)

    def given_words(seed: int, user: int, number: int) -> int:
        ((pair,),) = pairs_of([question_of(1, user, tweet(number, text))], TWEETS, seed=seed).values()
        return len(pair.source.split())

    assert given_words(0, 1, 2) == given_words(0, 1, 2)
    assert len({given_words(0, 1, 2), given_words(1, 1, 2), given_words(0, 2, 2), given_words(0, 1, 3)}) == 4


# Real texts: runs of spaces, Unicode's spaces, a zero-width space, braces, a lone surrogate.
WORDS = ["the", "news", "{text}", "{start}", "{", "\x85", "\u3000", "\u200b", "\n", "  ", "\t", "😀", "\ud83d", '"']
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join))
ANY_TASK = st.sampled_from(list(TASKS.values()))
COMPATIBILITIES = st.sampled_from([CORRECT, REFERENCE])


@st.composite
def files(draw: st.DrawFn) -> tuple[Task, list[Question]]:
    """A task and questions of a few users, whose profiles may share items."""
    task = draw(ANY_TASK)
    items = st.builds(item_of, st.just(task), st.integers(0, 5), TEXTS)
    profiles = draw(
        st.lists(st.tuples(st.sampled_from([None, 1, 2, "three"]), st.lists(items, max_size=4)), max_size=6)
    )
    return task, [question_of(number, user, *profile) for number, (user, profile) in enumerate(profiles)]


@given(files(), st.integers(0, 3), COMPATIBILITIES)
def test_every_item_gives_one_pair_in_order(file, seed, compatibility):
    task, questions = file
    found = pairs_of(questions, task, "first", seed, compatibility)
    first = {question.user: question for question in reversed(questions)}
    assert set(found) == set(first)
    for user, pairs in found.items():
        assert [pair.id for pair in pairs] == [f"{user}-{first[user].id}-{place}" for place in range(len(pairs))]
        assert len(pairs) == len(first[user].profile)
        if task.practice is None:
            assert [pair.target for pair in pairs] == [item[task.target] for item in first[user].profile]


@given(files(), st.sampled_from(["first", "union"]), st.integers(0, 3), COMPATIBILITIES)
def test_a_users_pairs_do_not_depend_on_other_users(file, profiles, seed, compatibility):
    task, questions = file
    together = pairs_of(questions, task, profiles, seed, compatibility)
    for user, pairs in together.items():
        alone = [question for question in questions if question.user == user]
        assert pairs_of(alone, task, profiles, seed, compatibility) == {user: pairs}


@given(files())
def test_the_union_has_each_content_once_and_begins_with_the_first_profiles(file):
    task, questions = file
    by_id = {f"{one.user}-{one.id}-{place}": item for one in questions for place, item in enumerate(one.profile)}
    firsts = pairs_of(questions, task, "first")
    for user, pairs in pairs_of(questions, task, "union").items():
        item_fields = [tuple(by_id[pair.id][name] for name in task.fields) for pair in pairs]
        asked_for = [item for one in questions if one.user == user for item in one.profile]
        assert item_fields == list(dict.fromkeys(tuple(item[name] for name in task.fields) for item in asked_for))
        kept = [pair for pair in firsts[user] if pair in pairs]
        assert list(pairs[: len(kept)]) == kept


@given(files())
def test_single_is_first_or_refused(file):
    task, questions = file
    contents: dict[str, set[frozenset]] = {}
    for one in questions:
        counted = Counter(tuple(item[name] for name in task.fields) for item in one.profile)
        contents.setdefault(one.user, set()).add(frozenset(counted.items()))
    if any(len(several) > 1 for several in contents.values()):
        with pytest.raises(LampError, match=r"q\.json, user .* differ"):
            pairs_of(questions, task)
    else:
        assert pairs_of(questions, task) == pairs_of(questions, task, "first")


@given(TEXTS, st.integers(0, 99), COMPATIBILITIES)
def test_start_and_rest_contain_the_words_of_the_tweet(text, seed, compatibility):
    start, rest = cut(text, compatibility, seed)
    words, given_words = text.split(), len(start.split())
    assert [*start.split(), *rest.split()] == words
    assert " ".join(filter(None, [start, rest])) == " ".join(words)
    least = 1 if compatibility == CORRECT and len(words) > 1 else 0
    assert max(int(0.1 * len(words)), least) <= given_words <= max(int(0.25 * len(words)), least)


def test_a_user_with_a_reserved_id_is_named():
    questions = [question_of(1, "a", review(1, "one")), question_of(2, "all", review(2, "two"))]
    message = r"dev\.json, user 'all' \(question '2'\): this id is reserved .*; give the user another id"
    with pytest.raises(LampError, match=message):
        read_users(questions, REVIEWS, profiles="single", seed=0, path="dev.json", reserved=("all",))
    assert len(read_users(questions, REVIEWS, profiles="single", seed=0, path="dev.json", reserved=("none",))) == 2
