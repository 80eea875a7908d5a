"""Random rankings, sampled without replacement: the same for a seed and question on every machine."""

import hashlib
from collections.abc import Iterable, Iterator

from lamp_jax.data.files import Question
from lamp_jax.retrieval.scored import Ranked, in_order


def rank_random(questions: Iterable[Question], *, seed: int = 0) -> Iterator[Ranked]:
    """Rankings of all profiles in an order drawn from the seed and the question's id alone.

    Item positions are sorted by the SHA-256 of (seed, question id, position): a permutation, so that the first K are K
    draws without replacement, equal in every process, Python and numpy version, and for every order of the questions.
    """
    for question in questions:
        yield in_order(question, permutation(len(question.profile), seed=seed, key=question.id))


def permutation(size: int, *, seed: int, key: str) -> list[int]:
    """Permutation of the numbers below `size`, drawn from `seed` and `key`."""
    drawn = hashlib.sha256(f"{seed}\0{key}\0".encode("utf-8", "surrogatepass"))

    def sort_key(place: int) -> bytes:
        hasher = drawn.copy()
        hasher.update(str(place).encode())
        return hasher.digest()

    return sorted(range(size), key=sort_key)
