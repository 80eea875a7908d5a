"""How many users' examples become updates that are computed together, with little padding, in few shapes.

Every user's training is that of a user alone: epochs over their own examples in batches, whatever company they have.
An update of all users is a *round*; its rows, of any users, are sorted by length and cut into *parts* of one shape.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np

from lamp_jax.config import Optimization
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import Example, OwnRows, pad_rows

_SHAPES = 6  # lengths of the longer side of examples
_OTHER_SHAPES = 2  # and of the other one
_WORTH = 0.01  # of all tokens: what one more length must spare
_MULTIPLE = 8


@dataclass(frozen=True)
class Learner:
    """A user and all that their own adapter learns from."""

    user: str
    examples: Sequence[Example]

    @property
    def key(self) -> int:
        """A number for random draws of this user's own."""
        return zlib.crc32(self.user.encode("utf-8", "surrogatepass"))

    def updates_an_epoch(self, learning: Optimization) -> int:
        return ceil(len(self.examples) / learning.batch_size)

    def updates(self, learning: Optimization) -> int:
        """Of the whole training."""
        return ceil(learning.epochs * self.updates_an_epoch(learning))

    def warmup(self, learning: Optimization) -> int:
        """Of them, those of the warm-up."""
        return round(learning.warmup_ratio * self.updates(learning))


class Shape(NamedTuple):
    """What the rows of a part are padded to, and how many a device has."""

    source: int
    target: int
    rows: int


class Rows(NamedTuple):
    """A part of an update, as `steps.adapters.Part` describes it; this process's rows of it."""

    source: np.ndarray
    target: np.ndarray
    user: np.ndarray
    weight: np.ndarray


