"""How an encoder's vectors rank profiles, and how vectors are kept for the next run.

The encoder itself is a function that is handed in: texts to vectors, batch by batch.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamp_jax.config import CORRECT, Compatibility
from lamp_jax.data.files import Question, read_json, write_json
from lamp_jax.errors import LampError
from lamp_jax.retrieval.scored import Ranked, best_first
from lamp_jax.retrieval.texts import documents_of, query_of
from lamp_jax.tasks.catalog import Task

Embed = Callable[[Sequence[str]], Iterator[tuple[Sequence[int], np.ndarray]]]
"""Texts -> batches of (places of n texts, their vectors float32 [n, D]), every place once, in any order."""


SETTINGS = "retriever.json"


@dataclass(frozen=True)
class RetrieverSettings:
    """What a trained encoder must be told again when it ranks; beside its weights as `retriever.json`."""

    use_date: bool
    """Whether its documents ended in ` date: ...`."""


def read_settings(directory: str | Path) -> RetrieverSettings | None:
    """The settings of an encoder that lamp trained; None for any other. LampError for a file that is none of ours."""
    path = Path(directory) / SETTINGS
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("use_date"), bool):
        raise LampError(f"{path}: expected an object with 'use_date', true or false; train or copy the encoder again")
    return RetrieverSettings(found["use_date"])


def write_settings(directory: str | Path, settings: RetrieverSettings) -> None:
    """Writes `retriever.json` beside an encoder's weights."""
    write_json(Path(directory) / SETTINGS, asdict(settings))


def rank_dense(
    questions: Iterable[Question],
    task: Task,
    embed: Embed,
    *,
    use_date: bool = False,
    compatibility: Compatibility = CORRECT,
) -> Iterator[Ranked]:
    """Ranks every profile by the dot product of query and document vectors; ties go by position in the profile.

    Every distinct text of all questions is embedded once. Equal documents of one profile have equal scores. All texts
    are read, and errors in them raised (LampError with the question's id), before the first is embedded.
    """
    questions = list(questions)
    numbers: dict[str, int] = {}
    queries, documents = [], []
    for question in questions:
        query = query_of(question, task, compatibility=compatibility)
        queries.append(numbers.setdefault(query, len(numbers)))
        texts = documents_of(question, task, use_date=use_date)
        documents.append(np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64))
    vectors = embed_all(list(numbers), embed)
    for question, query, profile in zip(questions, queries, documents, strict=True):
        # Distinct documents are scored once: a product may differ in its last bit from one row to the next.
        distinct, place_of = np.unique(profile, return_inverse=True)
        scores = (vectors[distinct].astype(np.float64) @ vectors[query].astype(np.float64))[place_of]
        order = best_first(scores)
        ids = [str(item["id"]) for item in question.profile]
        yield Ranked(question.id, [ids[place] for place in order], scores[order])


def embed_all(texts: Sequence[str], embed: Embed) -> np.ndarray:
    """The vectors of the texts in their order, float32 [N, D]."""
    vectors = np.zeros((0, 0), np.float32)
    for places, found in embed(texts):
        if not len(vectors):
            vectors = np.zeros((len(texts), found.shape[1]), np.float32)
        vectors[list(places)] = found
    return vectors


class EmbeddingCache:
    """Vectors of one encoder on disk, by text: `keys` (SHA-256, 32 bytes each), `vectors` (float32), `cache.json`.

    Both grow at their end, batch by batch; what a killed run left half written is dropped.
    """

    def __init__(self, directory: str | Path, encoder: Mapping[str, Any]):
        """`encoder`: all that vectors depend on beside the text. LampError where another's are in the directory."""
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        description = self._directory / "cache.json"
        if not description.exists():
            if any(self._directory.iterdir()):
                raise LampError(f"{directory}: holds other files, and no embeddings; give an empty or a new directory")
            write_json(description, dict(encoder))
        elif (found := read_json(description)) != dict(encoder):
            differing = sorted(name for name in {*found, *encoder} if found.get(name) != encoder.get(name))
            raise LampError(
                f"{directory}: holds another encoder's embeddings ({', '.join(differing)} differ, see {description}); "
                "give each encoder a directory of its own"
            )
        whole = self._read("keys")
        self._places = {whole[start : start + 32]: start // 32 for start in range(0, len(whole) - 31, 32)}

    def wrap(self, embed: Embed) -> Embed:
        """`embed` for texts that are not in the cache, which then holds them too."""
        return lambda texts: self._embed(texts, embed)

    def _embed(self, texts: Sequence[str], embed: Embed) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        known = [place for place, key in enumerate(keys) if key in self._places]
        missing = [place for place, key in enumerate(keys) if key not in self._places]
        if known:
            count = len(self._places)
            stored = np.frombuffer(self._read("vectors"), np.float32)
            stored = stored[: len(stored) // count * count].reshape(count, -1)
            yield known, stored[[self._places[keys[place]] for place in known]]
        for batch, vectors in embed([texts[place] for place in missing]):
            places = [missing[place] for place in batch]
            self._append([keys[place] for place in places], vectors)
            yield places, vectors

    def _read(self, name: str) -> bytes:
        path = self._directory / name
        return path.read_bytes() if path.exists() else b""

    def _append(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        # Vectors first: a key stands for a vector that is there. What lies beyond the keys is written over.
        row = vectors.shape[1] * vectors.itemsize
        for name, at, content in (
            ("vectors", len(self._places) * row, np.ascontiguousarray(vectors, np.float32).tobytes()),
            ("keys", len(self._places) * 32, b"".join(keys)),
        ):
            path = self._directory / name
            with open(path, "r+b" if path.exists() else "w+b") as file:
                file.seek(at)
                file.truncate()
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        self._places |= {key: len(self._places) + place for place, key in enumerate(keys)}
