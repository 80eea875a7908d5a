"""Confidence intervals with their nominal coverage, and tests equal to scipy's, for any order of the ids."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_jax.errors import LampError
from lamp_jax.tasks.significance import bootstrap_means, confidence_interval, mcnemar_test, paired_t_test

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def by_id(values):
    return {str(place): float(value) for place, value in enumerate(values)}


@settings(max_examples=40, deadline=None)
@given(VALUES, st.randoms())
def test_an_interval_lies_within_the_values_and_does_not_depend_on_their_order(values, random):
    samples = by_id(values)
    interval = confidence_interval(samples, resamples=200)
    assert min(values) <= interval.low <= interval.high <= max(values)
    keys = list(samples)
    random.shuffle(keys)
    assert confidence_interval({key: samples[key] for key in keys}, resamples=200) == interval


def test_an_interval_agrees_with_the_normal_one_for_many_questions():
    values = np.random.default_rng(1).random(2000)
    interval = confidence_interval(by_id(values))
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_intervals_have_about_their_nominal_coverage():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = confidence_interval(by_id(rng.random(100) < 0.4), resamples=500)
        covered += interval.low <= 0.4 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_equal_values_give_an_interval_without_width():
    interval = confidence_interval(by_id([0.1] * 3))
    assert (interval.low, interval.high) == (0.1, 0.1)
    with pytest.raises(LampError, match="no questions"):
        confidence_interval({})


def test_a_large_bootstrap_has_the_requested_number_of_resamples():
    assert bootstrap_means([0.0, 1.0] * 200_000, 5).shape == (5,)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=25))
def test_the_paired_t_test_equals_scipy(pairs):
    from scipy.stats import ttest_rel

    first, second = (np.array(values) / 4 for values in zip(*pairs, strict=True))
    found = paired_t_test(by_id(first), by_id(second))
    if np.ptp(first - second) == 0:  # scipy has no result there
        assert found.p == float(first[0] == second[0])
    else:
        assert found.p == pytest.approx(ttest_rel(first, second).pvalue)
    assert found.difference == pytest.approx((first - second).mean())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_equals_the_binomial_test_of_the_questions_that_differ(pairs):
    from scipy.stats import binomtest

    wins, losses = pairs.count((True, False)), pairs.count((False, True))
    found = mcnemar_test(by_id(first for first, _ in pairs), by_id(second for _, second in pairs))
    assert found.p == pytest.approx(binomtest(wins, wins + losses).pvalue if wins + losses else 1)
    assert found.difference == pytest.approx((wins - losses) / len(pairs))


def test_mcnemar_of_a_hand_computed_table():
    first, second = by_id([1] * 8 + [0] * 2 + [1] * 5), by_id([0] * 8 + [1] * 2 + [1] * 5)
    assert mcnemar_test(first, second).p == pytest.approx(2 * (1 + 10 + 45) / 1024)


def test_tests_are_symmetric_and_independent_of_order():
    first, second = by_id([1, 0, 1, 1, 0, 1]), by_id([0, 0, 1, 0, 0, 1])
    turned = dict(reversed(first.items()))
    for test in (mcnemar_test, paired_t_test):
        assert test(first, second) == test(turned, second)
        assert test(second, first).p == test(first, second).p


def test_paired_tests_need_the_same_questions():
    for test in (mcnemar_test, paired_t_test):
        with pytest.raises(LampError, match=r"have 2 and 1, 1 of them in one only \(1\)"):
            test(by_id([1, 0]), by_id([1]))
        with pytest.raises(LampError, match="same questions"):
            test({}, {})
    with pytest.raises(LampError, match="at least two questions"):
        paired_t_test(by_id([1]), by_id([0]))
    with pytest.raises(LampError, match="paired_t_test"):
        mcnemar_test(by_id([0.5, 1]), by_id([1, 0]))
