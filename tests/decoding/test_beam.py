import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamp_jax.decoding.beam import beam_search, largest
from lamp_jax.decoding.labels import score_labels
from lamp_jax.sharding import FSDP_AND_TENSOR_PARALLEL, make_mesh, place_batch
from tests.decoding.chain import MarkovChain, all_sequences, random_chain
from tests.models.tiny import GATED, build, make_batch

SOURCES = jnp.arange(4)[:, None]


def search(chain, sources=SOURCES, **options):
    return jax.device_get(jax.jit(functools.partial(beam_search, chain, **options))(sources))


def trimmed(row):
    row = row.tolist()
    return tuple(row[: row.index(1) + 1] if 1 in row else row)


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_a_wide_enough_beam_search_equals_exhaustive_search(end):
    chain = random_chain(4, 4, seed=0, end=end)
    # At the third step there are 3^2 * 4 candidates: none is ever dropped, and all may finish.
    beams = search(chain, num_beams=36, max_new_tokens=4, length_penalty=0.0)
    for source in range(4):
        known = all_sequences(chain.table[source], 4)
        found = [trimmed(row) for row in beams.tokens[source]]
        assert len(set(found)) == 36
        np.testing.assert_allclose(beams.scores[source], [known[tokens] for tokens in found], rtol=1e-5)
        np.testing.assert_allclose(beams.scores[source], sorted(known.values())[: -36 - 1 : -1], rtol=1e-5)


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0])
def test_scores_are_sums_of_log_probabilities_over_the_length(length_penalty):
    chain = random_chain(4, 6, seed=1)
    beams = search(chain, num_beams=3, max_new_tokens=5, length_penalty=length_penalty)
    for source in range(4):
        known = all_sequences(chain.table[source], 5)
        for row, score in zip(beams.tokens[source], beams.scores[source], strict=True):
            tokens = trimmed(row)
            np.testing.assert_allclose(score, known[tokens] / len(tokens) ** length_penalty, rtol=1e-5)
            assert not row[len(tokens) :].any()
        assert list(beams.scores[source]) == sorted(beams.scores[source], reverse=True)


def chain_of(paths, length_penalty):
    """A chain over {pad, end, a, b, c} with these probabilities; all other transitions have probability 0."""
    table = np.full((1, 5, 5, 5), 1e-30, np.float32)
    for (last, following), probability in paths.items():
        table[0, :, last, following] = probability
    beams = search(
        MarkovChain(np.log(table)), SOURCES[:1], num_beams=2, max_new_tokens=6, length_penalty=length_penalty
    )
    return trimmed(beams.tokens[0, 0]), float(beams.scores[0, 0])


A, B, C = 2, 3, 4
PATHS = {(0, A): 0.3, (0, B): 0.7, (A, 1): 0.5, (A, A): 0.5, (B, C): 0.3, (B, 1): 0.2, (B, B): 0.5, (C, 1): 0.9}
PATHS[C, C] = 0.1


@pytest.mark.parametrize(
    ("length_penalty", "tokens", "log_p"),
    [
        # b c </s> has 0.189, a </s> 0.15, b </s> 0.14, b b c </s> 0.0945.
        (0.0, (B, C, 1), np.log(0.7 * 0.3 * 0.9)),
        # The logarithms over the length: -0.56, and -0.59 for b b c </s>.
        (1.0, (B, C, 1), np.log(0.7 * 0.3 * 0.9)),
        # Where length counts three times, the longest wins; of six tokens b b b b c </s> is the best.
        (3.0, (B, B, B, B, C, 1), np.log(0.7 * 0.5**3 * 0.3 * 0.9)),
    ],
)
def test_best_sequences_equal_those_computed_by_hand(length_penalty, tokens, log_p):
    found, score = chain_of(PATHS, length_penalty)
    assert found == tokens
    assert score == pytest.approx(log_p / len(tokens) ** length_penalty, rel=1e-5)


def test_only_the_first_candidates_may_finish():
    # a </s> and b </s> are candidates 3 and 4 of the second step, beyond the beam of 2, though their sums (0.495 * 0.45
    # and less) are above those of six tokens of a, or of b.
    paths = {(0, A): 0.51, (0, B): 0.49, (A, A): 0.55, (A, 1): 0.45, (B, B): 0.55, (B, 1): 0.45}
    found, score = chain_of(paths, 0.0)
    assert found == (A,) * 6
    assert score == pytest.approx(np.log(0.51) + 5 * np.log(0.55), rel=1e-5)


def test_a_source_is_decoded_independently_of_its_batch():
    chain = random_chain(4, 6, seed=3)
    options = {"num_beams": 3, "max_new_tokens": 6}
    together = search(chain, **options)
    for source in range(4):
        alone = search(chain, SOURCES[source : source + 1], **options)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[source])


def test_search_stops_when_no_source_can_gain():
    steps = []

    class Counted(MarkovChain):
        def step(self, tokens, position, cache, source):
            jax.debug.callback(lambda at: steps.append(int(at)), position)
            return super().step(tokens, position, cache, source)

    search(Counted(random_chain(4, 5, seed=2, end=20.0).table), num_beams=2, max_new_tokens=50)
    jax.effects_barrier()
    assert 1 <= len(set(steps)) <= 4


def test_search_and_label_scores_do_not_depend_on_the_mesh():
    labels = np.array([[5, 1, 0], [7, 8, 1]])

    @jax.jit
    def decode(model, tokens):
        return beam_search(model, tokens, num_beams=2, max_new_tokens=4), score_labels(model, tokens, labels)

    tokens, _ = make_batch()
    expected, expected_labels = decode(build(GATED), tokens)
    with jax.set_mesh(make_mesh(4, 2)):
        beams, label_scores = decode(build(GATED, rules=FSDP_AND_TENSOR_PARALLEL), place_batch(tokens))
    np.testing.assert_array_equal(beams.tokens, expected.tokens)
    np.testing.assert_allclose(beams.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(label_scores, expected_labels, atol=1e-4)


@given(st.sampled_from([1, 63, 600, 640, 701]), st.sampled_from([1, 4]), st.integers(1, 99), st.integers(0, 2**32 - 1))
def test_the_largest_values_are_those_of_a_sort(size, count, kinds, seed):
    """Of equal values the first, as `top_k` has them: `kinds` values make many ties."""
    values = np.random.default_rng(seed).integers(0, kinds, (2, 3, size)).astype(np.float32)
    found, index = jax.jit(largest, static_argnums=1)(values, min(count, size))
    order = np.argsort(-values, axis=-1, kind="stable")[..., :count]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(found, np.take_along_axis(values, order, axis=-1))
