"""Rewards of a generator's answers, from metrics or likelihoods, for training retrievers and selectors."""

import math
from collections.abc import Mapping
from typing import Literal

from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import Task
from lamp_jax.tasks.metrics import main_metric

Reward = Literal["metric", "likelihood"]

LIKELIHOOD = "likelihood"
"""Name, among an answer's metrics, of the mean log-probability of the reference's tokens."""


def reward_of(
    task: Task, metrics: Mapping[str, float], reference: str, *, kind: Reward = "metric", metric: str | None = None
) -> float:
    """Reward of one answer from its metrics, higher is better; source: ROPG/RSPG (arXiv 2404.05970), section 5.

    The metric itself, by default the task's main one; for MAE (worst - MAE) / worst with `worst_error` (Eq. 8): 1 for
    the right answer, 0 for one as far off as the scale allows. With kind "likelihood", the mean log-probability of the
    reference's tokens. Raises LampError for a metric that is missing or not a number; case is ignored in metrics'
    names.
    """
    wanted = LIKELIHOOD if kind == "likelihood" else metric or main_metric(task)
    by_name = {name.lower(): value for name, value in metrics.items()}
    if wanted.lower() not in by_name:
        option = "--reward" if metric is None else "--metric"
        raise LampError(f"the feedback has no {wanted!r}, only {', '.join(sorted(metrics))}; see {option}")
    value = by_name[wanted.lower()]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise LampError(f"the feedback's {wanted} is {value!r}, not a number; collect the feedback again")
    if wanted.lower() == "mae":
        worst = worst_error(reference)
        return (worst - value) / worst
    return value


def worst_error(reference: str) -> float:
    """Largest error of an answer within LaMP-3's scale of 1 to 5. LampError for a reference outside of the scale."""
    score = float(reference) if reference.strip() in ("1", "2", "3", "4", "5") else math.nan
    if math.isnan(score):
        raise LampError(f"the reference is {reference!r}, not a score from 1 to 5; correct it")
    return max(abs(1 - score), abs(5 - score))
