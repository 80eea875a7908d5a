"""Batches of examples in few shapes. Each batch is a pure function of its number, so a run can resume at any step."""

from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

from lamp_jax.errors import LampError

NO_TOKEN = -1
"""Padding of token rows. It is no model's padding id: those differ, and may occur in texts as ordinary tokens."""

OwnRows = Callable[[int], np.ndarray]
"""Batch size -> the rows of the batch that this process makes, in order: all rows, or its share among processes."""


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and its answer (`</s>` included in both; the answer may be empty at inference)."""

    id: str
    source: Sequence[int]
    target: Sequence[int] = ()


class Batch(NamedTuple):
    """`source` [B, S] and `target` [B, T], int32, padded with NO_TOKEN. Rows that only fill a batch have no target."""

    source: np.ndarray
    target: np.ndarray


class TrainingBatches:
    """Training batches: every example once per epoch, in an order drawn from (seed, epoch); `batches[step]`, step >= 0.

    Sources and targets are padded to a few lengths, which are fitted to the examples (`buckets`: those of the sources
    instead); each example has the smallest that fit it. The remaining rows of a size move up to the next, so an epoch
    has ceil(N / batch_size) batches and a run has at most one shape per pair of lengths. The last batch of an epoch is
    filled with rows that have no target and so no weight. The example in each row does not depend on which rows are
    `own`.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        *,
        batch_size: int,
        max_length: int,
        buckets: Sequence[int] = (),
        seed: int,
        own: OwnRows = np.arange,
    ):
        self._sources, self._targets = _Rows(), _Rows()
        for example in examples:
            self._sources.append(example.source)
            self._targets.append(example.target)
        if not len(self._sources):
            raise LampError("no training examples: is the train file empty?")
        self.batch_size, self._own = batch_size, own(batch_size)
        self.seed = seed
        self.per_epoch = -(-len(self._sources) // batch_size)
        sources, targets = ([*rows.lengths] for rows in (self._sources, self._targets))
        sizes = (
            (sources, sorted(buckets) or fit_buckets(sources, max_length)),
            (targets, fit_target_lengths(sources, targets)),
        )
        self._sizes = np.stack([_bucket_of(lengths, found) for lengths, found in sizes], axis=1)
        self._plan = lru_cache(maxsize=2)(self._plan_epoch)

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return self.per_epoch

    def size(self, step: int) -> tuple[int, ...]:
        """Source and target length of a batch."""
        epoch, place = divmod(step, self.per_epoch)
        return self._plan(epoch)[place][0]

    def __getitem__(self, step: int) -> Batch:
        epoch, place = divmod(step, self.per_epoch)
        (source, target), rows = self._plan(epoch)[place]
        own_rows = rows[self._own[self._own < len(rows)]]
        return Batch(
            pad_rows([self._sources[row] for row in own_rows], len(self._own), source),
            pad_rows([self._targets[row] for row in own_rows], len(self._own), target),
        )

    def _plan_epoch(self, epoch: int) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """Size and examples of each batch of the epoch."""
        return plan_epoch(self._sizes, batch_size=self.batch_size, seed=self.seed, epoch=epoch)


def _bucket_of(lengths: Iterable[int], buckets: Sequence[int]) -> np.ndarray:
    """Bucket of each length, [N]."""
    return np.array([find_bucket(length, buckets) for length in lengths])


class _Rows:
    """Concatenated rows of token ids, four bytes per token (a list needs up to 36)."""

    def __init__(self):
        self._ids, self._ends = array("i"), array("q", [0])

    def append(self, row: Iterable[int]) -> None:
        self._ids.extend(row)
        self._ends.append(len(self._ids))

    def __getitem__(self, place: int) -> array:
        return self._ids[self._ends[place] : self._ends[place + 1]]

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def lengths(self) -> Iterator[int]:
        return (end - start for start, end in pairwise(self._ends))


def plan_epoch(
    sizes: np.ndarray, *, batch_size: int, seed: int, epoch: int
) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Batches of rows of similar size, each of N rows once: sizes and rows of each; a pure function of the arguments.

    `sizes` [N, k] are the rows' buckets along k axes. The remaining rows of a bucket move up to the next, where the
    batch has the largest size of its rows along each axis. Only the last batch may be smaller than `batch_size`.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(sizes))
    batches: list[np.ndarray] = []
    left = np.array([], dtype=order.dtype)
    for size in np.unique(sizes, axis=0):
        rows = np.concatenate([left, order[(sizes[order] == size).all(axis=1)]])
        complete = len(rows) // batch_size * batch_size
        batches += list(rows[:complete].reshape(-1, batch_size))
        left = rows[complete:]
    batches += [left] if len(left) else []
    return [
        (tuple(int(size) for size in sizes[batches[place]].max(axis=0)), batches[place])
        for place in rng.permutation(len(batches))
    ]


