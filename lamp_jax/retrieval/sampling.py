"""How the random ranker draws: without replacement, the same for one seed and question wherever it runs."""

import hashlib
from collections.abc import Iterable, Iterator

from lamp_jax.data.files import Question
from lamp_jax.retrieval.scored import Ranked, in_order


def rank_random(questions: Iterable[Question], *, seed: int = 0) -> Iterator[Ranked]:
    """Every profile in an order drawn from the seed and the question's id alone.

    The items' places are sorted by the SHA-256 of (seed, question id, place): a permutation, so that the first K are
    K draws without replacement, equal in every process, Python and numpy, and for every order of the questions.
    """
    for question in questions:
        yield in_order(question, permutation(len(question.profile), seed=seed, key=question.id))


def permutation(size: int, *, seed: int, key: str) -> list[int]:
    """The numbers below `size` in an order drawn from `seed` and `key`."""
    drawn = hashlib.sha256(f"{seed}\0{key}\0".encode("utf-8", "surrogatepass"))

    def lot(place: int) -> bytes:
        ticket = drawn.copy()
        ticket.update(str(place).encode())
        return ticket.digest()

    return sorted(range(size), key=lot)
