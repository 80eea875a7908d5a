"""Microbatches of many users' examples: updates that are computed together, with little padding, in few shapes.

The training of each user is independent of the cohort: epochs over the user's own examples in batches. A *microbatch*
is computed at once: rows of about the same length, of any users. A user's update may need several microbatches; after
the last of them the user takes the step, and the rows of the next update join the queue.
"""

import zlib
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from math import ceil
from operator import xor
from typing import NamedTuple

import numpy as np

from lamp_jax.config import Optimization
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import Example, OwnRows, fit_lengths, pad_rows

_SHAPES = 6  # lengths of the longer side of examples
_OTHER_SHAPES = 2  # and of the shorter side
_WORTH = 0.01  # of all tokens: the least saving of another length
_MULTIPLES = 8, 1  # of sources' and of targets' lengths, which are often shorter than 8
_URGENCY = 0.1  # of a microbatch: bonus for rows of the users with the most updates left


@dataclass(frozen=True)
class UserExamples:
    """User and all training examples of the user's own adapter."""

    user: str
    examples: Sequence[Example]

    @property
    def key(self) -> int:
        """User-specific seed for random draws."""
        return zlib.crc32(self.user.encode("utf-8", "surrogatepass"))

    def updates_an_epoch(self, learning: Optimization) -> int:
        return ceil(len(self.examples) / learning.batch_size)

    def updates(self, learning: Optimization) -> int:
        """Number of updates of the entire training."""
        return ceil(learning.epochs * self.updates_an_epoch(learning))

    def warmup(self, learning: Optimization) -> int:
        """Number of warm-up updates."""
        return round(learning.warmup_ratio * self.updates(learning))


class Shape(NamedTuple):
    """Padded lengths of a microbatch's rows, and number of rows per device."""

    source: int
    target: int
    rows: int

    @property
    def tokens(self) -> int:
        """Tokens of one device's rows, padding included."""
        return self.rows * (self.source + self.target)


class Microbatch(NamedTuple):
    """Rows that are computed at once. `Cohort.fill` makes their arrays."""

    shape: Shape
    rows: Sequence[Sequence["Row"]]
    """Rows of each device."""
    ends: np.ndarray
    """[U] bool: True for users whose update is complete after this microbatch."""
    counts: np.ndarray
    """[U] float32: 1 where the completed update is in the last epoch, else 0."""
    left: int
    """Number of users with further updates after this microbatch."""


class Row(NamedTuple):
    """Queued example of a user's update."""

    shape: int
    """Index of the cohort's first shape that holds the example."""
    user: int
    """Index of the user in the cohort's `users`."""
    at: int
    """Place of the user in the cohort."""
    updates_left: int
    """Number of updates that the user still has to take, this one included."""
    weight: float
    """1 / the number of target tokens in the user's update."""
    example: Example

    @property
    def tokens(self) -> int:
        return len(self.example.source) + len(self.example.target)


class Arrays(NamedTuple):
    """Arrays of a microbatch (see `steps.adapters.MicrobatchArrays`); only this process's rows."""

    source: np.ndarray
    target: np.ndarray
    user: np.ndarray
    weight: np.ndarray


def fit_shapes(examples: Iterable[Example], *, tokens: int, most: int) -> tuple[Shape, ...]:
    """Few shapes for all microbatches, short ones first, with about `tokens` tokens per device, padding included.

    A shape has at most `most` rows per device, because each row has its own adapter.

    Each combines a source length and a target length; the side that has more tokens may have more lengths. Every shape
    is a compilation, which must save a hundredth of all tokens; so another length of the other side must save that for
    each length of the first.
    """
    lengths = np.array([(len(one.source), len(one.target)) for one in examples])
    longer = int(lengths[:, 0].sum() < lengths[:, 1].sum())
    worth, found = _WORTH * lengths.sum(), {}
    for side, most_lengths in ((longer, _SHAPES), (1 - longer, _OTHER_SHAPES)):
        least = worth * max(1, len(found.get(longer, ())))
        found[side] = fit_lengths(lengths[:, side], most_lengths, multiple=_MULTIPLES[side], worth=least)
    return tuple(fit_rows(source, target, tokens, most) for target in found[1] for source in found[0])


