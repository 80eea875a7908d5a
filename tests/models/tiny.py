"""Small T5s and batches that the tests of the device half share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from lamp_jax.losses import token_cross_entropy
from lamp_jax.models.t5 import T5, decoder_inputs
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


@functools.cache
def _draw(config: T5Config) -> nnx.State:
    # In host memory: what is cached must not lie on the mesh of the test that came first.
    return jax.device_get(nnx.state(T5(config, rngs=nnx.Rngs(0))))


def build(config: T5Config, **options) -> T5:
    """A model with the parameters of seed 0, on the current mesh by the rules among the options."""
    graph, abstract = nnx.split(jax.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0), **options)))
    if mesh_is_set():
        mesh = jax.sharding.get_mesh()
        layout = jax.tree.map(lambda leaf: NamedSharding(mesh, leaf.sharding.spec), abstract)
        return nnx.merge(graph, jax.device_put(_draw(config), layout))
    return nnx.merge(graph, jax.tree.map(jnp.asarray, _draw(config)))


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
    total, count = token_cross_entropy(model.decode(target, encoded, model.source_mask(tokens), key=keys[1]), labels)
    return total / count
