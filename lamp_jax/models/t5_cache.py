"""Keys and values that T5's decoding steps read: of the sources, and of the target tokens so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lamp_jax.models import step_kernel
from lamp_jax.models.kernels import HIDDEN
from lamp_jax.models.t5_config import T5Config
from lamp_jax.sharding import Rules


class CrossCache(NamedTuple):
    """Cross-attention keys and values of one source; computed once, shared by all hypotheses."""

    keys: tuple[jax.Array, ...] | jax.Array
    """Keys [B, H, K, S] of each layer; stacked, [L, ...], where the layers are scanned."""
    values: tuple[jax.Array, ...] | jax.Array
    """Values [B, H, S, K] of each layer, likewise."""
    padding: jax.Array
    """Additive mask [B, 1, 1, S]: 0 at tokens, very negative at padding."""


LayerCache = tuple[jax.Array, jax.Array]
"""Keys [L, B, H, K, T * N] and values [L, B, H, T * N, K]; L = 1 where the layers are unrolled. In the order of
`attend_step`: two of [L, B, T * N, H * K], with a larger T."""


class SelfCache(NamedTuple):
    """Keys and values of the target tokens of N hypotheses per source, with room for T tokens each.

    Hypothesis n writes its token number t at t * N + n. A hypothesis that continues another one does not copy its keys
    and values: `writers` says where they are.
    """

    layers: tuple[LayerCache, ...]
    """One for each layer where the layers are unrolled, so that none is copied; else one for all."""
    writers: jax.Array
    """[B, N, T]: which hypothesis wrote each token of every hypothesis; -1 at tokens to come."""

    def choose(self, parents: jax.Array) -> "SelfCache":
        """Cache in which hypothesis n continues the former hypothesis `parents[b, n]` of its source, [B, N]."""
        return self._replace(writers=jnp.take_along_axis(self.writers, parents[..., None], axis=1))

    def writers_at(self, position: jax.Array) -> jax.Array:
        """`writers` once every hypothesis has written its token at `position`."""
        hypotheses, length = self.writers.shape[1:]
        return jnp.where(jnp.arange(length) == position, jnp.arange(hypotheses)[:, None], self.writers)


def scores_of_own(writers: jax.Array, position_scores: jax.Array) -> jax.Array:
    """Scores [B, H, N, T * N] to add at all places of a cache: those of the tokens, [H, T], where a hypothesis's own
    are, very negative elsewhere."""
    is_own = writers[..., None] == jnp.arange(writers.shape[1])  # [B, N, T, N]
    scores = jnp.where(is_own[:, None], position_scores[None, :, None, :, None], HIDDEN)
    return scores.reshape(*scores.shape[:3], -1)


def empty_cache(
    config: T5Config, rules: Rules, *, rows: int, hypotheses: int, length: int, unrolled: bool, kernel: bool, dtype
) -> SelfCache:
    """Cache without tokens, for N hypotheses of up to `length` tokens per row; in the order of `attend_step` for a
    kernel."""
    layers, caches = (1, config.num_decoder_layers) if unrolled else (config.num_decoder_layers, 1)
    heads, size = config.num_heads, config.d_kv
    if kernel:
        length = step_kernel.token_room(length, hypotheses)
        shapes = [(layers, rows, length * hypotheses, heads * size)] * 2
        sharding = rules.out(None, "batch", None, "heads")
    else:
        places = length * hypotheses
        shapes = [(layers, rows, heads, size, places), (layers, rows, heads, places, size)]
        sharding = rules.out(None, "batch", "heads", None, None)
    keys, values = (jnp.zeros(shape, dtype, out_sharding=sharding) for shape in shapes)
    writers = jnp.full((rows, hypotheses, length), -1, jnp.int32, out_sharding=rules.out("batch", None, None))
    return SelfCache(((keys, values),) * caches, writers)