def fit_rows(source: int, target: int, tokens: int, most: int) -> Shape:
    """Shape of rows of these lengths with about `tokens` tokens and at most `most` rows per device."""
    return Shape(source, target, min(max(1, tokens // (source + target)), most))


def make_cohorts(users: Sequence[UserExamples], size: int, learning: Optimization) -> list[list[UserExamples]]:
    """Cohorts of `size` users that start together: users sorted by number of updates, fewest first."""
    ordered = sorted(users, key=lambda one: (one.updates(learning), len(one.examples), one.user))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


@dataclass(frozen=True)
class Cohort:
    """Users who are trained together, from their first update to their last; a pure function of its fields.

    There are `size` places, `size / devices` on each device; `places` assigns one to each user. `shapes` are in the
    order of fit_shapes. With `shared`, there is one user, whose rows all devices share, each with a copy of the
    adapter.
    """

    users: Sequence[UserExamples]
    size: int
    shapes: Sequence[Shape]
    learning: Optimization
    seed: int
    devices: int = 1
    shared: bool = False

    def __post_init__(self) -> None:
        if self.size % self.devices:
            raise LampError(
                f"{self.size} users do not divide over {self.devices} devices; give a multiple of the devices"
            )

    @cached_property
    def places(self) -> np.ndarray:
        """Place of each user among the `size` places, independent of the number of devices.

        The order (Thue-Morse) balances the work of the devices: of two devices the first has the users 0, 3, 5, 6, ...,
        whose binary digits have an even sum.
        """
        bits = max(self.size - 1, 1).bit_length()
        sums = [reduce(xor, (number >> shift for shift in range(bits))) for number in range(self.size)]
        order = np.argsort([int(f"{one:0{bits}b}"[::-1], 2) for one in sums])  # user at each place
        return np.argsort(order)[: len(self.users)]

    @cached_property
    def totals(self) -> np.ndarray:
        """[U]: number of updates of each user; 0 at empty places."""
        return self._by_place([one.updates(self.learning) for one in self.users])

    @cached_property
    def warmups(self) -> np.ndarray:
        """[U]: number of warm-up updates of each user."""
        return self._by_place([one.warmup(self.learning) for one in self.users])

    @cached_property
    def _last_epochs(self) -> np.ndarray:
        return self._by_place([one.updates_an_epoch(self.learning) for one in self.users])

    @property
    def counted(self) -> np.ndarray:
        """[U]: number of updates in the mean of a user's loss: those of the last epoch."""
        return np.minimum(self.totals, self._last_epochs)

    def _by_place(self, values: Sequence[int]) -> np.ndarray:
        found = np.zeros(self.size, np.int32)
        found[slice(None) if self.shared else self.places] = values
        return found

    def microbatches(self, made: Sequence[int] = ()) -> Iterator[Microbatch]:
        """All microbatches in order, up to the last update of all users; `made`: past updates per user.

        The next microbatch is the one with the least padding, with a bonus for rows of the users who have the most
        updates left, who would otherwise be trained alone in the end.
        """
        made = list(made) or [0] * len(self.users)
        missing = [0] * len(self.users)
        waiting: list[list[list[Row]]] = [[[] for _ in self.shapes] for _ in range(self.devices)]

        def enqueue(user: int) -> None:
            rows = self.rows(user, made[user])
            missing[user] = len(rows)
            for row in rows:
                insort(
                    waiting[row.at * self.devices // self.size][row.shape],
                    row,
                    key=lambda row: (-row.updates_left, row.at),
                )

        for user in range(len(self.users)):
            enqueue(user)
        while any(missing):
            chosen, taken = self._choose(waiting)
            for device, rows in enumerate(taken):
                for row in rows:
                    missing[row.user] -= 1
                for shape, some in enumerate(waiting[device]):
                    del some[: sum(row.shape == shape for row in rows)]
            ended = {row.user for rows in taken for row in rows if not missing[row.user]}
            for user in sorted(ended):
                made[user] += 1
                enqueue(user)
            yield self._microbatch(chosen, taken, ended, made)

    def rows(self, user: int, number: int) -> list[Row]:
        """Rows of a user's update. Its examples depend only on the seed, the user and the update's number."""
        one, size = self.users[user], self.learning.batch_size
        left = one.updates(self.learning) - number
        if not left:
            return []
        epoch, place = divmod(number, one.updates_an_epoch(self.learning))
        order = _order(self.seed, one.key, epoch, len(one.examples))
        examples = [one.examples[row] for row in order[place * size : (place + 1) * size]]
        weight = 1 / sum(len(example.target) for example in examples)
        at, room = int(self.places[user]), self.size // self.devices
        places = [turn % self.devices * room if self.shared else at for turn in range(len(examples))]
        return [
            Row(find_shape(example, self.shapes), user, place, left, weight, example)
            for place, example in zip(places, examples, strict=True)
        ]

    def _choose(self, waiting: Sequence[Sequence[Sequence[Row]]]) -> tuple[Shape, list[list[Row]]]:
        """Shape of the next microbatch, and each device's rows in it."""
        most = max(rows[0].updates_left for device in waiting for rows in device if rows)
        best, found = -1.0, None
        for place, shape in enumerate(self.shapes):
            taken = [self._first_rows(device, place) for device in waiting]
            share = sum(row.tokens for rows in taken for row in rows) / (self.devices * shape.tokens)
            worth = share + _URGENCY * any(row.updates_left == most for rows in taken for row in rows)
            if worth >= best:
                best, found = worth, (shape, taken)
        assert found is not None
        return found

    def _first_rows(self, waiting: Sequence[Sequence[Row]], place: int) -> list[Row]:
        """Rows that a microbatch of this shape takes from one device's queue, the longest first."""
        shape, found = self.shapes[place], []
        for other in range(place, -1, -1):
            if _holds(shape, self.shapes[other]):
                found += waiting[other][: shape.rows - len(found)]
        return found

    def _microbatch(self, shape: Shape, rows: list[list[Row]], ended: Iterable[int], made: Sequence[int]) -> Microbatch:
        ends, counts = np.zeros(self.size, bool), np.zeros(self.size, np.float32)
        for user in ended:
            at = slice(None) if self.shared else self.places[user]
            ends[at] = True
            counts[at] = made[user] > self.totals[at] - self._last_epochs[at]
        left = sum(one.updates(self.learning) > count for one, count in zip(self.users, made, strict=True))
        return Microbatch(shape, rows, ends, counts, left)

    def fill(self, microbatch: Microbatch, own: OwnRows = np.arange) -> Arrays:
        """Arrays of a microbatch, the rows of all devices concatenated; only this process's own rows."""
        shape, room = microbatch.shape, self.size // self.devices
        found: list[Row | None] = []
        for place in own(shape.rows * self.devices):
            rows, row = microbatch.rows[place // shape.rows], place % shape.rows
            found.append(rows[row] if row < len(rows) else None)
        return Arrays(
            pad_rows([row.example.source if row else () for row in found], len(found), shape.source),
            pad_rows([row.example.target if row else () for row in found], len(found), shape.target),
            np.array([row.at % room if row else 0 for row in found], np.int32),
            np.array([row.weight if row else 0 for row in found], np.float32),
        )


def find_shape(example: Example, shapes: Sequence[Shape]) -> int:
    """Index of the first shape that holds an example; shapes are sorted by target length, then by source length."""
    source, target = len(example.source), len(example.target)
    return next(place for place, one in enumerate(shapes) if one.source >= source and one.target >= target)


def _holds(one: Shape, other: Shape) -> bool:
    return one.source >= other.source and one.target >= other.target


@lru_cache(maxsize=4096)
def _order(seed: int, key: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, key, epoch]).permutation(count)
