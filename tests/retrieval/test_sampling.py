"""Random rankings: permutations that depend only on seed and question id."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.data.files import Question
from lamp_jax.retrieval.sampling import permutation, rank_random


def question(key, size=6):
    return Question(key, "", tuple({"id": f"{key}{place}"} for place in range(size)))


@given(st.integers(0, 40), st.integers(), st.text())
def test_every_draw_is_without_replacement(size, seed, key):
    assert sorted(permutation(size, seed=seed, key=key)) == list(range(size))


def test_a_ranking_depends_on_seed_and_question_but_not_on_the_other_questions():
    questions = [question(str(number), 20) for number in range(5)]

    def rank(questions, seed):
        return {one.question_id: one.item_ids for one in rank_random(questions, seed=seed)}

    forwards = rank(questions, seed=1)
    assert forwards == rank(questions[::-1], seed=1)
    assert forwards != rank(questions, seed=2)
    places = [[item_id[1:] for item_id in ids] for ids in forwards.values()]
    assert len(set(map(tuple, places))) == len(places)


def test_the_order_is_the_same_in_every_release():
    assert permutation(8, seed=0, key="350") == [3, 4, 2, 0, 7, 5, 1, 6]


def test_every_order_is_equally_likely():
    drawn = Counter(tuple(permutation(3, seed=seed, key="k")) for seed in range(6000))
    assert len(drawn) == 6
    assert all(abs(count - 1000) < 150 for count in drawn.values())
