"""Statistical significance: confidence intervals over questions, and tests of the difference between two systems.

The tests are those of ROPG/RSPG (arXiv 2404.05970), section 6.1. Everything is deterministic and independent of the
order of the ids.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lamp_jax.errors import LampError

_DRAWS = 2**16


@dataclass(frozen=True)
class Interval:
    """Confidence interval and its method."""

    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True)
class PairedTest:
    """Two-sided test of "first and second are equally good"; `difference` is the mean of first minus second."""

    difference: float
    p: float
    n: int
    method: str


def confidence_interval(
    samples: Mapping[str, float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean over questions (Efron and Tibshirani 1993, chapter 13), seeded.

    `samples` are one metric's values by question id. Questions are drawn with replacement; the interval is within
    the range of the values, and has no width where all are equal. The order of the ids does not matter.
    """
    if not samples:
        raise LampError("there are no questions for a confidence interval: give at least one question")
    means = bootstrap_means([samples[key] for key in sorted(samples)], resamples, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, f"percentile bootstrap over questions, {resamples} resamples")


def bootstrap_means(samples: Sequence[float], resamples: int, *, seed: int = 0) -> np.ndarray:
    """Means of `resamples` draws with replacement, [resamples]; a few at a time, to stay in the processor's cache."""
    values = np.asarray(samples, np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, _DRAWS // len(values))
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    draws = (rng.integers(len(values), size=(size, len(values))) for size in sizes)
    means = [values.take(drawn, mode="clip").mean(axis=1) for drawn in draws]  # "clip" copies less than "raise"
    # Rounding may move the mean of equal values beyond them.
    return np.clip(np.concatenate(means), values.min(), values.max())


def paired_t_test(first: Mapping[str, float], second: Mapping[str, float]) -> PairedTest:
    """Two-sided paired t-test (Student 1908): is the mean difference zero? p is 1 where all differences are 0."""
    from scipy.special import stdtr

    differences = _differences(first, second)
    n, mean = len(differences), math.fsum(differences) / len(differences)
    if n < 2:
        raise LampError("a paired t-test needs at least two questions, and there is 1: give more questions")
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (n - 1) / n)
    p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)
    return PairedTest(mean, p, n, "two-sided paired t-test")


def mcnemar_test(first: Mapping[str, float], second: Mapping[str, float]) -> PairedTest:
    """Exact two-sided McNemar test (McNemar 1947) of values 0 or 1: where only one is right, is it a fair coin?"""
    from scipy.special import bdtr

    differences = _differences(first, second)
    if not {*first.values(), *second.values()} <= {0.0, 1.0}:
        raise LampError("McNemar's test compares right (1) and wrong (0): use paired_t_test for other values")
    wins, losses = differences.count(1.0), differences.count(-1.0)
    p = min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))
    return PairedTest((wins - losses) / len(differences), p, len(differences), "exact two-sided McNemar test")


def _differences(first: Mapping[str, float], second: Mapping[str, float]) -> list[float]:
    if not first or first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise LampError(
            f"a paired test needs the same questions in both systems, which have {len(first)} and {len(second)}, "
            f"{len(odd)} of them in one only ({', '.join(odd[:5])}): score both systems on one file"
        )
    return [first[key] - second[key] for key in sorted(first)]
