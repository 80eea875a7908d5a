"""Users learn together as if alone: rounds hold each user's own examples, whatever the company and the devices."""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_jax.config import Optimization
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import Example
from lamp_jax.inputs.rounds import Block, Learner, find_shape, fit_lengths, fit_shapes, make_blocks

LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=9)
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=7)
"""How many examples each user has."""
DEVICES = st.integers(1, 4)
LEARNINGS = st.builds(Optimization, epochs=st.sampled_from([0.3, 1.0, 1.5, 2.0, 2.7]), batch_size=st.integers(1, 4))
TOKENS = st.sampled_from([16, 64, 200])


def learner(user, count):
    """Example n of user u begins with u + 1 and n + 1, so that a row tells which it is; lengths are uneven."""
    rng = np.random.default_rng([user, count])
    return Learner(
        f"user {user}",
        [
            Example(f"{user}-{n}", [user + 1, n + 1, *[9] * rng.integers(0, 30)], [7] * rng.integers(1, 6))
            for n in range(count)
        ],
    )


def crowd(sizes):
    return [learner(user, count) for user, count in enumerate(sizes)]


def examples_of(learners):
    return [example for one in learners for example in one.examples]


def block_of(learners, learning, *, devices=1, tokens=64, seed=0, spare=0, shared=False):
    """A block with room for its learners, and for `spare` more on each device."""
    size = devices if shared else devices * (ceil(len(learners) / devices) + spare)
    return Block(
        learners, size, fit_shapes(examples_of(learners), tokens=tokens, most=64), learning, seed, devices, shared
    )


def whose(source):
    return int(source[0]) - 1, int(source[1]) - 1