def prediction_batches(
    examples: Sequence[Example], *, rows: Mapping[int, int], pad: int = NO_TOKEN, own: OwnRows = np.arange
) -> Iterator[tuple[list[int], Batch]]:
    """Inference batches, short prompts first, with the positions of their examples; a pure function of the list.

    `rows` maps each padded prompt length to its batch size. The remaining prompts of a length move up to the next; the
    last batch is filled with rows that have no position. The positions are those of the complete batch, its rows this
    process's `own`.
    """
    lengths = sorted(rows)
    members: dict[int, list[int]] = {}
    for position, example in enumerate(examples):
        members.setdefault(find_bucket(len(example.source), lengths), []).append(position)
    left: list[int] = []
    for length in sorted(members):
        left += members[length]
        while len(left) >= rows[length] or (left and length == max(members)):
            part, left = left[: rows[length]], left[rows[length] :]
            places = own(rows[length])
            sources = [examples[part[place]].source for place in places if place < len(part)]
            source = pad_rows(sources, len(places), length, pad=pad)
            yield part, Batch(source, np.zeros((len(places), 0), np.int32))


def find_bucket(length: int, buckets: Sequence[int]) -> int:
    """Smallest of the sorted `buckets` that holds `length` tokens."""
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise LampError(f"a sequence of {length} tokens does not fit the longest bucket of {buckets[-1]}")


class Batches(Protocol):
    """Infinite sequence of batches, numbered from 0; its length is that of one epoch."""

    def __len__(self) -> int: ...
    def __getitem__(self, step: int) -> Any: ...
    def size(self, step: int) -> Hashable:
        """Padded size of a batch: batches of equal size have equal shapes."""
        ...


def choose_buckets(max_length: int) -> tuple[int, ...]:
    """Padded lengths for prompts of up to `max_length` tokens."""
    return _up_to(max_length, (64, 128, 256, 384, 512, 768, 1024))


def fit_buckets(lengths: Iterable[int], max_length: int) -> tuple[int, ...]:
    """Padded lengths for prompts of these lengths, all known: no more than `choose_buckets` has.

    Each is a compilation, which must save a twentieth of all tokens. Coarse multiples limit the number of lengths that
    several lists of prompts need together.
    """
    known = np.fromiter(lengths, np.int64)
    if not len(known):
        return ()
    most = len(choose_buckets(max_length))
    *shorter, longest = fit_lengths(known, most, multiple=32, worth=known.sum() / 20)
    return (*shorter, min(longest, max_length))


def fit_target_lengths(sources: Sequence[int], targets: Sequence[int]) -> tuple[int, ...]:
    """Padded lengths, three at most, for the targets of examples with these lengths.

    Each is a compilation per length of sources, which must save a twentieth of the work. A target's token is counted
    as two of a source's: the decoder also reads the source, and each of its tokens is compared with the vocabulary.
    """
    return fit_lengths(np.asarray(targets), 3, worth=(sum(sources) / 2 + sum(targets)) / 20)


def choose_text_buckets(max_length: int) -> tuple[int, ...]:
    """Padded lengths for single texts: more than for prompts, because texts are shorter and their model is small."""
    short, long = (16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512), (640, 768, 1024, 1536, 2048, 3072)
    return _up_to(max_length, (*short, *long))


def _up_to(longest: int, lengths: Sequence[int]) -> tuple[int, ...]:
    return (*(length for length in lengths if length < longest), longest)


def fit_lengths(lengths: np.ndarray, most: int, *, multiple: int = 8, worth: float = 0) -> tuple[int, ...]:
    """At most `most` lengths, multiples of `multiple`, to which all of `lengths` can be padded with the least padding.

    The largest is that of the longest; each of the others saves `worth` tokens or more. By dynamic programming over
    the distinct (rounded) lengths.
    """
    rounded = -(-np.maximum(lengths, 1) // multiple) * multiple
    sizes, counts = np.unique(rounded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: the fewest tokens of the first j sizes; the last of their groups is padded to its largest, sizes[j - 1].
    cost = np.concatenate([[0.0], np.full(len(sizes), np.inf)])
    cuts = []
    for _ in range(min(most, len(sizes))):
        table = cost[:, None] + (before[None, 1:] - before[:, None]) * sizes[None, :]
        table = np.where(np.arange(len(cost))[:, None] < np.arange(1, len(cost))[None, :], table, np.inf)
        finer = np.concatenate([[0.0], table.min(axis=0)])
        if cost[-1] - finer[-1] < worth:
            break
        cuts.append(table.argmin(axis=0))
        cost = finer
    found, end = [], len(sizes)
    for cut in reversed(cuts):
        found.append(int(sizes[end - 1]))
        end = int(cut[end - 1])
        if not end:
            break
    return tuple(reversed(found))


def pad_rows(rows: Sequence[Sequence[int]], count: int, length: int, *, pad: int = NO_TOKEN) -> np.ndarray:
    """Padded rows, int32 [count, length]; rows beyond the given ones are all padding."""
    padded = np.full((count, length), pad, np.int32)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row[:length]
    return padded


def read_ahead(batches: Batches, start: int, stop: int) -> Iterator[Any]:
    """Batches `start` to `stop - 1`, prefetched by a background thread."""
    import grain

    numbers = grain.MapDataset.range(start, stop).map(batches.__getitem__)
    return iter(numbers.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
