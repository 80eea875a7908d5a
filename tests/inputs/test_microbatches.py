"""Microbatches of cohorts: each user's updates have the user's own examples, for any cohort and number of devices."""

from collections import Counter, defaultdict
from dataclasses import replace
from math import ceil
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_jax.config import Optimization
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import NO_TOKEN, Example
from lamp_jax.inputs.microbatches import Cohort, UserExamples, find_shape, fit_shapes, make_cohorts

LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=9)
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=7)
"""How many examples each user has."""
DEVICES = st.integers(1, 4)
LEARNINGS = st.builds(Optimization, epochs=st.sampled_from([0.3, 1.0, 1.5, 2.0, 2.7]), batch_size=st.integers(1, 4))
TOKENS = st.sampled_from([16, 64, 200])


def user_examples(user, count):
    """Examples of user u, of which example n begins with u + 1 and n + 1 to identify its rows; lengths are uneven."""
    rng = np.random.default_rng([user, count])
    return UserExamples(
        f"user {user}",
        [
            Example(f"{user}-{n}", [user + 1, n + 1, *[9] * rng.integers(0, 30)], [7] * rng.integers(1, 6))
            for n in range(count)
        ],
    )


def users_of(sizes):
    return [user_examples(user, count) for user, count in enumerate(sizes)]


def examples_of(learners):
    return [example for one in learners for example in one.examples]


def cohort_of(learners, learning, *, devices=1, tokens=64, seed=0, spare=0, shared=False):
    """A cohort with places for these users, and for `spare` more on each device."""
    size = devices if shared else devices * (ceil(len(learners) / devices) + spare)
    return Cohort(
        learners, size, fit_shapes(examples_of(learners), tokens=tokens, most=64), learning, seed, devices, shared
    )


def user_and_example(source):
    return int(source[0]) - 1, int(source[1]) - 1


class RowRecord(NamedTuple):
    """A row of a microbatch."""

    device: int
    place: int
    """The user's place on the device."""
    example: int
    weight: float
    """Sum over all target tokens of the row."""


def updates_of(block, made=()):
    """The rows of every update of each user, collected from the microbatches; every row belongs to an update."""
    updates = defaultdict(lambda: [[]])
    for part in block.microbatches(made):
        arrays = block.fill(part)
        size = len(arrays.user) // block.devices
        for row, source in enumerate(arrays.source):
            weight = float(arrays.weight[row]) * (arrays.target[row] != NO_TOKEN).sum()
            if (source != NO_TOKEN).any():
                user, example = user_and_example(source)
                updates[user][-1].append(RowRecord(row // size, int(arrays.user[row]), example, weight))
            else:
                assert weight == arrays.user[row] == 0
                assert (arrays.target[row] == NO_TOKEN).all()
        for user_examples, place in zip(block.users, block.places, strict=True):
            if part.ends[place]:
                updates[int(user_examples.user.removeprefix("user "))].append([])
    assert not any(rows.pop() for rows in updates.values())
    return dict(updates)


def examples_in(update):
    return sorted(row.example for row in update)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=20), TOKENS)
