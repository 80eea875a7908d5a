"""Single rows on a mesh: jax 0.12 loses the sharding of a slice with one element, which is common for one row."""

import jax
import numpy as np
import pytest
from flax import nnx

from lamp_jax.config import Answering
from lamp_jax.decoding.answers import make_decoder
from lamp_jax.decoding.generation import DEFAULT_GENERATION, Generation
from lamp_jax.sharding import make_mesh, place_batch
from lamp_jax.steps.generator import generator_loss
from tests.models import test_longformer
from tests.models.tiny import GATED, build

SOURCE = np.array([[5, 6, 7, 1]], np.int32)
RULES = Generation(min_new_tokens=1, no_repeat_ngram_size=2, forced_bos_token_id=9)


def without_and_on_a_mesh(function):
    """The function's results without a mesh, and on a mesh of one device."""
    alone = function()
    with jax.set_mesh(make_mesh(1, 1, devices=jax.devices()[:1])):
        return alone, function()


@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("generation", [DEFAULT_GENERATION, RULES], ids=["plain", "rules"])
@pytest.mark.parametrize("decode", ["beam", "greedy"])
def test_a_single_source_can_be_decoded(decode, generation, length):
    answering = Answering(decode, num_beams=2, generation_max_length=length)

    def answer():
        graph, params = nnx.split(build(GATED))
        return make_decoder(graph, answering, None, generation=generation)(params, place_batch(SOURCE))

    alone, found = without_and_on_a_mesh(answer)
    np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize("length", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_single_example_has_a_loss(length):
    target = np.arange(4, 4 + length, dtype=np.int32)[None]

    def loss():
        graph, params = nnx.split(build(GATED))
        total, weight = jax.jit(generator_loss(graph))(params, place_batch((SOURCE, target)), jax.random.key(0))
        return total / weight

    alone, found = without_and_on_a_mesh(loss)
    np.testing.assert_allclose(found, alone, rtol=1e-6)


def test_a_single_text_has_a_score():
    def score():
        text = place_batch(test_longformer.TEXTS[:1])
        return jax.jit(lambda model: model.score(text))(test_longformer.build(first_token="global"))

    alone, found = without_and_on_a_mesh(score)
    np.testing.assert_allclose(found, alone, rtol=1e-5)
