"""Ranking of chunks of a questions file, in the worker processes of `lamp rank`."""

from collections.abc import Sequence
from dataclasses import replace

from lamp_jax.data.chunks import Chunk, questions_of
from lamp_jax.errors import LampError
from lamp_jax.retrieval.rankers import RankOptions, find_ranker
from lamp_jax.retrieval.ranking import RankedLine, encode_ranking, open_ranking
from lamp_jax.tasks.catalog import Task


def rank_chunk(
    chunk: Chunk, *, ranker: str, task: Task, options: RankOptions, rankings: Sequence[str] = (), run_id: str = ""
) -> list[RankedLine]:
    """Rankings of a chunk by a ranker that needs no encoder. LampError, with the file, where the ranker raises.

    `rankings` are the files that it needs; they do not change during the run of the command, which `run_id` names. A
    question that is not in all of them has an empty line.
    """
    questions = list(questions_of(chunk, task=task, patches=options.compatibility.patches))
    files = {path: open_ranking(path, run_id) for path in rankings}
    known = [question for question in questions if all(question.id in ranking for ranking in files.values())]
    own = {path: {question.id: ranking[question.id] for question in known} for path, ranking in files.items()}
    try:
        ranked = map(encode_ranking, find_ranker(ranker).rank(known, task, replace(options, rankings=own)))
        lines = {line.question_id: line for line in ranked}
    except LampError as error:
        raise LampError(f"{chunk.path}: {error}") from None
    return [lines.get(question.id, RankedLine(question.id, b"", b"")) for question in questions]
