"""Vectors of the distinct texts of many questions, in memory that does not grow with their number.

Texts are numbered in the order of their first use, and embedded in that order, many at a time. Vectors that a later
question uses again wait in a temporary file (of Python's `tempfile`, thus below $TMPDIR).
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import IO

import numpy as np

Embed = Callable[[Sequence[str]], Iterator[tuple[Sequence[int], np.ndarray]]]
"""Texts -> batches of (positions of n texts, their vectors float32 [n, D]), every position once, in any order."""

WINDOW = 8192
"""Number of texts that are embedded by one call, and sorted by length together: enough to fill batches, few enough to
keep their tokens in memory."""

_KEPT_WINDOWS = 4
_DIGEST = 16  # bytes


def embed_all(texts: Sequence[str], embed: Embed) -> np.ndarray:
    """Vectors of the texts in their order, float32 [N, D]."""
    vectors = np.zeros((0, 0), np.float32)
    for places, found in embed(texts):
        if not len(vectors):
            vectors = np.zeros((len(texts), found.shape[1]), np.float32)
        vectors[list(places)] = found
    return vectors


class TextNumbers:
    """Numbers of the texts of Q questions: equal texts have the same number, in the order of their first use."""

    def __init__(self, texts: Iterable[Sequence[str]]):
        """`texts` has the texts of each question. Only their digests are kept."""
        digests, sizes = bytearray(), []
        for some in texts:
            sizes.append(len(some))
            for text in some:
                octets = text.encode("utf-8", "surrogatepass")
                digests += hashlib.blake2b(octets, digest_size=_DIGEST).digest()
        self._numbers = _number(digests)
        self._ends = np.cumsum(sizes)
        windows = -(-(int(self._numbers.max(initial=-1)) + 1) // WINDOW)
        self.last_use = np.zeros(windows, np.int64)
        """Last question that uses a text of each window, int [windows]."""
        np.maximum.at(self.last_use, self._numbers // WINDOW, np.repeat(np.arange(len(sizes)), sizes))

    def __getitem__(self, question: int) -> np.ndarray:
        """Numbers of a question's texts, int [N]."""
        return self._numbers[self._ends[question - 1] if question else 0 : self._ends[question]]


def _number(digests: bytes | bytearray) -> np.ndarray:
    """Number of each digest, int32 [N]: equal digests have the same, in the order of their first occurrence."""
    rows = np.frombuffer(digests, np.uint64).reshape(-1, _DIGEST // 8)
    order = np.lexsort(rows.T).astype(np.int32)  # stable: the first of equal digests is their first occurrence
    begins = np.ones(len(rows), bool)
    begins[1:] = np.any(rows[order[1:]] != rows[order[:-1]], axis=1)
    first = order[begins]
    by_group = np.empty(len(first), np.int32)
    by_group[np.argsort(first)] = np.arange(len(first))
    numbers = np.empty(len(rows), np.int32)
    numbers[order] = by_group[np.cumsum(begins, dtype=np.int32) - 1]
    return numbers


class DistinctVectors:
    """Vectors of numbered texts. A context manager: it closes the temporary file."""

    def __init__(self, embed: Embed, last_use: np.ndarray):
        """`last_use` is that of TextNumbers."""
        self.embedded = 0
        """Number of texts whose vectors are known: those with a smaller number."""
        self.ranked = 0
        """Number of questions whose vectors are not needed any more, to be set by the caller."""
        self._embed, self._last_use = embed, last_use
        self._waiting: list[str] = []
        self._windows: dict[int, np.ndarray] = {}
        self._file: IO[bytes] | None = None
        self._width = 0

    def __enter__(self) -> "DistinctVectors":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def add(self, texts: Sequence[str], numbers: np.ndarray) -> None:
        """Embeds the next texts; equal texts only once. Vectors are known when a window is full, or after `finish`."""
        for text, number in zip(texts, numbers.tolist(), strict=True):
            if number == self.embedded + len(self._waiting):
                self._waiting.append(text)
                if len(self._waiting) == WINDOW:
                    self.finish()

    def has(self, numbers: np.ndarray) -> bool:
        """Whether the vectors of these texts are known."""
        return numbers.max(initial=-1) < self.embedded

    def finish(self) -> None:
        """Embeds the texts that wait for others."""
        if not self._waiting:
            return
        texts, self._waiting = self._waiting, []
        vectors = embed_all(texts, self._embed)
        self._width = vectors.shape[1]
        self._windows[self.embedded // WINDOW] = vectors
        self.embedded += len(texts)
        if len(self._windows) > _KEPT_WINDOWS:
            oldest = min(self._windows)
            self._store(oldest, self._windows.pop(oldest))

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """Vectors of texts, float32 [N, D]."""
        found = np.empty((len(numbers), self._width), np.float32)
        for window in np.unique(numbers // WINDOW).tolist():
            places = np.flatnonzero(numbers // WINDOW == window)
            if window in self._windows:
                found[places] = self._windows[window][numbers[places] % WINDOW]
            else:
                for place in places.tolist():
                    found[place] = self._load(int(numbers[place]))
        return found

    def _store(self, window: int, vectors: np.ndarray) -> None:
        """Writes a window to the file if it is used again."""
        if self._last_use[window] >= self.ranked:
            self._file = self._file or tempfile.TemporaryFile(prefix="lamp-vectors-")  # noqa: SIM115 (see __exit__)
            self._file.seek(window * WINDOW * vectors.itemsize * self._width)
            self._file.write(vectors.tobytes())
            self._file.flush()

    def _load(self, number: int) -> np.ndarray:
        assert self._file, "a vector was dropped that is still used"
        size = 4 * self._width
        return np.frombuffer(os.pread(self._file.fileno(), size, number * size), np.float32)
