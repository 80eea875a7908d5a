"""Batches of questions with candidates: pure functions of their number, no larger than necessary."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import choose_text_buckets, plan_epoch
from lamp_jax.inputs.candidate_batches import CandidateBatches, Candidates

PAD = -1
MAX_LENGTH = 40
BUCKETS = choose_text_buckets(MAX_LENGTH)
LENGTHS = st.lists(st.integers(1, MAX_LENGTH), min_size=2, max_size=8)
"""Lengths of a question's query and documents."""
PROFILES = st.lists(LENGTHS, min_size=1, max_size=30)


def candidates(number, lengths):
    """Question `number`: its texts contain the number and their own place, so that a row identifies its text."""
    texts = [np.array([number, place, *[7] * length][:length], np.int32) for place, length in enumerate(lengths)]
    count = len(lengths) - 1
    rewards = 100 * number + np.arange(count, dtype=np.float32)
    return Candidates(str(number), texts[0], texts[1:], rewards, baseline=float(number))


def make(profiles, *, batch_size=4, seed=0):
    examples = [candidates(number, lengths) for number, lengths in enumerate(profiles)]
    return CandidateBatches(examples, batch_size=batch_size, max_length=MAX_LENGTH, pad=PAD, seed=seed)


def real_rows(batch):
    return [row for row in range(len(batch.mask)) if batch.mask[row].any()]


def check_row(batch, row):
    """Asserts that a row is the question that it names, followed by padding. Returns the question's number."""
    number = int(batch.baseline[row])
    count = int(batch.mask[row].sum())
    assert batch.mask[row, :count].all()
    np.testing.assert_array_equal(
        batch.rewards[row], [*(100 * number + np.arange(count)), *[0] * (~batch.mask[row]).sum()]
    )
    assert (batch.tokens[row, 1 + count :] == PAD).all()
    return number, tuple(int((text != PAD).sum()) for text in batch.tokens[row, : 1 + count])


@given(PROFILES, st.integers(1, 7), st.integers(0, 2))
def test_an_epoch_has_every_question_once_and_complete(profiles, batch_size, epoch):
    batches = make(profiles, batch_size=batch_size)
    found = Counter()
    for step in range(epoch * len(batches), (epoch + 1) * len(batches)):
        batch = batches[step]
        assert len(batch.tokens) == len(batch.rewards) == len(batch.mask) == len(batch.baseline) == batch_size
        found.update(check_row(batch, row) for row in real_rows(batch))
    assert found == Counter((number, tuple(lengths)) for number, lengths in enumerate(profiles))


@given(PROFILES, st.integers(1, 7))
def test_shapes_are_few_and_padding_rows_are_empty(profiles, batch_size):
    batches = make(profiles, batch_size=batch_size)
    most = max(len(lengths) - 1 for lengths in profiles)
    for step in range(len(batches)):
        batch = batches[step]
        count = batch.mask.shape[1]
        assert batch.tokens.shape == (batch_size, 1 + count, batch.tokens.shape[2])
        assert batch.rewards.shape == (batch_size, count)
        assert batch.tokens.shape[2] in BUCKETS
        assert count in {1, 2, 4, 8, most}
        assert count <= most
        filling = sorted(set(range(batch_size)) - set(real_rows(batch)))
        assert (batch.tokens[filling] == PAD).all()
        assert not batch.rewards[filling].any()
        assert not batch.baseline[filling].any()


def test_queries_and_documents_are_at_their_places():
    batch = make([[3, 2, 5]], batch_size=2)[0]
    expected = np.full((2, 3, 16), PAD)
    expected[0, 0, :3], expected[0, 1, :2], expected[0, 2, :5] = (0, 0, 7), (0, 1), (0, 2, 7, 7, 7)
    np.testing.assert_array_equal(batch.tokens, expected)
    np.testing.assert_array_equal(batch.rewards, [[0, 1], [0, 0]])
    np.testing.assert_array_equal(batch.mask, [[True, True], [False, False]])
    assert {batch.tokens.dtype, batch.rewards.dtype, batch.baseline.dtype} == {np.dtype("i4"), np.dtype("f4")}


def test_a_question_with_few_short_items_is_padded_to_the_next_size_only():
    """Other questions have 16 long items and are in another batch."""
    profiles = [[5] * (1 + 3)] * 4 + [[40] * (1 + 16)] * 4
    shapes = Counter(make(profiles)[step].tokens.shape for step in range(2))
    assert shapes == Counter([(4, 1 + 4, 16), (4, 1 + 16, 40)])


@pytest.mark.parametrize(("count", "size"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 8), (9, 11), (11, 11)])
def test_candidates_are_padded_to_the_next_power_of_two_or_the_maximum(count, size):
    batches = make([[3] * (1 + count), [40] * (1 + 11)], batch_size=1)
    shapes = {batches[step].tokens.shape for step in range(2)}
    assert shapes == {(1, 1 + size, 16), (1, 1 + 11, 40)}


def test_questions_with_one_candidate_need_no_padding():
    assert make([[3, 3]] * 3)[0].mask.shape == (4, 1)


PLAIN = [[int(length) for length in row] for row in np.random.default_rng(0).integers(1, 41, (30, 5))]


def assert_equal(one, other):
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_batch_does_not_depend_on_those_before_it():
    first, second = make(PLAIN), make(PLAIN)
    for step in range(3 * len(first)):
        second[step]
    for step in (20, 3, 17, 0):
        assert_equal(first[step], second[step])


def test_epochs_and_seeds_have_different_orders():
    batches, other = make([[3, 3, 3]] * 30), make([[3, 3, 3]] * 30, seed=1)
    assert batches[0].baseline.tolist() != batches[len(batches)].baseline.tolist()
    assert batches[0].baseline.tolist() != other[0].baseline.tolist()


def test_no_questions_are_an_error():
    with pytest.raises(LampError, match="no questions"):
        make([])


def test_a_text_beyond_the_maximum_length_is_an_error():
    with pytest.raises(LampError, match="does not fit"):
        make([[MAX_LENGTH + 1, 3]])


SIZES = st.integers(1, 3).flatmap(
    lambda axes: st.lists(st.tuples(*[st.sampled_from([1, 2, 4, 8])] * axes), min_size=1, max_size=50)
)


@given(SIZES, st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_a_plan_has_every_row_once_in_full_batches_that_cover_them(sizes, batch_size, seed, epoch):
    sizes = np.array(sizes)
    plan = plan_epoch(sizes, batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(int(row) for _, rows in plan for row in rows) == list(range(len(sizes)))
    assert sorted(len(rows) for _, rows in plan)[1:] == [batch_size] * (len(plan) - 1)
    assert len(plan) == -(-len(sizes) // batch_size)
    for size, rows in plan:
        assert size == tuple(sizes[rows].max(axis=0))


@given(SIZES, st.integers(1, 9))
def test_at_most_one_batch_per_size_contains_other_sizes(sizes, batch_size):
    sizes = np.array(sizes)
    plan = plan_epoch(sizes, batch_size=batch_size, seed=0, epoch=0)
    mixed = sum(len(np.unique(sizes[rows], axis=0)) > 1 for _, rows in plan)
    assert mixed <= len(np.unique(sizes, axis=0)) - 1
