"""How many users' examples become updates that are computed together, with little padding, in few shapes.

Every user's training is that of a user alone: epochs over their own examples in batches, whoever else is in the cohort.
What is computed at once is a *part*: rows of about one length, of any users. A user's update may lie in several parts;
behind the last of them the user takes the step, and the rows of the next update join those that wait.
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
_OTHER_SHAPES = 2  # and of the other one
_WORTH = 0.01  # of all tokens: what one more length must spare
_MULTIPLES = 8, 1  # of sources' and of targets' lengths, which are often shorter than 8
_URGENCY = 0.1  # of a part: what it is worth to bring those on who have the most updates left


@dataclass(frozen=True)
class UserExamples:
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

    @property
    def tokens(self) -> int:
        """Of one device's rows."""
        return self.rows * (self.source + self.target)


class Microbatch(NamedTuple):
    """What is computed at once. `Cohort.fill` makes its arrays."""

    shape: Shape
    rows: Sequence[Sequence["Row"]]
    """Of each device."""
    ends: np.ndarray
    """[U] bool: whose update is complete with this part."""
    counts: np.ndarray
    """[U] float32: 1 where the update that is completed is one of the last epoch, else 0."""
    left: int
    """Users who learn on behind it."""


class Row(NamedTuple):
    """An example of a user's update that waits to be computed."""

    shape: int
    """The first of the block's shapes that holds it."""
    learner: int
    at: int
    """Where its user stands."""
    behind: int
    """How many updates the user has still to make, this one included."""
    weight: float
    """1 / the number of target tokens in the user's update."""
    example: Example

    @property
    def tokens(self) -> int:
        return len(self.example.source) + len(self.example.target)


class Arrays(NamedTuple):
    """A part as `steps.adapters.MicrobatchArrays` describes it; this process's rows of it."""

    source: np.ndarray
    target: np.ndarray
    user: np.ndarray
    weight: np.ndarray


def fit_shapes(examples: Iterable[Example], *, tokens: int, most: int) -> tuple[Shape, ...]:
    """The few shapes of all parts, short ones first; a device's part has about `tokens` tokens, padding included.

    And no more than `most` rows, each of which has an adapter of its own.

    Each is a length of the sources with one of the targets; the side that has more tokens may have more lengths. Every
    shape is a compilation, which must spare a hundredth of all tokens; so one more length of the other side must spare
    that for each length of the first.
    """
    lengths = np.array([(len(one.source), len(one.target)) for one in examples])
    longer = int(lengths[:, 0].sum() < lengths[:, 1].sum())
    worth, found = _WORTH * lengths.sum(), {}
    for side, most_lengths in ((longer, _SHAPES), (1 - longer, _OTHER_SHAPES)):
        spared = worth * max(1, len(found.get(longer, ())))
        found[side] = fit_lengths(lengths[:, side], most_lengths, multiple=_MULTIPLES[side], worth=spared)
    return tuple(fit_rows(source, target, tokens, most) for target in found[1] for source in found[0])


