"""Greedy search: the most probable next token, again and again, for a whole batch at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lamp_jax.decoding.constraints import Constrain
from lamp_jax.models.t5 import T5, SelfCache, is_end
from lamp_jax.sharding import gathered


class _State(NamedTuple):
    length: jax.Array
    """How many tokens are generated; a scalar."""
    tokens: jax.Array
    """[B, T], padding behind `</s>`."""
    last: jax.Array
    """[B]: what the decoder reads next."""
    finished: jax.Array
    """[B]"""
    cache: SelfCache


def greedy_search(
    model: T5, tokens: jax.Array, *, max_new_tokens: int, constrain: Constrain | None = None
) -> jax.Array:
    """Sources [B, S] -> generated tokens [B, max_new_tokens]: `</s>` included, padding behind it, no start token.

    Equal to HF's `generate(num_beams=1, do_sample=False, max_length=max_new_tokens + 1)`. To be jitted by the caller,
    with `max_new_tokens` static; ends early when every row has its `</s>`. `constrain` may change the logits.
    """
    config, mask = model.config, model.source_mask(tokens)
    cache, cross = model.start_cache(model.encode(tokens, mask=mask), mask, max_length=max_new_tokens)
    # By a sum: in jax 0.12, a slice of a single element (of one source) does not keep how it is split over devices.
    first = jnp.full_like(jnp.sum(tokens, axis=1), config.decoder_start_token_id)
    rows = jnp.broadcast_to(first[:, None], (len(tokens), max_new_tokens))
    start = _State(jnp.int32(0), jnp.full_like(rows, config.pad_token_id), first, first != first, cache)

    def step(state: _State) -> _State:
        logits, cache = model.step(state.last, state.length, state.cache, cross)
        if constrain:
            logits = gathered(logits, model.rules.spec("batch", None))
            logits = constrain(logits[:, None], state.tokens[:, None], state.length)[:, 0]
        best = jnp.argmax(logits, axis=-1).astype(tokens.dtype)
        best = jnp.where(state.finished, config.pad_token_id, best)
        written = jnp.where(jnp.arange(max_new_tokens) == state.length, best[:, None], state.tokens)
        return _State(state.length + 1, written, best, state.finished | is_end(best, config), cache)

    def unfinished(state: _State) -> jax.Array:
        return (state.length < max_new_tokens) & ~jnp.all(state.finished)

    return jax.lax.while_loop(unfinished, step, start).tokens
