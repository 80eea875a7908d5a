"""Small T5s, BERTs and batches, shared by the tests of device code."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from lamp_jax.losses import token_cross_entropy
from lamp_jax.models.bert import Bert, BertConfig
from lamp_jax.models.generator import decoder_inputs
from lamp_jax.models.t5 import T5
from lamp_jax.models.t5_config import T5Config
from lamp_jax.sharding import mesh_is_set

TIED = T5Config(
    vocab_size=48, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_decoder_layers=3, num_heads=4, dropout_rate=0.25
)
GATED = T5Config(
    vocab_size=48,
    d_model=16,
    d_kv=8,
    d_ff=32,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=4,
    dropout_rate=0.25,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)
BERT = BertConfig(
    vocab_size=48,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=16,
    hidden_dropout_prob=0.25,
    attention_probs_dropout_prob=0.25,
    initializer_range=0.2,
)


@functools.cache
def _draw(config: T5Config) -> nnx.State:
    # In host memory: cached values must not be on the mesh of the first test that used them.
    return jax.device_get(nnx.state(T5(config, rngs=nnx.Rngs(0))))


@functools.cache
def _draw_bert(config: BertConfig) -> nnx.State:
    # Biases and norms are random too: if they were 0 or 1, omitting or misplacing them would not be detected.
    random = np.random.default_rng(0)
    drawn = jax.device_get(nnx.state(Bert(config, rngs=nnx.Rngs(0))))
    return jax.tree.map(lambda leaf: leaf + 0.1 * random.standard_normal(leaf.shape, np.float32), drawn)


def build(config: T5Config, **options) -> T5:
    """A model with the parameters of seed 0, sharded on the current mesh by the rules in the options."""
    return place_values(jax.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0), **options)), _draw(config))


def build_bert(config: BertConfig = BERT, **options) -> Bert:
    """As `build`; biases and norms are random too."""
    return place_values(jax.eval_shape(lambda: Bert(config, rngs=nnx.Rngs(0), **options)), _draw_bert(config))


def place_values(model: Any, values: nnx.State) -> Any:
    graph, abstract = nnx.split(model)
    if mesh_is_set():
        mesh = jax.sharding.get_mesh()
        layout = jax.tree.map(lambda leaf: NamedSharding(mesh, leaf.sharding.spec), abstract)
        return nnx.merge(graph, jax.device_put(values, layout))
    return nnx.merge(graph, jax.tree.map(jnp.asarray, values))


def make_batch(rows: int = 8, source: int = 12, target: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Sources [rows, source] and labels [rows, target] of random lengths, each ended by `</s>` and padded."""
    random = np.random.default_rng(0)

    def draw(length):
        tokens = np.zeros((rows, length), np.int32)
        for row, size in enumerate(random.integers(1, length + 1, rows)):
            tokens[row, :size] = [*random.integers(2, 48, size - 1), 1]
        return tokens

    return draw(source), draw(target)


def mean_loss(model: T5, tokens: jax.Array, labels: jax.Array, key: jax.Array | None = None) -> jax.Array:
    keys = (None, None) if key is None else jax.random.split(key)
    encoded = model.encode(tokens, key=keys[0])
    target = decoder_inputs(jnp.asarray(labels), model.config)
    logits = model.decode(target, encoded, model.source_mask(tokens), key=keys[1])
    total, count = token_cross_entropy(logits, labels, pad=0)
    return total / count
