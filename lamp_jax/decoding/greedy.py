"""Greedy search: the most probable next token at every step, for an entire batch at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lamp_jax.decoding.constraints import Constrain
from lamp_jax.models.generator import Cache, Generator, is_end
from lamp_jax.sharding import gathered


class _State(NamedTuple):
    length: jax.Array
    """Number of generated tokens; a scalar."""
    tokens: jax.Array
    """[B, T], padding after `</s>`."""
    last: jax.Array
    """[B]: next input tokens of the model."""
    finished: jax.Array
    """[B]: whether `</s>` was generated."""
    cache: Cache


def greedy_search(
    model: Generator, tokens: jax.Array, *, max_new_tokens: int, constrain: Constrain | None = None
) -> jax.Array:
    """Generated tokens [B, max_new_tokens] for sources [B, S]: with `</s>` and padding after it, without start token.

    Equal to HF's `generate(num_beams=1, do_sample=False, max_length=max_new_tokens + 1)`. To be jitted by the caller,
    with `max_new_tokens` static; ends early when every row has its `</s>`. `constrain` may change the logits.
    """
    config, source = model.config, model.read_source(tokens)
    first, cache = model.start(source, hypotheses=1, max_length=max_new_tokens)
    rows = jnp.broadcast_to(first, (len(tokens), max_new_tokens))
    last = first[:, 0]
    start = _State(jnp.int32(0), jnp.full_like(rows, config.pad_token_id), last, last != last, cache)

    stepping = model.for_steps()

    def step(state: _State) -> _State:
        logits, cache = stepping.step(state.last[:, None], state.length, state.cache, source)
        if constrain:
            logits = gathered(logits, model.rules.spec("batch", None, None))
            logits = constrain(logits, state.tokens[:, None], state.length)
        best = jnp.argmax(logits[:, 0], axis=-1).astype(first.dtype)
        best = jnp.where(state.finished, config.pad_token_id, best)
        written = jnp.where(jnp.arange(max_new_tokens) == state.length, best[:, None], state.tokens)
        return _State(state.length + 1, written, best, state.finished | is_end(best, config), cache)

    def unfinished(state: _State) -> jax.Array:
        return (state.length < max_new_tokens) & ~jnp.all(state.finished)

    return jax.lax.while_loop(unfinished, step, start).tokens
