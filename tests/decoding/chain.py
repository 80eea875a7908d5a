"""Model whose next token depends only on the last two tokens, so that the best sequences can be enumerated."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lamp_jax.models.t5_config import T5Config
from lamp_jax.sharding import DATA_PARALLEL

END = 1


@dataclass(frozen=True, eq=False)
class MarkovChain:
    """`table[source, last but one, last, next]` holds log-probabilities; a source is one token, its row.

    The last token but one is read from the cache: a search that confuses its hypotheses' caches gets other numbers.
    """

    table: np.ndarray
    rules = DATA_PARALLEL

    @property
    def config(self):
        return T5Config(vocab_size=self.table.shape[-1])

    def read_source(self, tokens):
        return tokens[:, 0]

    def for_steps(self):
        return self

    def start(self, source, *, hypotheses, max_length):
        first = jnp.zeros((len(source), hypotheses), source.dtype)
        return first, jnp.zeros((len(source), hypotheses, max_length + 1), jnp.int32)

    def step(self, tokens, position, cache, source):
        before = jax.lax.dynamic_index_in_dim(cache, position, axis=2, keepdims=False)
        cache = jax.lax.dynamic_update_slice_in_dim(cache, tokens[..., None], position + 1, axis=2)
        return jnp.asarray(self.table)[source[:, None], before, tokens], cache

    def choose(self, cache, parents):
        return jnp.take_along_axis(cache, parents[..., None], axis=1)


def random_chain(sources: int, vocabulary: int, seed: int, *, end: float = 0.0) -> MarkovChain:
    """Random transitions; `end` is added to the score of `</s>`."""
    shape = (sources, vocabulary, vocabulary, vocabulary)
    logits = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 2
    logits[..., END] += end
    return MarkovChain(np.asarray(jax.nn.log_softmax(logits, axis=-1)))


def all_sequences(table: np.ndarray, length: int) -> dict[tuple[int, ...], float]:
    """Every sequence that ends with `</s>`, or has `length` tokens, and its log-probability; for one source."""
    vocabulary = range(table.shape[-1])
    scores = {}
    for size in range(1, length + 1):
        for body in itertools.product([token for token in vocabulary if token != END], repeat=size - 1):
            for last in vocabulary if size == length else [END]:
                path = (0, 0, *body, last)
                scores[path[2:]] = float(sum(table[path[i : i + 3]] for i in range(size)))
    return scores
