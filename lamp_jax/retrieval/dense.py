"""Rankings by an encoder's vectors, and an embedding cache on disk.

The encoder is an argument: a function from texts to vectors, batch by batch.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lamp_jax.config import CORRECT, Compatibility, Similarity
from lamp_jax.data.files import Question
from lamp_jax.errors import LampError
from lamp_jax.retrieval.scored import Ranked, best_first
from lamp_jax.retrieval.texts import documents_of, query_of
from lamp_jax.retrieval.vectors import DistinctVectors, Embed, TextNumbers, embed_all
from lamp_jax.runs.json_files import read_json, write_json
from lamp_jax.tasks.catalog import Task


def rank_dense(
    questions: Iterable[Question],
    task: Task,
    embed: Embed,
    *,
    embed_query: Embed | None = None,
    similarity: Similarity = "dot",
    use_date: bool = False,
    compatibility: Compatibility = CORRECT,
) -> Iterator[Ranked]:
    """Rankings of all profiles by the similarity of query and document vectors; ties by position in the profile.

    `embed_query` is for encoders that embed a query differently from an equal document. Every distinct text of all
    questions is embedded once. Equal documents of one profile have equal scores. All texts are read, and errors in them
    raised (LampError with the question's id), before the first text is embedded: the questions are read twice, and
    unless they are an iterator only few of them are in memory at a time.
    """
    if isinstance(questions, Iterator):
        questions = list(questions)
    read = partial(_read, task=task, use_date=use_date, compatibility=compatibility, shared=embed_query is None)
    queries: dict[str, int] = {}  # where they are not embedded like documents
    numbers = TextNumbers(read(question, queries).embedded for question in questions)
    query_vectors = embed_all(list(queries), embed_query) if embed_query else None
    waiting: deque[_Texts] = deque()
    with DistinctVectors(embed, numbers.last_use) as vectors:

        def rank(texts: _Texts, own: np.ndarray) -> Ranked:
            if query_vectors is not None:
                return _rank(texts, query_vectors[queries[texts.query]], own, vectors, similarity)
            return _rank(texts, vectors[own[:1]][0], own[1:], vectors, similarity)

        for question in questions:
            texts = read(question, queries)
            vectors.add(texts.embedded, numbers[vectors.ranked + len(waiting)])
            waiting.append(texts._replace(embedded=()))
            while waiting and vectors.has(numbers[vectors.ranked]):
                yield rank(waiting.popleft(), numbers[vectors.ranked])
                vectors.ranked += 1
        vectors.finish()
        while waiting:
            yield rank(waiting.popleft(), numbers[vectors.ranked])
            vectors.ranked += 1


class _Texts(NamedTuple):
    """What a question's ranking needs; `embedded` are its documents, after the query if that is embedded like them."""

    question_id: str
    item_ids: list[str]
    query: str
    embedded: tuple[str, ...]


def _read(
    question: Question,
    queries: dict[str, int],
    *,
    task: Task,
    use_date: bool,
    compatibility: Compatibility,
    shared: bool,
) -> _Texts:
    """Texts of a question. Numbers its query in `queries` unless it is embedded like the documents."""
    query = query_of(question, task, compatibility=compatibility)
    documents = documents_of(question, task, use_date=use_date)
    if not shared:
        queries.setdefault(query, len(queries))
    ids = [str(item["id"]) for item in question.profile]
    return _Texts(question.id, ids, query, (query, *documents) if shared else documents)


def _rank(
    texts: _Texts, query: np.ndarray, numbers: np.ndarray, vectors: DistinctVectors, similarity: Similarity
) -> Ranked:
    # Distinct documents are scored once: a product may differ in its last bit from one row to the next.
    distinct, place_of = np.unique(numbers, return_inverse=True)
    scores = similarities(query, vectors[distinct], similarity)[place_of] if len(numbers) else np.zeros(0)
    order = best_first(scores)
    return Ranked(texts.question_id, [texts.item_ids[place] for place in order.tolist()], scores[order])


def similarities(query: np.ndarray, documents: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Scores [N], float64, of documents' vectors [N, D] for a query's vector [D]."""
    query, documents = query.astype(np.float64), documents.astype(np.float64)
    if similarity == "cosine":
        query, documents = (
            vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
            for vectors in (query, documents)
        )
    return documents @ query


class EmbeddingCache:
    """Cache of one encoder's vectors on disk, by text, for one process at a time.

    `vectors` is a table of rows: the SHA-256 of a text (32 bytes), then its vector (float32). Batches are appended; an
    incomplete row of a killed run is dropped. `cache.json` identifies the encoder.
    """

    def __init__(self, directory: str | Path, encoder: Mapping[str, Any]):
        """`encoder`: all settings that vectors depend on. LampError for a directory with another encoder's vectors."""
        self._path = Path(directory) / "vectors"
        self._description = Path(directory) / "cache.json"
        self._encoder = dict(encoder)
        Path(directory).mkdir(parents=True, exist_ok=True)
        self._size = 0  # width of a vector
        self._places: dict[bytes, int] = {}
        if self._description.exists():
            self._open()
        elif any(not path.name.startswith(".") for path in Path(directory).iterdir()):
            raise LampError(f"{directory}: has other files than embeddings; give an empty or a new directory")

    def _open(self) -> None:
        found = read_json(self._description)
        size = found.pop("size", None) if isinstance(found, dict) else None
        if not isinstance(size, int):
            raise LampError(f"{self._description}: does not describe embeddings; give an empty or a new directory")
        if found != self._encoder:
            differing = sorted(name for name in {*found, *self._encoder} if found.get(name) != self._encoder.get(name))
            raise LampError(
                f"{self._path.parent}: has another encoder's embeddings ({', '.join(differing)} differ, see "
                f"{self._description}); give each encoder a directory of its own"
            )
        self._size = size
        self._places = {row["key"].tobytes(): place for place, row in enumerate(self._rows())}

    def wrap(self, embed: Embed, *, of_queries: bool = False) -> Embed:
        """`embed` with the cache: only texts that are not cached are embedded, and then cached.

        `of_queries` is for an encoder that embeds queries differently from documents: they have separate keys.
        """
        kind = b"\xff" if of_queries else b""  # no UTF-8 text begins with it
        return lambda texts: self._embed(texts, embed, kind)

    def _embed(self, texts: Sequence[str], embed: Embed, kind: bytes) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        keys = [hashlib.sha256(kind + text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        missing: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key not in self._places:
                missing.setdefault(key, place)
        new = list(missing.values())
        for batch, vectors in embed([texts[place] for place in new]) if new else ():
            self._append([keys[new[place]] for place in batch], vectors)
        if keys:
            yield range(len(keys)), self._rows()["vector"][[self._places[key] for key in keys]]

    @property
    def _row(self) -> np.dtype:
        return np.dtype([("key", "V32"), ("vector", "<f4", (self._size,))])

    def _rows(self) -> np.ndarray:
        """All complete rows, memory-mapped."""
        count = self._path.stat().st_size // self._row.itemsize if self._path.exists() else 0
        return np.memmap(self._path, self._row, "r", shape=(count,)) if count else np.zeros(0, self._row)

    def _append(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        if not self._size:
            self._size = vectors.shape[1]
            write_json(self._description, self._encoder | {"size": self._size})
        rows = np.zeros(len(keys), self._row)
        rows["key"], rows["vector"] = np.frombuffer(b"".join(keys), "V32"), vectors
        with open(self._path, "r+b" if self._path.exists() else "w+b") as file:
            file.seek(len(self._places) * self._row.itemsize)
            file.truncate()  # an incomplete row of a killed run
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
        self._places |= {key: len(self._places) + place for place, key in enumerate(keys)}
