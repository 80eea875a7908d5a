"""What a generator's answer is worth to a retriever or selector that learns from it: metrics as rewards."""

import math
from collections.abc import Mapping
from typing import Literal

from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import Task
from lamp_jax.tasks.metrics import main_metric

Reward = Literal["metric", "likelihood"]

LIKELIHOOD = "likelihood"
"""Name, among an answer's metrics, of the mean log-probability of the gold's tokens."""


def reward_of(
    task: Task, metrics: Mapping[str, float], gold: str, *, kind: Reward = "metric", metric: str | None = None
) -> float:
    """The reward of one answer from its metrics, higher is better; source: ROPG/RSPG (arXiv 2404.05970), section 5.

    The metric itself, the task's main one if none is named; for MAE (worst - MAE) / worst with `worst_error` (Eq. 8),
    1 where the answer is right and 0 where it is as far off as the scale allows. With kind "likelihood", the mean
    log-probability of the gold's tokens. Raises LampError for a metric that is not there or no number; metrics' names
    differ in case between sources.
    """
    wanted = LIKELIHOOD if kind == "likelihood" else metric or main_metric(task)
    by_name = {name.lower(): value for name, value in metrics.items()}
    if wanted.lower() not in by_name:
        option = "--reward" if metric is None else "--metric"
        raise LampError(f"the feedback has no {wanted!r}, only {', '.join(sorted(metrics))}; see {option}")
    value = by_name[wanted.lower()]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise LampError(f"the feedback's {wanted} is {value!r}, no number; make it again")
    if wanted.lower() == "mae":
        worst = worst_error(gold)
        return (worst - value) / worst
    return value


def worst_error(gold: str) -> float:
    """How far an answer within LaMP-3's scale of 1 to 5 can be from the gold. LampError for a gold beyond the scale."""
    score = float(gold) if gold.strip() in ("1", "2", "3", "4", "5") else math.nan
    if math.isnan(score):
        raise LampError(f"the gold is {gold!r}, no score from 1 to 5; mend it")
    return max(abs(1 - score), abs(5 - score))
