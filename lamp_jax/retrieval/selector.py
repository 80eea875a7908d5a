"""Choice of a retriever per question without a model, and its evaluation: predictors, oracle bounds, success rates.

Source: ROPG/RSPG (Salemi et al. 2024, arXiv 2404.05970), sections 5 and 6, which compare with query performance
prediction (QPP). Each predictor cites the paper of its formula.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lamp_jax.artifacts.selector import Candidate, CandidateSet, QuestionCandidates
from lamp_jax.errors import LampError

# --- query performance prediction: scores [N] of a complete ranked profile, best first; 0 where there are none.


def wig(scores: Sequence[float], *, words: int, items: int) -> float:
    """Weighted information gain: the mean over the first `items` of (s_i - mean of all) / sqrt(words of the query).

    Zhou and Croft 2007.
    """
    if not len(scores):
        return 0.0
    shifted = _shifted(scores)
    return float((np.mean(shifted[:items]) - np.mean(shifted)) / math.sqrt(max(words, 1)))


def nqc(scores: Sequence[float], *, items: int) -> float:
    """Normalized query commitment: the standard deviation of the first `items` scores, over |mean of all|; 0 where the
    mean is within rounding of 0.

    Shtok et al. 2012.
    """
    if not len(scores):
        return 0.0
    mean, largest = abs(float(np.mean(scores))), float(np.max(np.abs(scores)))
    return float(np.std(_shifted(scores)[:items])) / mean if mean > 1e-12 * largest else 0.0


def sigma_max(scores: Sequence[float]) -> float:
    """Largest standard deviation of the first n scores, over all n. Perez-Iglesias and Araujo 2010."""
    if not len(scores):
        return 0.0
    shifted = _shifted(scores)
    counts = np.arange(1, len(shifted) + 1)
    variances = np.cumsum(shifted**2) / counts - (np.cumsum(shifted) / counts) ** 2
    return float(np.sqrt(max(variances.max(), 0.0)))


def sigma_half(scores: Sequence[float]) -> float:
    """Standard deviation of the scores of at least half the best (0 if that is negative). Cummins et al. 2011."""
    kept = [score for score in scores if score >= scores[0] / 2]
    return float(np.std(_shifted(kept))) if kept else 0.0


def _shifted(scores: Sequence[float]) -> np.ndarray:
    """Scores minus the first: equal scores then deviate by exactly 0, and large scores keep their differences."""
    return np.asarray(scores, np.float64) - scores[0]


def predict_success(scores: Sequence[float], *, words: int, items: int) -> dict[str, float]:
    """All four predictors, by their names in `lamp select --by`."""
    return {
        "wig": wig(scores, words=words, items=items),
        "nqc": nqc(scores, items=items),
        "sigma-max": sigma_max(scores),
        "sigma-50": sigma_half(scores),
    }


# --- choices: the name of a retriever for each question; of several equal ones, the first of its candidates.


def choose_by_reward(data: CandidateSet, *, worst: bool = False) -> dict[str, str]:
    """Oracle choices: each question's best candidate, or its worst. LampError where rewards are missing."""
    _check_rewards(data)
    pick = min if worst else max
    return {
        question.id: pick(question.candidates, key=lambda name: _reward(question, name)) for question in data.questions
    }


def choose_by_predictor(data: CandidateSet, predictor: str, *, train: CandidateSet | None = None) -> dict[str, str]:
    """Choices of the highest prediction; with `train`, each retriever's predictions are standardized on its questions.

    A candidate without predictions, such as that without retrieval, has 0 (as in the paper) before standardization.
    LampError where no candidate has the prediction, in `data` or in `train`.
    """
    for one in (data, train):
        if one and not any(
            predictor in each.predictors for question in one.questions for each in question.candidates.values()
        ):
            where = "" if one is data else "of the train questions "
            raise LampError(
                f"no candidate {where}has a prediction {predictor!r}; make them with `lamp selector-data --scores`"
            )
    scales = {name: _scale(train, name, predictor) if train else (0.0, 1.0) for name in data.names}

    def value(name: str, candidate: Candidate) -> float:
        mean, deviation = scales[name]
        return (candidate.predictors.get(predictor, 0.0) - mean) / deviation

    return {question.id: _best(question, value) for question in data.questions}


def choose_by_value(data: CandidateSet, values: Mapping[tuple[str, str], float]) -> dict[str, str]:
    """Choices of the highest value; `values` has them by question id and retriever name."""
    return {
        question.id: _best(question, lambda name, _: values[question.id, name])  # noqa: B023
        for question in data.questions
    }


def _best(question: QuestionCandidates, value: Callable[[str, Candidate], float]) -> str:
    return max(question.candidates, key=lambda name: value(name, question.candidates[name]))


def _scale(train: CandidateSet, name: str, predictor: str) -> tuple[float, float]:
    """Mean and standard deviation (1 if it is 0) of one retriever's predictions."""
    values = [
        question.candidates[name].predictors.get(predictor, 0.0)
        for question in train.questions
        if name in question.candidates
    ]
    if not values or min(values) == max(values):
        return values[0] if values else 0.0, 1.0
    return float(np.mean(values)), float(np.std(values))


# --- evaluation of choices


def success_rate(data: CandidateSet, chosen: Mapping[str, str]) -> float:
    """Share of questions whose chosen candidate has the highest reward, ties included. Table 4 of the paper."""
    _check_rewards(data)
    hits = [_reward(question, chosen[question.id]) == max(_rewards(question).values()) for question in data.questions]
    return sum(hits) / len(hits)


def mean_reward(data: CandidateSet, chosen: Mapping[str, str]) -> float:
    """Mean reward of the chosen candidates."""
    _check_rewards(data)
    return math.fsum(_reward(question, chosen[question.id]) for question in data.questions) / len(data.questions)


def winning_rates(data: CandidateSet) -> dict[str, float]:
    """Share of questions that each retriever wins; a tie of n retrievers counts 1/n for each. The shares sum to 1."""
    _check_rewards(data)
    shares = dict.fromkeys(data.names, 0.0)
    for question in data.questions:
        rewards = _rewards(question)
        most = max(rewards.values())
        winners = [name for name, reward in rewards.items() if reward == most]
        for name in winners:
            shares[name] += 1 / len(winners) / len(data.questions)
    return shares


def _check_rewards(data: CandidateSet) -> None:
    if not data.rewarded:
        raise LampError("some candidates have no reward; make them again with `lamp selector-data --golds`")


def _rewards(question: QuestionCandidates) -> dict[str, float]:
    return {name: _reward(question, name) for name in question.candidates}


def _reward(question: QuestionCandidates, name: str) -> float:
    return question.candidates[name].reward  # pyright: ignore[reportReturnType] (checked before)
