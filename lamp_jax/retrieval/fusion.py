"""Reciprocal rank fusion of several rankings of one profile."""

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction

import numpy as np

from lamp_jax.data.files import Question, check_same_ids
from lamp_jax.errors import LampError
from lamp_jax.retrieval.ranking import Rankings, places_of
from lamp_jax.retrieval.scored import Ranked, best_first

_ROUNDING = 1e-12  # of a score: scores that differ by less may be equal


def fuse_rankings(
    questions: Iterable[Question], rankings: Mapping[str, Rankings], *, k: float = 60.0
) -> Iterator[Ranked]:
    """Rankings by the sum of 1 / (k + rank) over the given rankings, ranks from 1; ties by position in the profile.

    `rankings` have names for error messages. Source: Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion
    outperforms Condorcet and individual Rank Learning Methods", with their k = 60. LampError unless every ranking has
    the same questions and complete profiles.
    """
    questions = list(questions)
    if len(rankings) < 2:
        raise LampError(f"rrf: {len(rankings)} rankings; give two or more with --rankings")
    if k < 0:
        raise LampError(f"rrf: k is {k}; it must not be negative")
    for name, ranking in rankings.items():
        check_same_ids([question.id for question in questions], ranking, left="the questions", right=name)
    return (_fuse(question, rankings, k) for question in questions)


def _fuse(question: Question, rankings: Mapping[str, Rankings], k: float) -> Ranked:
    ranks = np.zeros((len(rankings), len(question.profile)))
    for row, (name, ranking) in zip(ranks, rankings.items(), strict=True):
        order = ranking[question.id]
        try:
            row[places_of(question, order)] = np.arange(1, len(row) + 1)
        except LampError as error:
            raise LampError(f"{name}: {error}") from error
    # Summed from the best rank on: items with the same ranks are equal to the last bit, in any order of the rankings.
    scores = np.sum(1 / (k + np.sort(ranks, axis=0)), axis=0)
    order = best_first(scores)
    apart = -np.diff(scores[order])
    if np.any((apart > 0) & (apart < _ROUNDING * scores[order][1:])):  # 1/2 + 1/3 + 1/3 + 1/3 = 1/2 + 1/2 + 1/4 + 1/4
        scores = np.array([float(sum(1 / (Fraction(k) + int(rank)) for rank in column)) for column in ranks.T])
        order = best_first(scores)
    ids = [str(item["id"]) for item in question.profile]
    return Ranked(question.id, [ids[place] for place in order], scores[order])
