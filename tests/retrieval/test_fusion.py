"""Reciprocal rank fusion against its definition."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.retrieval.fusion import fuse_rankings


def question(key, *item_ids):
    return Question(key, "input", tuple({"id": item_id} for item_id in item_ids))


def brute_force(item_ids, rankings, k):
    """Items and scores in exact arithmetic; of items with equal ids, the first in the profile is ranked first."""
    scores = []
    for place, item_id in enumerate(item_ids):
        occurrence = item_ids[:place].count(item_id)
        ranks = [[n for n, one in enumerate(ranking, 1) if one == item_id][occurrence] for ranking in rankings]
        scores.append(sum(1 / (k + rank) for rank in ranks))
    places = sorted(range(len(item_ids)), key=lambda place: (-scores[place], place))
    return [item_ids[place] for place in places], [float(scores[place]) for place in places]


def profiles_and_rankings(most):
    profiles = st.lists(st.sampled_from("abcdefgh"), max_size=8)
    return profiles.flatmap(
        lambda ids: st.tuples(st.just(ids), st.lists(st.permutations(ids), min_size=2, max_size=most))
    )


@given(profiles_and_rankings(4), st.sampled_from([0, 1, 60]))
def test_a_fused_ranking_is_by_the_sum_of_inverse_ranks_then_by_position(drawn, k):
    item_ids, rankings = drawn
    named = {f"{n}.json": {"q": ranking} for n, ranking in enumerate(rankings)}
    (one,) = fuse_rankings([question("q", *item_ids)], named, k=k)
    expected_ids, expected_scores = brute_force(item_ids, rankings, Fraction(k))
    assert one.question_id == "q"
    assert one.item_ids == expected_ids
    assert one.scores.tolist() == pytest.approx(expected_scores, rel=1e-12)


def test_items_whose_sums_are_equal_tie_though_their_ranks_differ():
    # With k = 1, b has 1/3 + 1/2 + 1/3 + 1/3 and c 1/4 + 1/4 + 1/2 + 1/2; in floating point b's is below c's.
    named = {str(n): {"q": list(ranking)} for n, ranking in enumerate(["abc", "bac", "cba", "cba"])}
    (one,) = fuse_rankings([question("q", *"abc")], named, k=1)
    assert (one.item_ids, one.scores[0]) == (["b", "c", "a"], one.scores[1])


def test_the_order_of_the_rankings_changes_nothing():
    # 1/61 + 1/62 + 1/67 in floating point depends on the order of its terms.
    rankings = ["abcdefgh", "bacdefgh", "bcdefgah"]
    scores = []
    for order in (rankings, rankings[::-1], rankings[1:] + rankings[:1]):
        (one,) = fuse_rankings([question("q", *"abcdefgh")], {str(n): {"q": one} for n, one in enumerate(order)})
        scores.append(one.scores.tolist())
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize("k", [0, 1, 60])
def test_items_with_the_same_ranks_in_any_rankings_tie(k):
    item_ids = list("abcdefghijkl")
    # Every item has every rank once.
    turns = [item_ids[n:] + item_ids[:n] for n in range(12)]
    (one,) = fuse_rankings([question("q", *item_ids)], {str(n): {"q": turn} for n, turn in enumerate(turns)}, k=k)
    assert one.item_ids == item_ids
    assert len(set(one.scores.tolist())) == 1


def test_questions_keep_their_order():
    asked = [question("b", "1", "2"), question("a"), question("c", "3")]
    ranking = {"a": [], "b": ["2", "1"], "c": ["3"]}
    fused = list(fuse_rankings(iter(asked), {"x": ranking, "y": ranking}))
    assert [one.question_id for one in fused] == ["b", "a", "c"]
    assert [one.item_ids for one in fused] == [["2", "1"], [], ["3"]]
    assert fused[0].scores.tolist() == pytest.approx([2 / 61, 2 / 62])


def test_k_determines_the_weight_of_the_first_ranks():
    rankings = {"x": {"q": ["a", "b", "c"]}, "y": {"q": ["c", "b", "a"]}}

    def first(k):
        (one,) = fuse_rankings([question("q", "b", "a", "c")], rankings, k=k)
        return one.item_ids[0]

    # 1 + 1/3 against 2 * 1/2.
    assert first(0) == "a"
    # The sums of a and c are only slightly larger.
    (one,) = fuse_rankings([question("q", "b", "a", "c")], rankings)
    assert one.scores.max() / one.scores.min() < 1.001


def rank(**rankings):
    return list(fuse_rankings([question("q", "a", "b")], {f"{name}.json": one for name, one in rankings.items()}))


RIGHT = {"q": ["a", "b"]}


@pytest.mark.parametrize("rankings", [{}, {"one": RIGHT}])
def test_fewer_than_two_rankings_are_an_error(rankings):
    with pytest.raises(LampError, match=f"rrf: {len(rankings)} rankings; give two or more with --rankings"):
        rank(**rankings)


def test_a_negative_k_is_an_error():
    with pytest.raises(LampError, match="k is -1"):
        fuse_rankings([question("q", "a")], {"x": {"q": ["a"]}, "y": {"q": ["a"]}}, k=-1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, r"1 ids of the questions are not in two\.json \(q\)"),
        ({**RIGHT, "r": []}, r"1 ids of two\.json are not in the questions \(r\)"),
        ({"q": ["a"]}, r"two\.json: question 'q': the ranking lacks 1 of 2 profile items"),
        ({"q": ["a", "b", "c"]}, r"two\.json: question 'q': .*not in the profile \['c'\]"),
        ({"q": ["a", "a"]}, r"two\.json: question 'q': the ranking lacks 1"),
    ],
)
def test_a_ranking_of_other_questions_or_items_is_an_error_that_names_its_file(wrong, message):
    with pytest.raises(LampError, match=message):
        rank(one=RIGHT, two=wrong)