def fit_rows(source: int, target: int, tokens: int, most: int) -> Shape:
    """The part of rows of these lengths that has about so many tokens on each device, and at most so many rows."""
    return Shape(source, target, min(max(1, tokens // (source + target)), most))


def make_blocks(learners: Sequence[UserExamples], size: int, learning: Optimization) -> list[list[UserExamples]]:
    """Users in blocks of `size` that begin together: those with as many updates beside each other, the fewest first."""
    ordered = sorted(learners, key=lambda one: (one.updates(learning), len(one.examples), one.user))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


@dataclass(frozen=True)
class Cohort:
    """Users who learn together, from their first update to their last; a pure function of its fields.

    `size` users have room, `size / devices` on each device; `places` says where each stands. `shapes` are in the order
    of fit_shapes. With `shared`, there is one learner, whose rows all devices share, each with a copy of the adapter.
    """

    learners: Sequence[UserExamples]
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

        They are dealt out to and fro, so that any devices have about as much to do: of two devices the first has the
        learners 0, 3, 5, 6, and so on (the bits of whose numbers add up to an even one).
        """
        bits = max(self.size - 1, 1).bit_length()
        sums = [reduce(xor, (number >> shift for shift in range(bits))) for number in range(self.size)]
        order = np.argsort([int(f"{one:0{bits}b}"[::-1], 2) for one in sums])  # who stands at each place
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
        return self._by_place([one.updates_an_epoch(self.learning) for one in self.learners])

    @property
    def counted(self) -> np.ndarray:
        """[U]: over how many updates a user's loss is the mean: those of the last epoch."""
        return np.minimum(self.totals, self._last_epochs)

    def _by_place(self, values: Sequence[int]) -> np.ndarray:
        found = np.zeros(self.size, np.int32)
        found[slice(None) if self.shared else self.places] = values
        return found

    def parts(self, made: Sequence[int] = ()) -> Iterator[Microbatch]:
        """All parts in order, up to everybody's last update, from where each learner has made so many updates.

        The next part is always the one with the least padding, but for those who have the most updates left: they are
        brought on where it costs little, or they would learn on alone in the end.
        """
        made = list(made) or [0] * len(self.learners)
        missing = [0] * len(self.learners)
        waiting: list[list[list[Row]]] = [[[] for _ in self.shapes] for _ in range(self.devices)]

        def bring(learner: int) -> None:
            rows = self.rows(learner, made[learner])
            missing[learner] = len(rows)
            for row in rows:
                insort(
                    waiting[row.at * self.devices // self.size][row.shape], row, key=lambda row: (-row.behind, row.at)
                )

        for learner in range(len(self.learners)):
            bring(learner)
        while any(missing):
            chosen, taken = self._choose(waiting)
            for device, rows in enumerate(taken):
                for row in rows:
                    missing[row.learner] -= 1
                for shape, some in enumerate(waiting[device]):
                    del some[: sum(row.shape == shape for row in rows)]
            ended = {row.learner for rows in taken for row in rows if not missing[row.learner]}
            for learner in sorted(ended):
                made[learner] += 1
                bring(learner)
            yield self._part(chosen, taken, ended, made)

    def rows(self, learner: int, number: int) -> list[Row]:
        """A learner's update, whose examples are a function of the seed, the user and its number alone."""
        one, size = self.learners[learner], self.learning.batch_size
        left = one.updates(self.learning) - number
        if not left:
            return []
        epoch, place = divmod(number, one.updates_an_epoch(self.learning))
        order = _order(self.seed, one.key, epoch, len(one.examples))
        examples = [one.examples[row] for row in order[place * size : (place + 1) * size]]
        weight = 1 / sum(len(example.target) for example in examples)
        at, room = int(self.places[learner]), self.size // self.devices
        places = [turn % self.devices * room if self.shared else at for turn in range(len(examples))]
        return [
            Row(find_shape(example, self.shapes), learner, place, left, weight, example)
            for place, example in zip(places, examples, strict=True)
        ]

    def _choose(self, waiting: Sequence[Sequence[Sequence[Row]]]) -> tuple[Shape, list[list[Row]]]:
        """The shape of the next part, and each device's rows in it."""
        most = max(rows[0].behind for device in waiting for rows in device if rows)
        best, found = -1.0, None
        for place, shape in enumerate(self.shapes):
            taken = [self._first_rows(device, place) for device in waiting]
            share = sum(row.tokens for rows in taken for row in rows) / (self.devices * shape.tokens)
            worth = share + _URGENCY * any(row.behind == most for rows in taken for row in rows)
            if worth >= best:
                best, found = worth, (shape, taken)
        assert found is not None
        return found

    def _first_rows(self, waiting: Sequence[Sequence[Row]], place: int) -> list[Row]:
        """The rows that a part of this shape takes from one device's, the longest first."""
        shape, found = self.shapes[place], []
        for other in range(place, -1, -1):
            if _holds(shape, self.shapes[other]):
                found += waiting[other][: shape.rows - len(found)]
        return found

    def _part(self, shape: Shape, rows: list[list[Row]], ended: Iterable[int], made: Sequence[int]) -> Microbatch:
        ends, counts = np.zeros(self.size, bool), np.zeros(self.size, np.float32)
        for learner in ended:
            at = slice(None) if self.shared else self.places[learner]
            ends[at] = True
            counts[at] = made[learner] > self.totals[at] - self._last_epochs[at]
        left = sum(one.updates(self.learning) > count for one, count in zip(self.learners, made, strict=True))
        return Microbatch(shape, rows, ends, counts, left)

    def fill(self, part: Microbatch, own: OwnRows = np.arange) -> Arrays:
        """A part's arrays, the rows of all devices behind each other; of them this process's own."""
        shape, room = part.shape, self.size // self.devices
        found: list[Row | None] = []
        for place in own(shape.rows * self.devices):
            rows, row = part.rows[place // shape.rows], place % shape.rows
            found.append(rows[row] if row < len(rows) else None)
        return Arrays(
            pad_rows([row.example.source if row else () for row in found], len(found), shape.source),
            pad_rows([row.example.target if row else () for row in found], len(found), shape.target),
            np.array([row.at % room if row else 0 for row in found], np.int32),
            np.array([row.weight if row else 0 for row in found], np.float32),
        )


def find_shape(example: Example, shapes: Sequence[Shape]) -> int:
    """The first of the shapes that holds an example: they are in the order of their targets, then of their sources."""
    source, target = len(example.source), len(example.target)
    return next(place for place, one in enumerate(shapes) if one.source >= source and one.target >= target)


def _holds(one: Shape, other: Shape) -> bool:
    return one.source >= other.source and one.target >= other.target


@lru_cache(maxsize=4096)
def _order(seed: int, key: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, key, epoch]).permutation(count)