def seen(block, number):
    """What a round's rows say: Counter of (device, place on the device, user, example)."""
    found = Counter()
    for part in block.parts(number):
        rows = len(part.user) // block.devices
        for row, source in enumerate(part.source):
            if source.any():
                found[row // rows, int(part.user[row]), *whose(source)] += 1
    return found


def examples_in(block, number, user):
    return sorted(example for _, _, one, example in seen(block, number).elements() if one == user)


def padding_of(lengths, sizes):
    return sum(min(size for size in sizes if size >= length) for length in lengths)


@given(LENGTHS, st.integers(1, 4))
def test_lengths_have_the_least_padding_of_all_choices(lengths, count):
    found = fit_lengths(lengths, count)
    rounded = {max(8, -(-length // 8) * 8) for length in lengths}
    choices = (
        chosen for size in range(1, count + 1) for chosen in combinations(rounded, size) if max(chosen) == max(rounded)
    )
    assert padding_of(lengths, found) == min(padding_of(lengths, chosen) for chosen in choices)


@given(LENGTHS, st.integers(1, 4), st.sampled_from([1, 4, 8]))
def test_every_length_fits(lengths, count, multiple):
    found = fit_lengths(lengths, count, multiple=multiple)
    assert list(found) == sorted(set(found))
    assert len(found) <= count
    assert not any(length % multiple for length in found)
    assert max(lengths) <= found[-1] < max([*lengths, 1]) + multiple


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
    learners = crowd(sizes)
    block = block_of(learners, learning, devices=devices, tokens=tokens, spare=spare)
    rounds = [seen(block, number) for number in range(len(block))]
    assert len(rounds) == max(one.updates(learning) for one in learners)
    for user, one in enumerate(learners):
        epoch, total = one.updates_an_epoch(learning), one.updates(learning)
        assert total == ceil(learning.epochs * epoch)
        rows = [[example for _, _, owner, example in found.elements() if owner == user] for found in rounds]
        assert not any(rows[total:])
        assert all(len(found) <= learning.batch_size for found in rows)
        for start in range(0, total, epoch):
            found = Counter(example for found in rows[start : min(start + epoch, total)] for example in found)
            assert max(found.values()) == 1
            if start + epoch <= total:
                assert set(found) == set(range(len(one.examples)))


@given(SIZES, LEARNINGS, DEVICES, TOKENS, st.integers(0, 1), st.integers(0, 3))
def test_what_a_user_learns_does_not_depend_on_the_company(sizes, learning, devices, tokens, spare, seed):
    learners = crowd(sizes)
    block = block_of(learners[::-1], learning, devices=devices, tokens=tokens, spare=spare, seed=seed)
    for user, one in enumerate(learners):
        alone = block_of([one], learning, seed=seed)
        for number in range(len(alone)):
            assert examples_in(block, number, user) == examples_in(alone, number, user)


def test_the_order_is_drawn_from_the_seed_and_the_user():
    learning = Optimization(epochs=2, batch_size=1)

    def order(user, seed):
        block = block_of([Learner(user, learner(0, 12).examples)], learning, seed=seed)
        return [examples_in(block, number, 0) for number in range(len(block))]

    first = order("one", 0)
    assert first == order("one", 0)
    assert first[:12] != first[12:]  # another one each epoch
    assert first != order("one", 1)
    assert first != order("two", 0)


@given(SIZES, LEARNINGS, DEVICES, TOKENS, st.integers(0, 1))
def test_each_users_target_tokens_weigh_one_together(sizes, learning, devices, tokens, spare):
    learners = crowd(sizes)
    block = block_of(learners, learning, devices=devices, tokens=tokens, spare=spare)
    for number in range(len(block)):
        sums = Counter()
        for part in block.parts(number):
            for source, target, weight in zip(part.source, part.target, part.weight, strict=True):
                if not source.any():
                    assert weight == 0
                    assert not target.any()
                else:
                    assert weight > 0
                    sums[whose(source)[0]] += float(weight) * np.count_nonzero(target)
        assert sums.keys() == {user for user, one in enumerate(learners) if number < one.updates(learning)}
        np.testing.assert_allclose(list(sums.values()), 1, rtol=1e-6)


@given(SIZES, LEARNINGS, DEVICES, TOKENS, st.integers(0, 1))
def test_rows_lie_on_their_users_device(sizes, learning, devices, tokens, spare):
    learners = crowd(sizes)
    block = block_of(learners, learning, devices=devices, tokens=tokens, spare=spare)
    room = block.size // devices
    assert len(set(block.places.tolist())) == len(learners)
    for number in range(len(block)):
        for device, place, user, _ in seen(block, number):
            assert device * room + place == block.places[user]


@given(SIZES, LEARNINGS, st.sampled_from([2, 4]), TOKENS, st.booleans())
def test_processes_make_the_whole_together(sizes, learning, devices, tokens, shared):
    learners = crowd(sizes[:1] if shared else sizes)
    block = block_of(learners, learning, devices=devices, tokens=tokens, shared=shared)
    for number in range(len(block)):
        whole = list(block.parts(number))
        halves = [
            list(block.parts(number, lambda size, half=half: np.arange(size).reshape(2, -1)[half])) for half in (0, 1)
        ]
        assert len(whole) == len(halves[0]) == len(halves[1])
        for part, *own in zip(whole, *halves, strict=True):
            for expected, *found in zip(part, *own, strict=True):
                np.testing.assert_array_equal(np.concatenate(found), expected)


@given(SIZES, LEARNINGS, DEVICES, TOKENS, st.booleans())
def test_parts_have_the_shapes_of_the_block(sizes, learning, devices, tokens, shared):
    learners = crowd(sizes[:1] if shared else sizes)
    block = block_of(learners, learning, devices=devices, tokens=tokens, shared=shared)
    shapes = {(one.source, one.target, one.rows) for one in block.shapes}
    for number in range(len(block)):
        for part in block.parts(number):
            assert len({len(values) for values in part}) == 1
            assert (part.source.shape[1], part.target.shape[1], len(part.source) / devices) in shapes
            assert {values.dtype for values in part} == {np.dtype(np.int32), np.dtype(np.float32)}


@given(SIZES, LEARNINGS, DEVICES, st.integers(0, 1))
def test_a_block_says_who_learns_and_what_counts(sizes, learning, devices, spare):
    learners = crowd(sizes)
    block = block_of(learners, learning, devices=devices, spare=spare)
    totals = np.zeros(block.size, int)
    totals[block.places] = [one.updates(learning) for one in learners]
    np.testing.assert_array_equal(block.totals, totals)
    learns = np.stack([block.learns(number) for number in range(len(block))])
    counts = np.stack([block.counts(number) for number in range(len(block))])
    np.testing.assert_array_equal(learns.sum(axis=0), totals)
    np.testing.assert_array_equal(counts.sum(axis=0), block.counted)
    for place, one in zip(block.places, learners, strict=True):
        last = min(one.updates_an_epoch(learning), totals[place])
        np.testing.assert_array_equal(np.flatnonzero(counts[:, place]), np.arange(totals[place] - last, totals[place]))
        np.testing.assert_array_equal(np.flatnonzero(learns[:, place]), np.arange(totals[place]))


@given(st.integers(1, 9), LEARNINGS, DEVICES, TOKENS)
def test_a_shared_adapters_rows_are_dealt_over_all_devices(count, learning, devices, tokens):
    one = learner(0, count)
    block, alone = (block_of([one], learning, devices=on, tokens=tokens, shared=on > 1) for on in (devices, 1))
    assert len(block) == len(alone) == one.updates(learning)
    assert (block.totals == len(block)).all()
    for number in range(len(block)):
        assert examples_in(block, number, 0) == examples_in(alone, number, 0)
        rows = Counter(device for device, _, _, _ in seen(block, number).elements())
        held = [rows[device] for device in range(devices)]
        assert max(held) - min(held) <= 1
        total = sum(
            float(weight) * np.count_nonzero(target)
            for part in block.parts(number)
            for target, weight in zip(part.target, part.weight, strict=True)
        )
        assert total == pytest.approx(1, rel=1e-6)
        assert {place for _, place, _, _ in seen(block, number)} == {0}


@given(SIZES, LEARNINGS, st.integers(1, 4))
def test_blocks_hold_every_user_once_the_shortest_trainings_first(sizes, learning, size):
    learners = crowd(sizes)
    blocks = make_blocks(learners, size, learning)
    assert sorted(one.user for users in blocks for one in users) == sorted(one.user for one in learners)
    assert [len(users) for users in blocks[:-1]] == [size] * (len(blocks) - 1)
    updates = [one.updates(learning) for users in blocks for one in users]
    assert updates == sorted(updates)
    assert make_blocks(learners[::-1], size, learning) == blocks


def test_users_who_do_not_divide_over_the_devices_are_an_error():
    block = block_of(crowd([2, 3]), Optimization(), devices=2)
    with pytest.raises(LampError, match="3 users do not divide over 2 devices"):
        replace(block, size=3)


@settings(max_examples=5)
@given(st.integers(0, 2**32))
def test_little_is_padding_where_users_are_uneven(seed):
    """Users with 4 to 149 items, prompts of 130 to 430 tokens and short answers, as LaMP's profiles are."""
    rng = np.random.default_rng(seed)
    learners = [
        Learner(
            str(user),
            [Example("", [5] * rng.integers(130, 431), [6] * rng.integers(2, 4)) for _ in range(rng.integers(4, 150))],
        )
        for user in range(64)
    ]
    learning = Optimization(epochs=1, batch_size=16)
    block = block_of(learners, learning, tokens=4096)
    real, computed = 0, 0
    for number in range(len(block)):
        for part in block.parts(number):
            real += np.count_nonzero(part.source) + np.count_nonzero(part.target)
            computed += part.source.size + part.target.size
    assert 1 - real / computed < 0.2
