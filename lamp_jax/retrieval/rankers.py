"""Table of rankers: needs, function and help text of each.

The rows determine the choices and help texts of `lamp rank --ranker` and of `--retriever`, and the inputs that
`lamp rank` passes to a ranker. The functions import their modules when called, because command lines read this table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lamp_jax.config import CORRECT, Compatibility, Similarity
from lamp_jax.errors import LampError

if TYPE_CHECKING:
    from lamp_jax.data.files import Question
    from lamp_jax.retrieval.bm25 import Variant
    from lamp_jax.retrieval.dense import Embed
    from lamp_jax.retrieval.scored import Ranked
    from lamp_jax.tasks.catalog import ProfileItem, Task

Need = Literal["encoder", "rankings", "dates"]
"""Input of a ranker besides questions: an encoder, which computes on devices; other rankings; the items' dates."""


@dataclass(frozen=True)
class RankOptions:
    """Options of rankers; each uses those that apply to it."""

    use_date: bool = False
    """Append ` date: ...` to every document (`bm25`, `dense`)."""
    variant: Variant = "okapi"
    """BM25 variant: rank_bm25's Okapi, whose idf may be negative, or Lucene's, whose idf is never negative."""
    seed: int = 0
    """Seed of `random`."""
    workers: int = 0
    """Number of processes (`bm25`); 0: one per core."""
    embed: Embed | None = None
    """Embedding function of documents, and of queries without `embed_query`, for rankers that need an encoder."""
    embed_query: Embed | None = None
    """Embedding function of queries, for an encoder that embeds them differently from documents."""
    similarity: Similarity = "dot"
    """Similarity of a query's and a document's vector."""
    rankings: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """Rankings by name (for error messages), for rankers that need them."""
    rrf_k: float = 60.0
    """Constant of `rrf`."""
    compatibility: Compatibility = CORRECT


Rank = Callable[["Iterable[Question]", "Task", RankOptions], "Iterator[Ranked]"]
"""Questions -> ranking of every question's complete profile, best item first, in the order of the questions."""


@dataclass(frozen=True)
class Ranker:
    """Row of the table."""

    name: str
    rank: Rank
    help: str
    needs: tuple[Need, ...] = ()

    @property
    def reads_questions_alone(self) -> bool:
        """Whether the ranker needs no encoder and no rankings: it runs in any process, and serves as `--retriever`."""
        return not {"encoder", "rankings"} & {*self.needs}


def _bm25(questions: Iterable[Question], task: Task, options: RankOptions) -> Iterator[Ranked]:
    from lamp_jax.retrieval.bm25 import rank_bm25
    from lamp_jax.runs.workers import available_cores

    return rank_bm25(
        questions,
        task,
        variant=options.variant,
        use_date=options.use_date,
        compatibility=options.compatibility,
        workers=options.workers or available_cores(),
    )


def _recency(questions: Iterable[Question], task: Task, options: RankOptions) -> Iterator[Ranked]:
    from lamp_jax.retrieval.recency import rank_recency

    return rank_recency(questions)


def _random(questions: Iterable[Question], task: Task, options: RankOptions) -> Iterator[Ranked]:
    from lamp_jax.retrieval.sampling import rank_random

    return rank_random(questions, seed=options.seed)


def _dense(questions: Iterable[Question], task: Task, options: RankOptions) -> Iterator[Ranked]:
    from lamp_jax.retrieval.dense import rank_dense

    if options.embed is None:
        raise LampError(
            "dense: ranks by an encoder's vectors; give RankOptions(embed=...), for example that of `open_encoder`"
        )
    return rank_dense(
        questions,
        task,
        options.embed,
        embed_query=options.embed_query,
        similarity=options.similarity,
        use_date=options.use_date,
        compatibility=options.compatibility,
    )


def _rrf(questions: Iterable[Question], task: Task, options: RankOptions) -> Iterator[Ranked]:
    from lamp_jax.retrieval.fusion import fuse_rankings

    return fuse_rankings(questions, options.rankings, k=options.rrf_k)


