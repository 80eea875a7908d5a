"""Query performance predictors against their formulas; choices against their bounds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.artifacts.selector import Candidate, CandidateSet, QuestionCandidates
from lamp_jax.errors import LampError
from lamp_jax.retrieval.selector import (
    choose_by_predictor,
    choose_by_reward,
    choose_by_value,
    mean_reward,
    nqc,
    predict_success,
    sigma_half,
    sigma_max,
    success_rate,
    wig,
    winning_rates,
)
from lamp_jax.tasks.catalog import find_task

# --- predictions


def test_wig_is_the_excess_of_the_first_items_over_the_mean_divided_by_the_root_of_query_words():
    # (9 + 5) / 2 - (9 + 5 + 3 + 3) / 4 = 2.
    assert wig([9, 5, 3, 3], words=1, items=2) == 2
    assert wig([9, 5, 3, 3], words=16, items=2) == 0.5
    assert wig([9, 5, 3, 3], words=4, items=1) == 2
    assert wig([-1, -3, -5], words=4, items=1) == 1


def test_nqc_is_the_deviation_of_the_first_items_divided_by_the_absolute_mean():
    assert nqc([9, 5, 3, 3], items=2) == pytest.approx(2 / 5)
    assert nqc([9, 5, 3, 3], items=4) == pytest.approx(math.sqrt(6) / 5)
    assert nqc([-3, -5, -5, -7], items=2) == pytest.approx(1 / 5)
    assert nqc([9, 5, 3, 3], items=1) == 0


def test_sigma_max_is_the_largest_deviation_of_any_prefix():
    # Deviations 0, 5, 5 * sqrt(8) / 3 < 5, ...
    assert sigma_max([10, 0, 0, 0]) == 5
    assert sigma_max([10, 10, 0, 0]) == 5
    assert sigma_max([4, 4, 4, 0]) == pytest.approx(math.sqrt(3))
    assert sigma_max([-1, -3]) == 1


def test_sigma_half_is_the_deviation_of_the_scores_of_at_least_half_the_best():
    assert sigma_half([10, 6, 5, 4.9, 0]) == pytest.approx(math.sqrt(14 / 3))
    assert sigma_half([10, 4, 3]) == 0
    assert sigma_half([0, -1, -7]) == 0


def test_sigma_half_of_a_negative_best_has_no_scores():
    assert sigma_half([-1, -2]) == 0
    assert sigma_half([-4, -4]) == 0


def test_a_score_of_exactly_half_the_best_is_included():
    assert sigma_half([8, 4]) == 2
    assert sigma_half([8, np.nextafter(4, 0)]) == 0


@pytest.mark.parametrize("scores", [[], [0.0], [3.0], [-3.0], [5.0] * 4, [0.0] * 3])
@pytest.mark.parametrize("items", [1, 3, 9])
def test_predictions_of_no_single_or_equal_scores_are_0(scores, items):
    assert predict_success(scores, words=3, items=items) == {"wig": 0, "nqc": 0, "sigma-max": 0, "sigma-50": 0}


def test_nqc_of_a_mean_of_0_is_0():
    assert nqc([1, -1], items=2) == 0


def test_a_query_without_words_counts_as_one_word():
    assert wig([3, 1], words=0, items=1) == wig([3, 1], words=1, items=1) == 1


def test_more_items_than_scores_means_all_scores():
    scores = [7, 2, 1]
    for items in (3, 4, 100):
        assert wig(scores, words=2, items=items) == 0
        assert nqc(scores, items=items) == nqc(scores, items=3)


def rankings(values):
    return st.lists(values, min_size=1, max_size=12).map(lambda scores: sorted(scores, reverse=True))


def brute_force(scores, words, items):
    first, mean = np.array(scores[:items]), np.array(scores).mean()
    kept = [one for one in scores if one >= scores[0] / 2]
    return {
        "wig": sum((one - mean) / math.sqrt(words) for one in first) / len(first),
        "nqc": first.std() / abs(mean),
        "sigma-max": max(np.array(scores[:n]).std() for n in range(1, len(scores) + 1)),
        "sigma-50": np.array(kept).std() if kept else 0,
    }


@given(
    st.one_of(
        rankings(st.floats(0.1, 100)),
        rankings(st.floats(-100, -0.1)),
        rankings(st.floats(-1e100, 1e100).filter(lambda one: one == 0 or abs(one) > 1e-6)),
        rankings(st.sampled_from([0.5, 1.0, 2.0, 8.0])),
    ),
    st.integers(1, 50),
    st.integers(1, 15),
)
def test_predictions_equal_their_formulas(scores, words, items):
    size = max(map(abs, scores))
    # The mean of opposite numbers is only rounding error.
    if abs(np.mean(scores)) > 1e-6 * size:
        expected = brute_force(scores, words, items)
        found = predict_success(scores, words=words, items=items)
        assert found.pop("nqc") == pytest.approx(expected.pop("nqc"), rel=1e-6, abs=1e-9)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9 * size)


@given(rankings(st.integers(-1000, 1000)), st.sampled_from([2**30, -(2**30)]), st.integers(1, 9))
def test_a_small_deviation_of_large_numbers_is_computed_accurately(scores, far, items):
    moved = [score + far for score in scores]
    assert sigma_max(moved) == pytest.approx(sigma_max(scores), rel=1e-9)
    assert wig(moved, words=1, items=items) == pytest.approx(wig(scores, words=1, items=items), abs=1e-5)
    assert nqc(moved, items=items) * abs(np.mean(moved)) == pytest.approx(np.std(scores[:items]), rel=1e-6)
    if far > 0:
        assert sigma_half(moved) == pytest.approx(np.std(scores), rel=1e-6)


@given(rankings(st.integers(1, 100)), st.sampled_from([0.25, 2, 1024]))
def test_all_but_nqc_grow_with_the_scores(scores, factor):
    before = predict_success(scores, words=5, items=3)
    after = predict_success([score * factor for score in scores], words=5, items=3)
    assert after.pop("nqc") == pytest.approx(before.pop("nqc"))
    assert after == pytest.approx({name: value * factor for name, value in before.items()}, abs=1e-12 * factor)


@given(rankings(st.floats(0, 100)), st.integers(1, 9))
def test_no_prediction_of_scores_above_0_is_negative_and_sigma_max_is_the_largest_deviation(scores, items):
    found = predict_success(scores, words=3, items=items)
    assert min(found.values()) >= -1e-9
    assert found["sigma-max"] >= found["sigma-50"] - 1e-6
    assert found["sigma-max"] >= np.std(scores[:items]) - 1e-6


# --- choices

NAMES = ("none", "bm25", "dense")


def make_candidate_set(*questions, names=NAMES, predictor=None):
    """Candidate set from each question's numbers by retriever: rewards or, with `predictor`, predictions (or None)."""

    def candidate(value):
        if predictor is None:
            return Candidate("prompt", "output", value)
        return Candidate("prompt", "output", 0.0, {} if value is None else {predictor: value})

    questions = [
        QuestionCandidates(f"q{place}", "input", "gold", {name: candidate(value) for name, value in one.items()})
        for place, one in enumerate(questions)
    ]
    return CandidateSet(find_task("LaMP-3"), "mae", tuple(names), questions)