def test_shapes_hold_every_example(sides, tokens):
    examples = [Example("", [1] * source, [1] * target) for source, target in sides]
    shapes = fit_shapes(examples, tokens=tokens, most=64)
    assert len(shapes) <= 12
    assert all(one.rows == min(max(1, tokens // (one.source + one.target)), 64) for one in shapes)
    for example in examples:
        shape = shapes[find_shape(example, shapes)]
        assert shape.source >= len(example.source)
        assert shape.target >= len(example.target)


@given(SIZES, LEARNINGS, DEVICES, TOKENS, st.integers(0, 1))
def test_each_users_examples_appear_once_an_epoch(sizes, learning, devices, tokens, spare):
    learners = users_of(sizes)
    updates = updates_of(cohort_of(learners, learning, devices=devices, tokens=tokens, spare=spare))
    assert updates.keys() == set(range(len(learners)))
    for user, one in enumerate(learners):
        epoch, total = one.updates_an_epoch(learning), one.updates(learning)
        assert len(updates[user]) == total == ceil(learning.epochs * epoch)
        assert all(0 < len(update) <= learning.batch_size for update in updates[user])
        for start in range(0, total, epoch):
            found = Counter(row.example for update in updates[user][start : start + epoch] for row in update)
            assert max(found.values()) == 1
            if start + epoch <= total:
                assert set(found) == set(range(len(one.examples)))


@given(SIZES, LEARNINGS, DEVICES, TOKENS, st.integers(0, 1), st.integers(0, 3))
def test_a_users_updates_do_not_depend_on_the_cohort(sizes, learning, devices, tokens, spare, seed):
    learners = users_of(sizes)
    together = updates_of(cohort_of(learners[::-1], learning, devices=devices, tokens=tokens, spare=spare, seed=seed))
    for user, one in enumerate(learners):
        alone = updates_of(cohort_of([one], learning, seed=seed))
        assert list(map(examples_in, together[user])) == list(map(examples_in, alone[user]))


def test_the_order_is_drawn_from_the_seed_and_the_user():
    learning = Optimization(epochs=2, batch_size=1)

    def order(user, seed):
        one = UserExamples(f"user {user}", user_examples(user, 12).examples)
        return [examples_in(update) for update in updates_of(cohort_of([one], learning, seed=seed))[user]]

    first = order(1, 0)
    assert first == order(1, 0)
    assert first[:12] != first[12:]  # each epoch has another order
    assert first != order(1, 1)
    assert first != order(2, 0)


@given(SIZES, LEARNINGS, DEVICES, TOKENS, st.integers(0, 1))
def test_weights_of_the_target_tokens_of_an_update_sum_to_1(sizes, learning, devices, tokens, spare):
    block = cohort_of(users_of(sizes), learning, devices=devices, tokens=tokens, spare=spare)
    for updates in updates_of(block).values():
        np.testing.assert_allclose([sum(row.weight for row in update) for update in updates], 1, rtol=1e-6)


@given(SIZES, LEARNINGS, DEVICES, TOKENS, st.integers(0, 1))
def test_rows_are_on_their_users_device(sizes, learning, devices, tokens, spare):
    block = cohort_of(users_of(sizes), learning, devices=devices, tokens=tokens, spare=spare)
    room = block.size // devices
    assert len(set(block.places.tolist())) == len(sizes)
    for user, updates in updates_of(block).items():
        assert {row.device * room + row.place for update in updates for row in update} == {block.places[user]}


@given(SIZES, LEARNINGS, DEVICES, TOKENS, st.integers(0, 1), st.randoms(use_true_random=False))
def test_users_resume_after_their_finished_updates(sizes, learning, devices, tokens, spare, random):
    learners = users_of(sizes)
    made = [random.randint(0, one.updates(learning)) for one in learners]
    # As on another number of devices.
    complete = updates_of(cohort_of(learners, learning))
    rest = updates_of(cohort_of(learners, learning, devices=devices, tokens=tokens, spare=spare), made)
    for user, count in enumerate(made):
        assert list(map(examples_in, rest.get(user, []))) == list(map(examples_in, complete[user][count:]))


@given(SIZES, LEARNINGS, st.sampled_from([2, 4]), TOKENS, st.booleans())
def test_rows_of_all_processes_make_the_global_microbatch(sizes, learning, devices, tokens, shared):
    learners = users_of(sizes[:1] if shared else sizes)
    block = cohort_of(learners, learning, devices=devices, tokens=tokens, shared=shared)
    for part in block.microbatches():
        halves = [block.fill(part, lambda size, half=half: np.arange(size).reshape(2, -1)[half]) for half in (0, 1)]
        for expected, *found in zip(block.fill(part), *halves, strict=True):
            np.testing.assert_array_equal(np.concatenate(found), expected)


@given(SIZES, LEARNINGS, DEVICES, TOKENS, st.booleans())
def test_microbatches_have_the_shapes_of_the_cohort(sizes, learning, devices, tokens, shared):
    learners = users_of(sizes[:1] if shared else sizes)
    block = cohort_of(learners, learning, devices=devices, tokens=tokens, shared=shared)
    for part in block.microbatches():
        arrays = block.fill(part)
        assert part.shape in block.shapes
        assert len({len(values) for values in arrays}) == 1
        assert (arrays.source.shape[1], arrays.target.shape[1], len(arrays.source) / devices) == part.shape
        assert {values.dtype for values in arrays} == {np.dtype(np.int32), np.dtype(np.float32)}


@given(SIZES, LEARNINGS, DEVICES, st.integers(0, 1))
def test_microbatches_mark_finished_updates_and_counted_losses(sizes, learning, devices, spare):
    learners = users_of(sizes)
    block = cohort_of(learners, learning, devices=devices, spare=spare)
    totals = np.zeros(block.size, int)
    totals[block.places] = [one.updates(learning) for one in learners]
    np.testing.assert_array_equal(block.totals, totals)
    parts = list(block.microbatches())
    ends, counts = (np.stack([getattr(part, name) for part in parts]) for name in ("ends", "counts"))
    np.testing.assert_array_equal(ends.sum(axis=0), totals)
    np.testing.assert_array_equal(counts.sum(axis=0), block.counted)
    for place, one in zip(block.places, learners, strict=True):
        last = min(one.updates_an_epoch(learning), totals[place])
        np.testing.assert_array_equal(counts[ends[:, place], place], np.arange(totals[place]) >= totals[place] - last)
        assert not counts[~ends[:, place], place].any()
    made = np.cumsum(ends, axis=0)[:, block.places]
    assert [part.left for part in parts] == (made < totals[block.places]).sum(axis=1).tolist()


@given(st.integers(1, 9), LEARNINGS, DEVICES, TOKENS)
def test_rows_of_a_shared_adapter_are_distributed_over_all_devices(count, learning, devices, tokens):
    one = user_examples(0, count)
    block, alone = (cohort_of([one], learning, devices=on, tokens=tokens, shared=on > 1) for on in (devices, 1))
    found, expected = updates_of(block)[0], updates_of(alone)[0]
    assert (block.totals == len(found)).all()
    assert all(part.ends.all() == part.ends.any() for part in block.microbatches())
    assert list(map(examples_in, found)) == list(map(examples_in, expected))
    for update in found:
        rows = Counter(row.device for row in update)
        held = [rows[device] for device in range(devices)]
        assert max(held) - min(held) <= 1
        assert sum(row.weight for row in update) == pytest.approx(1, rel=1e-6)
        assert {row.place for row in update} == {0}


@given(SIZES, LEARNINGS, st.integers(1, 4))
def test_cohorts_have_every_user_once_with_the_fewest_updates_first(sizes, learning, size):
    learners = users_of(sizes)
    blocks = make_cohorts(learners, size, learning)
    assert sorted(one.user for users in blocks for one in users) == sorted(one.user for one in learners)
    assert [len(users) for users in blocks[:-1]] == [size] * (len(blocks) - 1)
    updates = [one.updates(learning) for users in blocks for one in users]
    assert updates == sorted(updates)
    assert make_cohorts(learners[::-1], size, learning) == blocks


def test_a_cohort_not_divisible_by_the_devices_is_an_error():
    block = cohort_of(users_of([2, 3]), Optimization(), devices=2)
    with pytest.raises(LampError, match="3 users do not divide over 2 devices"):
        replace(block, size=3)


@settings(max_examples=5)
@given(st.integers(0, 2**32), st.sampled_from([(1, 4096), (2, 4096), (2, 2048)]))
def test_little_is_padding_where_users_are_uneven(seed, layout):
    """Users with 4 to 149 items, prompts of 130 to 430 tokens and short answers, as in LaMP-2."""
    rng = np.random.default_rng(seed)
    counts = np.clip(np.exp(rng.normal(np.log(23), 0.8, 64)), 4, 149).astype(int)
    learners = [
        UserExamples(
            str(user), [Example("", [5] * rng.integers(130, 431), [6] * rng.integers(2, 5)) for _ in range(count)]
        )
        for user, count in enumerate(counts)
    ]
    learning, (devices, tokens) = Optimization(epochs=1, batch_size=16), layout
    (users,) = make_cohorts(learners, 64, learning)
    block = cohort_of(users, learning, devices=devices, tokens=tokens)
    real, computed = 0, 0
    for part in block.microbatches():
        real += sum(row.tokens for rows in part.rows for row in rows)
        computed += devices * part.shape.tokens
    assert 1 - real / computed < 0.15