_ROWS = (
    Ranker("bm25", _bm25, "by the words that query and document share"),
    Ranker("recency", _recency, "the newest first", needs=("dates",)),
    Ranker("random", _random, "in an order drawn from the seed"),
    Ranker("dense", _dense, "by the vectors of an encoder", needs=("encoder",)),
    Ranker("rrf", _rrf, "by reciprocal rank fusion", needs=("rankings",)),
)

RANKERS: dict[str, Ranker] = {row.name: row for row in _ROWS}


def find_ranker(name: str) -> Ranker:
    """Row of a ranker. LampError, with all names, for an unknown name."""
    if name not in RANKERS:
        raise LampError(f"unknown ranker {name!r}: choose one of {', '.join(RANKERS)}")
    return RANKERS[name]


def names_by_need(need: Need) -> list[str]:
    """Names of the rankers with this need."""
    return [row.name for row in _ROWS if need in row.needs]


# --- retrievers: selection of a prompt's items

Retrieve = Callable[["Sequence[Question]", "Task", RankOptions, int], "Iterator[Sequence[ProfileItem]]"]
"""(questions, task, options, K) -> the items of each question's prompt, best first, at most K."""


@dataclass(frozen=True)
class Retriever:
    """Retriever of a prompt's items: the file's order, none, a ranker, or half from each of two orders."""

    name: str
    retrieve: Retrieve
    help: str
    needs: tuple[Need, ...] = ()


def _from_file(
    questions: Sequence[Question], task: Task, options: RankOptions, count: int
) -> Iterator[Sequence[ProfileItem]]:
    return (question.profile[:count] for question in questions)


def _nothing(
    questions: Sequence[Question], task: Task, options: RankOptions, count: int
) -> Iterator[Sequence[ProfileItem]]:
    return (() for _ in questions)


def _dense_and_newest(
    questions: Sequence[Question], task: Task, options: RankOptions, count: int
) -> Iterator[Sequence[ProfileItem]]:
    from lamp_jax.retrieval.recency import dense_and_newest

    return (dense_and_newest(question, count, halves=options.compatibility.halves) for question in questions)


def _by_ranker(ranker: Ranker) -> Retriever:
    def retrieve(
        questions: Sequence[Question], task: Task, options: RankOptions, count: int
    ) -> Iterator[Sequence[ProfileItem]]:
        from lamp_jax.retrieval.ranking import apply_ranking

        for question, ranked in zip(questions, ranker.rank(questions, task, options), strict=True):
            yield apply_ranking(question, ranked.item_ids).profile[:count]

    return Retriever(ranker.name, retrieve, ranker.help, ranker.needs)


_RETRIEVERS = (
    Retriever("file", _from_file, "the profile's order in the file, as `lamp merge` wrote it"),
    Retriever("none", _nothing, "no profile"),
    *(_by_ranker(row) for row in _ROWS if row.reads_questions_alone),
    Retriever(
        "recency+dense", _dense_and_newest, "half from the file's (dense) order, half the newest", needs=("dates",)
    ),
)

RETRIEVERS: dict[str, Retriever] = {row.name: row for row in _RETRIEVERS}


def find_retriever(name: str) -> Retriever:
    """Row of a retriever. LampError, with all names, for an unknown name."""
    if name not in RETRIEVERS:
        raise LampError(f"unknown retriever {name!r}: choose one of {', '.join(RETRIEVERS)}")
    return RETRIEVERS[name]


# --- types and help texts of command lines

if TYPE_CHECKING:
    RankerName = str
    RetrieverName = str
else:
    RankerName = Literal[tuple(RANKERS)]
    RetrieverName = Literal[tuple(RETRIEVERS)]


def describe(rows: Collection[Ranker | Retriever]) -> str:
    """Help text of rows: each name with its help and its needs."""
    needs = {row.name: f" (needs {' and '.join(row.needs)})" if row.needs else "" for row in rows}
    return "; ".join(f"`{row.name}`: {row.help}{needs[row.name]}" for row in rows)
