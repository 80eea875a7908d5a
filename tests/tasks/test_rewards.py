"""Rewards of answers: the task's metric, for LaMP-3 by Eq. 8, or the log-probability of the reference."""

import math

import pytest

from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import TASKS, find_task
from lamp_jax.tasks.metrics import main_metric
from lamp_jax.tasks.rewards import reward_of, worst_error

RATING = find_task("LaMP-3")
LABELS = find_task("LaMP-2")

# (max(|1 - y|, |5 - y|) - |y - y'|) / max(|1 - y|, |5 - y|) for golds y (rows) and answers y' (columns) from 1 to 5.
EQUATION_8 = [
    [1, 3 / 4, 2 / 4, 1 / 4, 0],
    [2 / 3, 1, 2 / 3, 1 / 3, 0],
    [0, 1 / 2, 1, 1 / 2, 0],
    [0, 1 / 3, 2 / 3, 1, 2 / 3],
    [0, 1 / 4, 2 / 4, 3 / 4, 1],
]


@pytest.mark.parametrize("gold", range(1, 6))
@pytest.mark.parametrize("answer", range(1, 6))
def test_the_reward_of_a_rating_equals_equation_8(gold, answer):
    found = reward_of(RATING, {"MAE": float(abs(gold - answer)), "RMSE": 0.0}, str(gold))
    assert found == pytest.approx(EQUATION_8[gold - 1][answer - 1])


def test_the_largest_error_is_the_distance_to_the_farther_end():
    assert [worst_error(str(gold)) for gold in range(1, 6)] == [4, 3, 2, 3, 4]


@pytest.mark.parametrize("task", [task for name, task in TASKS.items() if name != "LaMP-3"])
def test_other_metrics_are_the_reward_itself(task):
    metrics = {"accuracy": 0.25, "rouge-1": 0.5, "rouge-L": 0.75}
    assert reward_of(task, metrics, "any gold") == metrics[main_metric(task)]


@pytest.mark.parametrize("name", ["mae", "MAE", "Mae"])
def test_the_metrics_name_may_differ_in_case(name):
    assert reward_of(RATING, {name: 1.0, "rmse": 3.0}, "5") == 0.75


@pytest.mark.parametrize("task", [RATING, LABELS])
def test_a_likelihood_is_the_reward_of_any_task(task):
    assert reward_of(task, {"likelihood": -1.5, "MAE": 2.0}, "3", kind="likelihood") == -1.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["metric", "likelihood"])
def test_a_prediction_that_is_not_a_number_is_an_error(value, kind):
    with pytest.raises(LampError, match=r"(accuracy|likelihood) is -?(nan|inf)"):
        reward_of(LABELS, {"accuracy": value, "likelihood": value}, "comedy", kind=kind)


def test_a_missing_metric_is_named_with_the_existing_metrics():
    with pytest.raises(LampError, match=r"no 'MAE', only accuracy, f1; see --reward"):
        reward_of(RATING, {"f1": 1.0, "accuracy": 1.0}, "3")
    with pytest.raises(LampError, match=r"no 'likelihood', only accuracy"):
        reward_of(LABELS, {"accuracy": 1.0}, "comedy", kind="likelihood")
