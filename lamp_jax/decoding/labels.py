"""How probable each of a few given labels is: one pass, no generation."""

import jax
import jax.numpy as jnp

from lamp_jax.losses import token_log_probabilities
from lamp_jax.models.t5 import T5, CrossCache, decoder_inputs


def score_labels(model: T5, tokens: jax.Array, labels: jax.Array) -> jax.Array:
    """log p(label | source) of every label's whole token sequence, `</s>` included; float32.

    Sources [B, S], labels [L, T] (L labels, padding behind `</s>`) -> [B, L]. A source is encoded once and its keys
    and values serve all labels. The probability among the labels is the softmax over the last axis.
    """
    mask = model.source_mask(tokens)
    cross = model.cross_cache(model.encode(tokens, mask=mask), mask)
    return jax.vmap(lambda label: _score(model, cross, label), out_axes=1)(labels)


def _score(model: T5, cross: CrossCache, label: jax.Array) -> jax.Array:
    """One label [T] for every source -> [B]."""
    sources = cross.padding.shape[0]
    target = jnp.broadcast_to(decoder_inputs(label[None], model.config), (sources, len(label)))
    hidden = model.read_target(target, cross)

    # Token by token, so that no more than [B, L, V] logits exist at once.
    def score_token(xs: tuple[jax.Array, jax.Array]) -> jax.Array:
        return token_log_probabilities(model.logits(xs[0]), xs[1])

    log_p = jax.lax.map(score_token, (jnp.moveaxis(hidden, 1, 0), label))
    return jnp.sum(jnp.where((label == model.config.pad_token_id)[:, None], 0.0, log_p), axis=0)
