"""Scored rankings of profiles, for all rankers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lamp_jax.data.files import Question


class Ranked(NamedTuple):
    """Ranking of one question's complete profile, best first: item ids, and the score of each, float64 [N]."""

    question_id: str
    item_ids: list[str]
    scores: np.ndarray


def in_order(question: Question, places: Sequence[int]) -> Ranked:
    """Ranking of a profile in an order without scores: an item's score is its reciprocal rank."""
    ids = [str(question.profile[place]["id"]) for place in places]
    return Ranked(question.id, ids, 1.0 / np.arange(1, len(ids) + 1))


def best_first(scores: np.ndarray) -> np.ndarray:
    """Positions by descending score; equal scores by position. [N] -> int [N]"""
    return np.argsort(-scores, kind="stable")
