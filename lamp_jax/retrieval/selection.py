"""How a retriever is chosen without a model, and how good a choice is: predictions of success, bounds, success rates.

Source: ROPG/RSPG (Salemi et al. 2024, arXiv 2404.05970), sections 5 and 6; they compare with query performance
prediction, of whose formulas each function names the origin.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lamp_jax.artifacts.candidates import Candidate, CandidateSet, QuestionCandidates
from lamp_jax.errors import LampError

# --- query performance prediction: scores [N] of a whole ranked profile, best first; 0 where there are none.


def wig(scores: Sequence[float], *, words: int, items: int) -> float:
    """Weighted information gain: the mean over the first `items` of (s_i - mean of all) / sqrt(words of the query).

    Zhou and Croft 2007.
    """
    if not len(scores):
        return 0.0
    shifted = _shifted(scores)
    return float((np.mean(shifted[:items]) - np.mean(shifted)) / math.sqrt(max(words, 1)))


def nqc(scores: Sequence[float], *, items: int) -> float:
    """Normalized query commitment: the deviation of the first `items`, over |mean of all|; 0 where the mean is no more
    than rounding.

    Shtok et al. 2012.
    """
    if not len(scores):
        return 0.0
    mean, largest = abs(float(np.mean(scores))), float(np.max(np.abs(scores)))
    return float(np.std(_shifted(scores)[:items])) / mean if mean > 1e-12 * largest else 0.0


def sigma_max(scores: Sequence[float]) -> float:
    """The largest deviation of the first n scores, over all n. Perez-Iglesias and Araujo 2010."""
    if not len(scores):
        return 0.0
    shifted = _shifted(scores)
    counts = np.arange(1, len(shifted) + 1)
    variances = np.cumsum(shifted**2) / counts - (np.cumsum(shifted) / counts) ** 2
    return float(np.sqrt(max(variances.max(), 0.0)))


def sigma_half(scores: Sequence[float]) -> float:
    """The deviation of those scores that are at least half of the best (0 if it is negative). Cummins et al. 2011."""
    kept = [score for score in scores if score >= scores[0] / 2]
    return float(np.std(_shifted(kept))) if kept else 0.0


def _shifted(scores: Sequence[float]) -> np.ndarray:
    """The scores less the first: equal ones then deviate by exactly 0, and large ones lose nothing of what differs."""
    return np.asarray(scores, np.float64) - scores[0]


def predict_success(scores: Sequence[float], *, words: int, items: int) -> dict[str, float]:
    """All four predictions by the names of `lamp select --by`."""
    return {
        "wig": wig(scores, words=words, items=items),
        "nqc": nqc(scores, items=items),
        "sigma-max": sigma_max(scores),
        "sigma-50": sigma_half(scores),
    }


# --- choices: for each question the name of a retriever; of several that are equal, the first of its candidates.


def choose_by_reward(pool: CandidateSet, *, worst: bool = False) -> dict[str, str]:
    """The oracle: each question's best candidate, or its worst. LampError where rewards are missing."""
    _check_rewards(pool)
    pick = min if worst else max
    return {choice.id: pick(choice.candidates, key=lambda name: _reward(choice, name)) for choice in pool.choices}


def choose_by_predictor(pool: CandidateSet, predictor: str, *, train: CandidateSet | None = None) -> dict[str, str]:
    """The candidate with the highest prediction; with `train`, each retriever's are standardised on those questions.

    A candidate without predictions, such as that without retrieval, counts as 0 (the paper) before that. LampError
    where no candidate has the prediction, here or on the train questions.
    """
    for one in (pool, train):
        if one and not any(
            predictor in each.predictors for choice in one.choices for each in choice.candidates.values()
        ):
            where = "" if one is pool else "of the train questions "
            raise LampError(
                f"no candidate {where}has a prediction {predictor!r}; make them with `lamp selector-data --scores`"
            )
    scales = {name: _scale(train, name, predictor) if train else (0.0, 1.0) for name in pool.names}

    def value(name: str, candidate: Candidate) -> float:
        mean, deviation = scales[name]
        return (candidate.predictors.get(predictor, 0.0) - mean) / deviation

    return {choice.id: _best(choice, value) for choice in pool.choices}


def choose_by_value(pool: CandidateSet, values: Mapping[tuple[str, str], float]) -> dict[str, str]:
    """The candidate with the highest value; `values` by question's id and retriever's name."""
    return {choice.id: _best(choice, lambda name, _: values[choice.id, name]) for choice in pool.choices}  # noqa: B023


def _best(choice: QuestionCandidates, value: Callable[[str, Candidate], float]) -> str:
    return max(choice.candidates, key=lambda name: value(name, choice.candidates[name]))


def _scale(train: CandidateSet, name: str, predictor: str) -> tuple[float, float]:
    """Mean and deviation (1 where there is none) of one retriever's predictions."""
    values = [
        choice.candidates[name].predictors.get(predictor, 0.0) for choice in train.choices if name in choice.candidates
    ]
    if not values or min(values) == max(values):
        return values[0] if values else 0.0, 1.0
    return float(np.mean(values)), float(np.std(values))


# --- how good choices are


def success_rate(pool: CandidateSet, chosen: Mapping[str, str]) -> float:
    """The share of questions whose chosen candidate is the best, or one of several that are. Table 4 of the paper."""
    _check_rewards(pool)
    hits = [_reward(choice, chosen[choice.id]) == max(_rewards(choice).values()) for choice in pool.choices]
    return sum(hits) / len(hits)


def mean_reward(pool: CandidateSet, chosen: Mapping[str, str]) -> float:
    """The mean reward of the chosen candidates."""
    _check_rewards(pool)
    return math.fsum(_reward(choice, chosen[choice.id]) for choice in pool.choices) / len(pool.choices)


def winning_rates(pool: CandidateSet) -> dict[str, float]:
    """The share of questions that each retriever wins; a question that n of them win counts 1/n for each. Sum 1."""
    _check_rewards(pool)
    shares = dict.fromkeys(pool.names, 0.0)
    for choice in pool.choices:
        rewards = _rewards(choice)
        most = max(rewards.values())
        winners = [name for name, reward in rewards.items() if reward == most]
        for name in winners:
            shares[name] += 1 / len(winners) / len(pool.choices)
    return shares


def _check_rewards(pool: CandidateSet) -> None:
    if not pool.rewarded:
        raise LampError("some candidates have no reward; make them again with `lamp selector-data --golds`")


def _rewards(choice: QuestionCandidates) -> dict[str, float]:
    return {name: _reward(choice, name) for name in choice.candidates}


def _reward(choice: QuestionCandidates, name: str) -> float:
    return choice.candidates[name].reward  # pyright: ignore[reportReturnType] (checked before)
