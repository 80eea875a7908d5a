"""Rankings by BM25 on all cores: rank_bm25's Okapi scores, bit for bit, or bm25s's Lucene scores.

Okapi is computed in numpy on the texts' bytes (`words.py`), because a Python string per word costs more than the rest.
Peers and figures are in `benchmarks/README.md`; bm25s has the Lucene variant.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np

from lamp_jax.config import CORRECT, Compatibility
from lamp_jax.data.files import Question
from lamp_jax.retrieval.scored import Ranked, best_first
from lamp_jax.retrieval.texts import documents_of, query_of
from lamp_jax.retrieval.words import group_words
from lamp_jax.runs.workers import map_in_processes
from lamp_jax.tasks.catalog import Task

Variant = Literal["okapi", "lucene"]

K1, B, EPSILON = 1.5, 0.75, 0.25

# Work is measured in characters of text; a profile and a query cost about this many in addition to their text.
_FIXED_WORK = 4096
_CHUNK_WORK = 2**20
# A process takes about as long to start as half of this much work.
_WORK_WORTH_A_PROCESS = 2**24


def rank_bm25(
    questions: Iterable[Question],
    task: Task,
    *,
    variant: Variant = "okapi",
    use_date: bool = False,
    compatibility: Compatibility = CORRECT,
    workers: int = 1,
) -> Iterator[Ranked]:
    """Rankings of all profiles by BM25, in the order of the questions. Ties are broken by position in the profile.

    Questions whose profiles have the same documents share one index, whatever their ids. All texts are read, and errors
    in them raised (LampError with the question's id), before the first score. At most `workers` processes are started,
    fewer if there is little work; the result does not depend on their number.
    """
    questions = list(questions)
    jobs = _jobs(questions, task, use_date, compatibility)
    return _in_order(questions, jobs, _score_all(jobs, partial(_score_jobs, variant), workers))


# --- scores of one profile


def okapi_scores(documents: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """Okapi BM25 of every query and document, float64 [queries, documents]; zeros where no word matches.

    Words are those of str.split(), case and punctuation included. idf = log(N - n + 0.5) - log(n + 0.5) for a word in n
    of N documents; a negative idf is replaced by EPSILON times the mean idf of the profile's words, which is also
    negative in small profiles: then matching documents rank last.
    """
    scores = np.zeros((len(queries), len(documents)))
    if any(map(str.split, documents)):
        index = _index(documents, queries)
        for row, query in zip(scores, index.queries, strict=True):
            row[:] = _okapi(index, query)
    return scores


def lucene_scores(documents: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """bm25s's Lucene BM25 (idf = log(1 + (N - n + 0.5) / (n + 0.5)), never negative), as okapi_scores otherwise."""
    scores = np.zeros((len(queries), len(documents)))
    words = [document.split() for document in documents]
    if any(words):
        index = _bm25s().BM25(k1=K1, b=B, method="lucene", dtype="float64")
        index.index(words, show_progress=False)
        for row, query in zip(scores, queries, strict=True):
            row[:] = index.get_scores_from_ids(index.get_tokens_ids(query.split()))
    return scores


SCORERS: dict[Variant, Callable[[Sequence[str], Sequence[str]], np.ndarray]] = {
    "okapi": okapi_scores,
    "lucene": lucene_scores,
}


class _Index(NamedTuple):
    """Postings of the words of N documents, one per (word, document), sorted by both; and of the queries' words.

    All words count, not the queries' alone: for a word of more than half of the documents, such as "the", the mean idf
    of all is needed.
    """

    order: np.ndarray  # positions of all words, equal words together, ascending; the queries' are after the documents'
    texts: np.ndarray  # number of the document of each
    postings: np.ndarray  # start of each posting in `order`, and its length as the last
    words: np.ndarray  # start of each word's postings
    frequencies: np.ndarray  # number of documents with each word; 0 for one of queries alone
    lengths: np.ndarray  # [N] words per document
    queries: list[np.ndarray]  # numbers of each query's words, in its order


def _index(documents: Sequence[str], queries: Sequence[str]) -> _Index:
    order, begins, lengths = group_words([*documents, *queries])
    texts = np.repeat(np.arange(len(lengths)), lengths)[order]
    lengths, asked = lengths[: len(documents)], lengths[len(documents) :]
    in_posting = begins.copy()
    in_posting[1:] |= texts[1:] != texts[:-1]
    postings = np.flatnonzero(in_posting)
    words = np.flatnonzero(begins[postings])
    # The queries' words, each with the number of its word, and in the order of their positions.
    places = np.flatnonzero(order >= lengths.sum())
    numbers = np.searchsorted(postings[words], places, side="right") - 1
    of_queries = np.bincount(numbers[in_posting[places]], minlength=len(words))
    frequencies = np.diff(words, append=len(postings)) - of_queries
    numbers = numbers[np.argsort(order[places])]
    by_query = [numbers[end - size : end] for size, end in zip(asked, np.cumsum(asked), strict=True)]
    return _Index(order, texts, np.append(postings, len(order)), words, frequencies, lengths, by_query)


def _okapi(index: _Index, query: np.ndarray) -> np.ndarray:
    """Scores of one query, [N]. The operations are rank_bm25's, in its order, so that its ties are ties here."""
    sizes = index.frequencies[query]
    # Postings of all words of the query, word by word, repeated for repeated words.
    at = np.repeat(index.words[query] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    starts = index.postings[at]
    documents, counts = index.texts[starts], index.postings[at + 1] - starts
    saturation = K1 * (1 - B + B * index.lengths / (index.lengths.sum() / len(index.lengths)))
    weights = np.repeat(_okapi_idf(index, sizes), sizes) * (counts * (K1 + 1) / (counts + saturation[documents]))
    return np.bincount(documents, weights, minlength=len(index.lengths))


def _okapi_idf(index: _Index, frequencies: np.ndarray) -> np.ndarray:
    """Inverse document frequency of words in so many documents, with rank_bm25's floor."""
    size = len(index.lengths)
    logs = _half_logs(1 << size.bit_length())[: size + 1]
    by_frequency = logs[::-1] - logs
    idf = by_frequency[frequencies]
    if np.any(idf < 0):
        # All words' are added in the order of their first occurrences, as rank_bm25 does; zeros change no sum.
        terms = np.zeros(len(index.order))
        terms[index.order[index.postings[index.words]]] = by_frequency[index.frequencies]
        total = np.cumsum(terms[: index.lengths.sum()])[-1]
        idf[idf < 0] = EPSILON * (total / np.count_nonzero(index.frequencies))
    return idf


@cache
def _half_logs(count: int) -> np.ndarray:
    """log(n + 0.5) for n below `count`, by the C library's log; numpy's may differ in the last bit."""
    return np.array([math.log(n + 0.5) for n in range(count)])


def _bm25s() -> Any:
    """Module bm25s, imported without jax: its import would start jax's backend if jax is installed."""
    if "bm25s" not in sys.modules:
        modules: dict[str, Any] = sys.modules
        hidden = {name: modules.get(name) for name in ("jax", "jax.lax")}
        modules.update(dict.fromkeys(hidden))
        try:
            import bm25s  # noqa: F401
        finally:
            for name, module in hidden.items():
                modules.pop(name)
                if module is not None:
                    modules[name] = module
    return sys.modules["bm25s"]


# --- many profiles on several cores


class _Job(NamedTuple):
    """Distinct profile with the queries of its questions."""

    documents: tuple[str, ...]
    queries: list[str]
    numbers: list[int]  # of the questions

    @property
    def work(self) -> int:
        return sum(map(len, self.documents)) + _FIXED_WORK * (1 + len(self.queries))


def _jobs(questions: Sequence[Question], task: Task, use_date: bool, compatibility: Compatibility) -> list[_Job]:
    # By content: item ids collide between questions.
    by_documents: dict[tuple[str, ...], _Job] = {}
    for number, question in enumerate(questions):
        documents = documents_of(question, task, use_date=use_date)
        job = by_documents.setdefault(documents, _Job(documents, [], []))
        job.queries.append(query_of(question, task, compatibility=compatibility))
        job.numbers.append(number)
    return list(by_documents.values())


def _in_order(questions: Sequence[Question], jobs: Iterable[_Job], scored: Iterable[np.ndarray]) -> Iterator[Ranked]:
    waiting: dict[int, np.ndarray] = {}
    turn = 0
    for job, scores in zip(jobs, scored, strict=True):
        waiting.update(zip(job.numbers, scores, strict=True))
        while turn in waiting:
            row = waiting.pop(turn)
            order = best_first(row)
            ids = [str(item["id"]) for item in questions[turn].profile]
            yield Ranked(questions[turn].id, [ids[place] for place in order.tolist()], row[order])
            turn += 1


def _score_jobs(variant: Variant, jobs: Sequence[_Job]) -> list[np.ndarray]:
    return [SCORERS[variant](job.documents, job.queries) for job in jobs]


def _score_all(
    jobs: Sequence[_Job], score: Callable[[Sequence[_Job]], list[np.ndarray]], workers: int
) -> Iterator[np.ndarray]:
    """Scores of all jobs, in order."""
    processes = min(workers, 1 + sum(job.work for job in jobs) // _WORK_WORTH_A_PROCESS)
    chunks = _chunks(jobs)
    scored = map_in_processes(score, chunks, processes=processes)
    return chain.from_iterable(scored)


def _chunks(jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
    chunk, work = [], 0
    for job in jobs:
        chunk.append(job)
        work += job.work
        if work >= _CHUNK_WORK:
            yield chunk
            chunk, work = [], 0
    if chunk:
        yield chunk