def questions(values):
    """Lists of questions, each with a value for some of the retrievers in the set's order."""
    there = st.dictionaries(st.sampled_from(NAMES), values, min_size=1)
    ordered = there.map(lambda one: {name: one[name] for name in NAMES if name in one})
    return st.lists(ordered, min_size=1, max_size=5)


REWARDED = {"none": 0.0, "bm25": 0.5, "dense": 1.0}


def test_the_oracle_takes_the_best_or_the_worst():
    pool = make_candidate_set(REWARDED, {"none": -1.0, "bm25": -2.0, "dense": -3.0}, {"bm25": 0.25})
    assert choose_by_reward(pool) == {"q0": "dense", "q1": "none", "q2": "bm25"}
    assert choose_by_reward(pool, worst=True) == {"q0": "none", "q1": "dense", "q2": "bm25"}
    assert mean_reward(pool, choose_by_reward(pool)) == pytest.approx((1 - 1 + 0.25) / 3)


def test_the_first_of_equal_candidates_is_chosen():
    equal = {"bm25": 1.0, "dense": 1.0}
    pool = make_candidate_set({"none": 0.0, **equal}, equal)
    assert choose_by_reward(pool) == {"q0": "bm25", "q1": "bm25"}
    assert choose_by_reward(make_candidate_set(dict.fromkeys(NAMES, 1.0)), worst=True) == {"q0": "none"}
    predicted = make_candidate_set({"none": None, **equal}, equal, predictor="wig")
    assert choose_by_predictor(predicted, "wig") == {"q0": "bm25", "q1": "bm25"}
    values = {(one.id, name): 2.0 for one in pool.questions for name in NAMES}
    assert choose_by_value(pool, values) == {"q0": "none", "q1": "bm25"}


