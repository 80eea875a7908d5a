"""Batches: pure functions of their number, with few shapes."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import (
    NO_TOKEN,
    Example,
    TrainingBatches,
    choose_buckets,
    find_bucket,
    fit_buckets,
    fit_lengths,
    prediction_batches,
    read_ahead,
)

BUCKETS = (4, 8, 16)
LENGTHS = st.lists(st.integers(1, 16), min_size=1, max_size=60)
ANY_LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=9)


def examples(lengths):
    """Example n contains only the number n + 1, so that a row identifies its example."""
    return [Example(str(n), [n + 1] * length, [n + 1, 1]) for n, length in enumerate(lengths)]


def training(lengths, *, seed=0, batch_size=4):
    return TrainingBatches(examples(lengths), batch_size=batch_size, max_length=16, buckets=BUCKETS, seed=seed)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_has_every_example_once_and_complete(lengths, batch_size, epoch):
    batches = training(lengths, batch_size=batch_size)
    found = Counter()
    for step in range(epoch * len(batches), (epoch + 1) * len(batches)):
        batch = batches[step]
        assert batch.source.shape[0] == batch_size
        assert batch.source.shape[1] in BUCKETS
        for source, target in zip(batch.source, batch.target, strict=True):
            if (target != NO_TOKEN).any():
                found[int(source[0]) - 1, int((source != NO_TOKEN).sum())] += 1
    assert found == Counter(enumerate(lengths))


def test_a_batch_does_not_depend_on_those_before_it():
    lengths = np.random.default_rng(0).integers(1, 17, 50)
    first, second = training(lengths), training(lengths)
    for step in (40, 3, 17):
        np.testing.assert_array_equal(first[step].source, second[step].source)
    other = training(lengths, seed=1)
    assert not all(np.array_equal(other[step].source, first[step].source) for step in range(3))


def test_epochs_have_different_orders():
    batches = training([4] * 40)
    assert not np.array_equal(batches[0].source, batches[len(batches)].source)


def test_prefetching_can_begin_at_any_batch():
    batches = training([3] * 20)
    read = list(read_ahead(batches, 7, 12))
    assert len(read) == 5
    for step, batch in enumerate(read, start=7):
        np.testing.assert_array_equal(batch.source, batches[step].source)


def test_no_examples_is_an_error():
    with pytest.raises(LampError, match="no training examples"):
        training([])


@given(LENGTHS, st.tuples(*[st.integers(1, 9)] * len(BUCKETS)))
def test_prediction_covers_every_example_once(lengths, sizes):
    rows = dict(zip(BUCKETS, sizes, strict=True))
    seen, fillers = [], []
    for positions, batch in prediction_batches(examples(lengths), rows=rows):
        assert batch.source.shape[0] == rows[batch.source.shape[1]]
        fillers.append(len(batch.source) - len(positions))
        for position, source in zip(positions, batch.source, strict=False):
            assert (source >= 0).sum() == lengths[position]
            seen.append(position)
    assert sorted(seen) == list(range(len(lengths)))
    assert not any(fillers[:-1])  # only the last batch has unused rows


def test_buckets_end_with_the_maximum():
    assert choose_buckets(100)[-1] == 100
    assert choose_buckets(16) == (16,)
    assert find_bucket(33, choose_buckets(512)) == 64
    with pytest.raises(LampError, match="17 tokens does not fit the longest bucket of 16"):
        find_bucket(17, BUCKETS)


def padding_of(lengths, sizes):
    return sum(min(size for size in sizes if size >= length) for length in lengths)


@given(ANY_LENGTHS, st.integers(1, 4))
def test_lengths_have_the_least_padding_of_all_choices(lengths, count):
    found = fit_lengths(np.array(lengths), count)
    rounded = {max(8, -(-length // 8) * 8) for length in lengths}
    choices = (
        chosen for size in range(1, count + 1) for chosen in combinations(rounded, size) if max(chosen) == max(rounded)
    )
    assert padding_of(lengths, found) == min(padding_of(lengths, chosen) for chosen in choices)


@given(ANY_LENGTHS, st.integers(1, 4), st.sampled_from([1, 4, 8]))
def test_every_length_fits(lengths, count, multiple):
    found = fit_lengths(np.array(lengths), count, multiple=multiple)
    assert list(found) == sorted(set(found))
    assert len(found) <= count
    assert not any(length % multiple for length in found)
    assert max(lengths) <= found[-1] < max([*lengths, 1]) + multiple


@given(ANY_LENGTHS, st.sampled_from([0, 7, 30]))
def test_each_length_except_the_longest_saves_more_padding_than_it_costs(lengths, worth):
    found = fit_lengths(np.array(lengths), 4, multiple=1, worth=worth)
    for count in range(1, len(found)):
        coarser, finer = (
            padding_of(lengths, fit_lengths(np.array(lengths), n, multiple=1)) for n in (count, count + 1)
        )
        assert coarser - finer >= worth


@given(st.integers(1, 300), st.data())
def test_buckets_fitted_to_prompts_are_not_more_and_have_less_padding(longest, data):
    lengths = data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=30))
    found, fixed = fit_buckets(lengths, longest), choose_buckets(longest)
    assert list(found) == sorted(set(found))
    assert len(found) <= len(fixed)
    assert max(lengths) <= found[-1] <= longest
    spared = sum(lengths) / 20 * len(fixed)  # padding that is not worth a further length, for each length
    assert padding_of(lengths, found) <= padding_of(lengths, fixed) + spared


def test_without_prompts_there_are_no_buckets():
    assert fit_buckets([], 512) == ()


def test_uneven_targets_have_several_padded_lengths_and_even_ones_have_one():
    rng = np.random.default_rng(0)
    sources, uneven = rng.integers(100, 130, 400), np.minimum(90, np.exp(rng.normal(3.2, 0.5, 400))).astype(int) + 1
    for targets, most in ((uneven, 3), (rng.integers(1, 9, 400), 1)):
        pairs = zip(sources, targets, strict=True)
        rows = [Example(str(n), [n + 1] * source, [n + 1] * target) for n, (source, target) in enumerate(pairs)]
        batches = TrainingBatches(rows, batch_size=8, max_length=512, seed=0)
        sizes = {batches.size(step)[1] for step in range(len(batches))}
        assert max(targets) <= max(sizes) < max(targets) + 8
        assert (len(sizes) > 1) == (most > 1)
        assert len(sizes) <= most
        found = Counter()
        for step in range(len(batches)):
            batch = batches[step]
            assert batches.size(step) == (batch.source.shape[1], batch.target.shape[1])
            found.update({int(row[0]) - 1: int((row != NO_TOKEN).sum()) for row in batch.target})
        assert found == Counter(dict(enumerate(targets.tolist())))
