"""Attention of a decoding step as one kernel for TPUs: reads only what is written of the cache.

Keys and values are stored [L, B, places, H * K]: complete registers, without the padding that heads of 64 would have.
"""

import jax
import jax.numpy as jnp

from lamp_jax.sharding import Rules, mesh_is_set, shards

LANES = 128
PLACES = 128
"""Number of places of the cache that are read together."""


def fits(heads: int, size: int, rules: Rules) -> bool:
    """Whether the heads [H, K] of one device fill complete registers."""
    return heads // shards(rules.heads) * size % LANES == 0


def token_room(length: int, hypotheses: int) -> int:
    """Smallest number of tokens, at least `length`, whose places are a multiple of those that are read together."""
    while length * hypotheses % PLACES:
        length += 1
    return length


def attend_step(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    cache: tuple[jax.Array, jax.Array],
    scores: jax.Array,
    *,
    layer: jax.Array | int,
    start: jax.Array,
    rules: Rules,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Attention of one token of every hypothesis to those of its source, and the cache with its keys and values.

    Three of [B, N, H, K] -> [B, N, H, K]; cache: two of [L, B, places, H * K], written from place `start` on; `scores`
    [B, H, N, places] float32 hide what is not a hypothesis's own. No gradient.
    """
    from lamp_jax.models.step_pallas import attend_places

    def locally(query, keys, values, old_keys, old_values, scores, layer, start):
        rows, hypotheses, heads, size = query.shape
        stored_keys, stored_values = (
            jax.lax.dynamic_update_slice(old, new.reshape(1, rows, hypotheses, -1), (layer, 0, start, 0))
            for old, new in ((old_keys, keys), (old_values, values))
        )
        # Queries of each head with 0 for all others, [B, H * N, H * K]: one product has the scores of all heads.
        own = jnp.eye(heads, dtype=bool)[:, None, :, None]
        apart = jnp.where(own, jnp.swapaxes(query, 1, 2)[:, :, :, None], jnp.zeros((), query.dtype))
        apart = apart.reshape(rows, heads * hypotheses, heads * size)
        where = jnp.stack([jnp.asarray(layer, jnp.int32), (start + hypotheses - 1) // PLACES])
        mixed = attend_places(where, apart, stored_keys, stored_values, scores.reshape(rows, heads * hypotheses, -1))
        mixed = mixed.reshape(rows, heads, hypotheses, heads, size)
        result = jnp.sum(jnp.where(own, mixed, 0), axis=3).swapaxes(1, 2).astype(values.dtype)
        return result, stored_keys, stored_values

    arguments = (query, keys, values, *cache, scores, jnp.asarray(layer), start)
    if mesh_is_set():
        by_row, stored = rules.spec("batch", None, "heads", None), rules.spec(None, "batch", None, "heads")
        of_scores, alone = rules.spec("batch", "heads", None, None), rules.spec()
        specs = (by_row, by_row, by_row, stored, stored, of_scores, alone, alone)
        locally = jax.shard_map(locally, in_specs=specs, out_specs=(by_row, stored, stored), check_vma=False)
    found, stored_keys, stored_values = locally(*arguments)
    return found, (stored_keys, stored_values)
