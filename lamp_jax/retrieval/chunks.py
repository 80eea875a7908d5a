"""Ranking of chunks of a questions file, in the worker processes of `lamp rank`."""

from lamp_jax.data.chunks import Chunk, questions_of
from lamp_jax.errors import LampError
from lamp_jax.retrieval.rankers import RankOptions, find_ranker
from lamp_jax.retrieval.ranking import RankedLine, encode_ranking
from lamp_jax.tasks.catalog import Task


def rank_chunk(chunk: Chunk, *, ranker: str, task: Task, options: RankOptions) -> list[RankedLine]:
    """Rankings of a chunk by a ranker that needs only questions. LampError, with the file, where the ranker raises."""
    questions = list(questions_of(chunk, task=task, patches=options.compatibility.patches))
    try:
        return [encode_ranking(ranked) for ranked in find_ranker(ranker).rank(questions, task, options)]
    except LampError as error:
        raise LampError(f"{chunk.path}: {error}") from None