def fit_lengths(lengths: Iterable[int], count: int, *, multiple: int = _MULTIPLE) -> tuple[int, ...]:
    """At most `count` lengths, multiples of `multiple`, to which all others can be padded with the least padding.

    The largest is that of the longest. By dynamic programming over the distinct (rounded) lengths.
    """
    rounded = -(-np.maximum(np.fromiter(lengths, np.int64), 1) // multiple) * multiple
    sizes, counts = np.unique(rounded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: the fewest tokens of the first j sizes; the last of their groups is padded to its largest, sizes[j - 1].
    cost = np.concatenate([[0.0], np.full(len(sizes), np.inf)])
    cuts = []
    for _ in range(min(count, len(sizes))):
        table = cost[:, None] + (before[None, 1:] - before[:, None]) * sizes[None, :]
        table = np.where(np.arange(len(cost))[:, None] < np.arange(1, len(cost))[None, :], table, np.inf)
        cuts.append(table.argmin(axis=0))
        cost = np.concatenate([[0.0], table.min(axis=0)])
    found, end = [], len(sizes)
    for cut in reversed(cuts):
        found.append(int(sizes[end - 1]))
        end = int(cut[end - 1])
        if not end:
            break
    return tuple(reversed(found))


def fit_shapes(examples: Iterable[Example], *, tokens: int, most: int) -> tuple[Shape, ...]:
    """The few shapes of all parts, short ones first; a device's part has about `tokens` tokens, padding included.

    And no more than `most` rows, each of which has an adapter of its own.

    Each is a length of the sources with one of the targets; the side that has more tokens may have more lengths. Every
    shape is a compilation: one more length must spare a hundredth of all tokens.
    """
    lengths = np.array([(len(one.source), len(one.target)) for one in examples])
    more_sources = lengths[:, 0].sum() >= lengths[:, 1].sum()
    counts = (_SHAPES, _OTHER_SHAPES) if more_sources else (_OTHER_SHAPES, _SHAPES)
    worth = _WORTH * lengths.sum()
    sources, targets = (_fit_some(lengths[:, side], count, worth) for side, count in enumerate(counts))
    return tuple(fit_rows(source, target, tokens, most) for target in targets for source in sources)


def _fit_some(lengths: np.ndarray, most: int, worth: float) -> tuple[int, ...]:
    """At most so many lengths to pad to, each of which spares `worth` tokens or more."""
    found = fit_lengths(lengths, 1)
    for count in range(2, most + 1):
        finer = fit_lengths(lengths, count)
        if _padded(lengths, found) - _padded(lengths, finer) < worth:
            break
        found = finer
    return found


def _padded(lengths: np.ndarray, sizes: tuple[int, ...]) -> int:
    return int(np.asarray(sizes)[np.searchsorted(sizes, lengths)].sum())


def fit_rows(source: int, target: int, tokens: int, most: int) -> Shape:
    """The part of rows of these lengths that has about so many tokens on each device, and at most so many rows."""
    return Shape(source, target, min(max(1, tokens // (source + target)), most))


def make_blocks(learners: Sequence[Learner], size: int, learning: Optimization) -> list[list[Learner]]:
    """Users in blocks of `size` that begin together: those with as many updates beside each other, the fewest first."""
    ordered = sorted(learners, key=lambda one: (one.updates(learning), len(one.examples), one.user))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


@dataclass(frozen=True)
class Block:
    """Users who learn together, from their first update to their last; a pure function of its fields.

    `size` users have room, `size / devices` on each device; `places` says where each stands. `shapes` are in the order
    of fit_shapes. With `shared`, there is one learner, whose rows all devices share, each with a copy of the adapter.
    """

    learners: Sequence[Learner]
    size: int
    shapes: Sequence[Shape]
    learning: Optimization
    seed: int
    devices: int = 1
    shared: bool = False

    def __post_init__(self) -> None:
        if self.size % self.devices:
            raise LampError(f"{self.size} users do not divide over {self.devices} devices")

    @cached_property
    def places(self) -> np.ndarray:
        """Where each learner stands among the `size` users, whatever the number of devices.

        Those who follow each other stand far apart (their numbers' bits are reversed), so that any devices have about
        as much to do.
        """
        bits = max(self.size - 1, 1).bit_length()
        reversed_bits = [int(f"{number:0{bits}b}"[::-1], 2) for number in range(self.size)]
        order = np.argsort(reversed_bits)  # who stands at each place
        return np.argsort(order)[: len(self.learners)]

    @cached_property
    def totals(self) -> np.ndarray:
        """[U]: how many updates each user's training has; 0 where nobody stands."""
        return self._by_place([one.updates(self.learning) for one in self.learners])

    @cached_property
    def warmups(self) -> np.ndarray:
        """[U]: how many of them are each user's warm-up."""
        return self._by_place([one.warmup(self.learning) for one in self.learners])

    @cached_property
    def _last_epochs(self) -> np.ndarray:
        epochs = [one.updates_an_epoch(self.learning) for one in self.learners]
        return self._by_place(epochs)

    def __len__(self) -> int:
        """Number of rounds."""
        return int(self.totals.max())

    def learns(self, number: int) -> np.ndarray:
        """[U] bool: who has rows in a round."""
        return number < self.totals

    def counts(self, number: int) -> np.ndarray:
        """[U] float32: whose update in a round is one of the last epoch."""
        return (self.learns(number) & (number >= self.totals - self._last_epochs)).astype(np.float32)

    @property
    def counted(self) -> np.ndarray:
        """[U]: over how many updates that is."""
        return np.minimum(self.totals, self._last_epochs)

    def _by_place(self, values: Sequence[int]) -> np.ndarray:
        found = np.zeros(self.size, np.int32)
        found[slice(None) if self.shared else self.places] = values
        return found

    def parts(self, number: int, own: OwnRows = np.arange) -> Iterator[Rows]:
        """The parts of a round, in order, the longest rows first; the rows of all devices behind each other."""
        waiting, weights = self._waiting(number)
        while any(waiting):
            shape = self.shapes[max(rows[0].shape for rows in waiting if rows)]
            taken = [self._take(rows, shape) for rows in waiting]
            yield self._pad(shape, taken, weights, own)

    def _waiting(self, number: int) -> tuple[list[list["_Row"]], np.ndarray]:
        """Each device's rows of a round, the longest first; and what a target token of each user [U] weighs."""
        room = self.size // self.devices
        waiting: list[list[_Row]] = [[] for _ in range(self.devices)]
        weights = np.zeros(self.size, np.float32)
        for place, learner in zip(self.places, self.learners, strict=True):
            if number < self.totals[place]:
                examples = self._examples(learner, number)
                weights[slice(None) if self.shared else place] = 1 / sum(len(one.target) for one in examples)
                for turn, example in enumerate(examples):
                    at = turn % self.devices * room if self.shared else int(place)
                    waiting[at // room].append(_Row(find_shape(example, self.shapes), at, example))
        return [sorted(rows, key=lambda row: row.shape, reverse=True) for rows in waiting], weights

    def _examples(self, learner: Learner, number: int) -> list[Example]:
        """A user's examples in a round: a function of the seed, the user and the round alone."""
        epoch, place = divmod(number, learner.updates_an_epoch(self.learning))
        order = _order(self.seed, learner.key, epoch, len(learner.examples))
        size = self.learning.batch_size
        return [learner.examples[row] for row in order[place * size : (place + 1) * size]]

    def _take(self, rows: list["_Row"], shape: Shape) -> list["_Row"]:
        """Takes the first rows that such a part holds."""
        fitting = [place for place, row in enumerate(rows) if _holds(shape, self.shapes[row.shape])][: shape.rows]
        taken = [rows[place] for place in fitting]
        for place in reversed(fitting):
            del rows[place]
        return taken

    def _pad(self, shape: Shape, taken: list[list["_Row"]], weights: np.ndarray, own: OwnRows) -> Rows:
        room, found = self.size // self.devices, []
        for place in own(shape.rows * self.devices):
            rows, row = taken[place // shape.rows], place % shape.rows
            found.append(rows[row] if row < len(rows) else _NOBODY)
        return Rows(
            pad_rows([row.example.source for row in found], len(found), shape.source),
            pad_rows([row.example.target for row in found], len(found), shape.target),
            np.array([row.at % room for row in found], np.int32),
            np.array([weights[row.at] if row is not _NOBODY else 0 for row in found], np.float32),
        )


class _Row(NamedTuple):
    shape: int
    at: int  # where its user stands
    example: Example


_NOBODY = _Row(0, 0, Example("", ()))


def find_shape(example: Example, shapes: Sequence[Shape]) -> int:
    """The first of the shapes that holds an example: they are in the order of their targets, then of their sources."""
    source, target = len(example.source), len(example.target)
    return next(place for place, one in enumerate(shapes) if one.source >= source and one.target >= target)


def _holds(one: Shape, other: Shape) -> bool:
    return one.source >= other.source and one.target >= other.target


@lru_cache(maxsize=4096)
def _order(seed: int, key: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, key, epoch]).permutation(count)
