"""A profile ranked by scores, whoever gave them."""

from typing import NamedTuple

import numpy as np


class Ranked(NamedTuple):
    """One question's whole profile, best first: item ids, and the score of each, float64 [N]."""

    question_id: str
    item_ids: list[str]
    scores: np.ndarray


def best_first(scores: np.ndarray) -> np.ndarray:
    """Positions by descending score; equal scores by position. [N] -> int [N]"""
    return np.argsort(-scores, kind="stable")
