"""Likelihoods of given answers: every label of a task, or one answer per source; one pass, without generation."""

import jax
import jax.numpy as jnp

from lamp_jax.losses import is_target, sequence_log_probability, token_log_probabilities
from lamp_jax.models.generator import Generator, Source


def score_labels(model: Generator, tokens: jax.Array, labels: jax.Array) -> jax.Array:
    """Log-probability log p(label | source) of every label's complete token sequence, with `</s>`; float32.

    Sources [B, S], labels [L, T] (L labels, NO_TOKEN or padding after `</s>`) -> [B, L]. A source is encoded once for
    all labels. The probability among the labels is the softmax over the last axis.
    """
    source = model.read_source(tokens)
    return jax.vmap(lambda label: _score(model, source, label, rows=len(tokens)), out_axes=1)(labels)


def mean_log_probability(model: Generator, tokens: jax.Array, target: jax.Array) -> jax.Array:
    """Mean of log p(y_t | y_<t, source) over each answer's tokens, with `</s>`; float32.

    Sources [B, S] and their answers [B, T] -> [B]. 0 where there is no answer.
    """
    pad = model.config.pad_token_id
    count = jnp.sum(is_target(target, pad=pad), axis=-1)
    return sequence_log_probability(model.target_logits(tokens, target), target, pad=pad) / jnp.maximum(count, 1)


def _score(model: Generator, source: Source, label: jax.Array, *, rows: int) -> jax.Array:
    """Log-probability of one label [T] for every source, [B]."""
    hidden = model.read_target(jnp.broadcast_to(label, (rows, len(label))), source)

    # One token at a time, so that only [B, L, V] logits exist at once.
    def score_token(xs: tuple[jax.Array, jax.Array]) -> jax.Array:
        return token_log_probabilities(model.logits(xs[0]), xs[1])

    log_p = jax.lax.map(score_token, (jnp.moveaxis(hidden, 1, 0), label))
    counted = is_target(label, pad=model.config.pad_token_id)
    return jnp.sum(jnp.where(counted[:, None], log_p, 0.0), axis=0)