def test_ties_with_the_best_are_successes():
    pool = make_candidate_set({"none": 1.0, "bm25": 1.0, "dense": 0.0}, REWARDED)
    assert success_rate(pool, {"q0": "none", "q1": "none"}) == 0.5
    assert success_rate(pool, {"q0": "bm25", "q1": "dense"}) == 1
    assert success_rate(pool, {"q0": "dense", "q1": "bm25"}) == 0


def test_a_win_is_shared_between_ties():
    pool = make_candidate_set(dict.fromkeys(NAMES, 0.0), {"none": 1.0, "bm25": 0.0, "dense": 1.0}, {"bm25": -5.0})
    expected = {"none": (1 / 3 + 1 / 2) / 3, "bm25": (1 / 3 + 1) / 3, "dense": (1 / 3 + 1 / 2) / 3}
    assert winning_rates(pool) == pytest.approx(expected)


def test_a_retriever_that_never_wins_has_a_rate_of_0():
    assert winning_rates(make_candidate_set({"none": 1.0, "bm25": 0.0})) == {"none": 1, "bm25": 0, "dense": 0}


REWARDS = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-5, 5))


@given(questions(REWARDS), st.data())
def test_no_choice_is_better_than_the_best_or_worse_than_the_worst(drawn, data):
    pool = make_candidate_set(*drawn)
    chosen = {one.id: data.draw(st.sampled_from(sorted(one.candidates))) for one in pool.questions}
    best, worst = choose_by_reward(pool), choose_by_reward(pool, worst=True)
    reached = mean_reward(pool, chosen)
    assert mean_reward(pool, worst) <= reached <= mean_reward(pool, best)
    assert reached == pytest.approx(np.mean([one[chosen[f"q{n}"]] for n, one in enumerate(drawn)]), abs=1e-12)
    assert success_rate(pool, worst) <= success_rate(pool, chosen) <= success_rate(pool, best) == 1
    hits = [one[chosen[f"q{n}"]] == max(one.values()) for n, one in enumerate(drawn)]
    assert success_rate(pool, chosen) == pytest.approx(np.mean(hits))


@given(questions(REWARDS))
def test_winning_rates_sum_to_1_and_are_at_most_success_rates(drawn):
    pool = make_candidate_set(*drawn)
    rates = winning_rates(pool)
    assert list(rates) == list(NAMES)
    assert sum(rates.values()) == pytest.approx(1)
    for name in NAMES:
        if all(name in one for one in drawn):
            assert 0 <= rates[name] <= success_rate(pool, {one.id: name for one in pool.questions}) + 1e-12


@pytest.mark.parametrize("use", [choose_by_reward, winning_rates])
def test_choices_by_rewards_need_rewards(use):
    with pytest.raises(LampError, match="no reward; make them again with `lamp selector-data --golds`"):
        use(make_candidate_set(REWARDED, {**REWARDED, "dense": None}))


@pytest.mark.parametrize("use", [success_rate, mean_reward])
def test_measures_of_choices_need_rewards(use):
    with pytest.raises(LampError, match="--golds"):
        use(make_candidate_set(REWARDED, {"dense": None}), {"q0": "none", "q1": "dense"})


def test_the_highest_prediction_is_chosen():
    pool = make_candidate_set(
        {"bm25": 3.0, "dense": 1.0}, {"bm25": 1.0, "dense": 3.0}, {"dense": -1.0}, predictor="nqc"
    )
    assert choose_by_predictor(pool, "nqc") == {"q0": "bm25", "q1": "dense", "q2": "dense"}


def test_a_candidate_without_predictions_counts_as_0():
    below = {"none": None, "bm25": -1.0, "dense": -2.0}
    above = {"none": None, "bm25": -1.0, "dense": 0.5}
    pool = make_candidate_set(below, above, predictor="wig")
    assert choose_by_predictor(pool, "wig") == {"q0": "none", "q1": "dense"}
    # Without any deviation, it remains 0.
    train = make_candidate_set(
        {"none": None, "bm25": -3.0, "dense": 1.0}, {"none": None, "bm25": -1.0}, predictor="wig"
    )
    assert choose_by_predictor(pool, "wig", train=train)["q0"] == "bm25"
    worse = make_candidate_set({"none": None, "bm25": -3.0}, predictor="wig")
    assert choose_by_predictor(worse, "wig", train=train) == {"q0": "none"}


