import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamp_jax.decoding.beam import beam_search
from lamp_jax.decoding.greedy import greedy_search
from tests.decoding.chain import END, MarkovChain, random_chain

SOURCES = jnp.arange(6)[:, None]


def greedy(chain, length):
    return np.asarray(jax.jit(functools.partial(greedy_search, chain, max_new_tokens=length))(SOURCES))


def test_every_token_is_the_most_probable_continuation():
    chain = random_chain(6, 5, seed=0)
    for source, row in enumerate(greedy(chain, 7)):
        before, last, expected = 0, 0, []
        while len(expected) < 7 and last != END:
            before, last = last, int(np.argmax(chain.table[source, before, last]))
            expected.append(last)
        assert row.tolist() == expected + [0] * (7 - len(expected))


def test_greedy_equals_beam_search_with_one_beam_and_no_length_penalty():
    chain = random_chain(6, 5, seed=1)
    search = functools.partial(beam_search, chain, num_beams=1, max_new_tokens=7, length_penalty=0.0)
    np.testing.assert_array_equal(greedy(chain, 7), jax.jit(search)(SOURCES).tokens[:, 0])


@pytest.mark.parametrize(("end", "expected"), [(20.0, 1), (-20.0, 9)], ids=["at once", "never"])
def test_search_stops_when_every_row_has_an_end_token(end, expected):
    steps = []

    class Counted(MarkovChain):
        def step(self, tokens, position, cache, source):
            jax.debug.callback(lambda at: steps.append(int(at)), position)
            return super().step(tokens, position, cache, source)

    greedy(Counted(random_chain(6, 5, seed=2, end=end).table), 9)
    jax.effects_barrier()
    assert len(steps) == expected