def test_a_missing_prediction_of_a_retriever_with_a_deviation_is_standardised_too():
    # bm25: mean 4, deviation 2, so that none is -2; dense: mean 0, deviation 1.
    train = make_candidate_set({"bm25": 2.0, "dense": -1.0}, {"bm25": 6.0, "dense": 1.0}, predictor="wig")
    pool = make_candidate_set({"bm25": None, "dense": -1.5}, {"bm25": None, "dense": -2.5}, predictor="wig")
    assert choose_by_predictor(pool, "wig", train=train) == {"q0": "dense", "q1": "bm25"}


def test_missing_predictions_of_train_questions_count_as_0_and_missing_candidates_not_at_all():
    # bm25: of 0 and 6, mean 3 and deviation 3; dense: of 0 and 2, mean 1 and deviation 1.
    train = make_candidate_set({"bm25": None, "dense": 0.0}, {"bm25": 6.0}, {"dense": 2.0}, predictor="wig")
    pool = make_candidate_set({"bm25": 6.3, "dense": 2.0}, {"bm25": 5.7, "dense": 2.0}, predictor="wig")
    assert choose_by_predictor(pool, "wig", train=train) == {"q0": "bm25", "q1": "dense"}


def test_large_predictions_win_unless_they_are_standardised():
    train = make_candidate_set({"bm25": 100.0, "dense": 1.0}, {"bm25": 300.0, "dense": 3.0}, predictor="wig")
    pool = make_candidate_set({"bm25": 150.0, "dense": 2.5}, {"bm25": 250.0, "dense": 1.5}, predictor="wig")
    assert choose_by_predictor(pool, "wig") == {"q0": "bm25", "q1": "bm25"}
    assert choose_by_predictor(pool, "wig", train=train) == {"q0": "dense", "q1": "bm25"}


PREDICTED = st.fixed_dictionaries(dict.fromkeys(NAMES, st.integers(-50, 50)))
MOVES = st.fixed_dictionaries(dict.fromkeys(NAMES, st.tuples(st.sampled_from([0.25, 1, 8]), st.integers(-99, 99))))


@given(st.lists(PREDICTED, min_size=2, max_size=5), st.lists(PREDICTED, min_size=1, max_size=4), MOVES)
def test_no_retriever_wins_by_the_scale_of_its_predictions(train, asked, moves):
    varied = [{**one, **{name: one[name] + n * 101 for name in NAMES}} for n, one in enumerate(train)]
    values = {name: np.array([one[name] for one in varied]) for name in NAMES}
    standard = [{name: (one[name] - values[name].mean()) / values[name].std() for name in NAMES} for one in asked]

    def move(drawn):
        return [{name: value * moves[name][0] + moves[name][1] for name, value in one.items()} for one in drawn]

    pool, learned = (
        make_candidate_set(*move(asked), predictor="nqc"),
        make_candidate_set(*move(varied), predictor="nqc"),
    )
    chosen = choose_by_predictor(pool, "nqc", train=learned)
    for place, one in enumerate(standard):
        assert one[chosen[f"q{place}"]] == pytest.approx(max(one.values()), abs=1e-9)


@given(questions(st.one_of(st.none(), st.floats(-9, 9))))
def test_without_train_questions_the_choice_is_by_the_predictions_themselves(drawn):
    pool = make_candidate_set(*drawn, predictor="wig")
    if any(value is not None for one in drawn for value in one.values()):
        chosen = choose_by_predictor(pool, "wig")
        for place, one in enumerate(drawn):
            values = {name: value or 0.0 for name, value in one.items()}
            assert chosen[f"q{place}"] == max(values, key=lambda name: values[name])


def test_a_prediction_that_no_candidate_has_is_an_error():
    pool = make_candidate_set({"none": None, "bm25": 1.0}, predictor="wig")
    with pytest.raises(LampError, match=r"no candidate has a prediction 'nqc'.*`lamp selector-data --scores`"):
        choose_by_predictor(pool, "nqc")


def test_choices_by_value_are_among_the_existing_candidates():
    pool = make_candidate_set({"none": None, "bm25": None}, {"dense": None, "bm25": None})
    values = {("q0", "none"): -2.0, ("q0", "bm25"): -1.0, ("q0", "dense"): 9.0, ("q1", "bm25"): 0.0, ("q1", "dense"): 1}
    assert choose_by_value(pool, values) == {"q0": "bm25", "q1": "dense"}
