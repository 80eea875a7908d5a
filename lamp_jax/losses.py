"""Scalars from arrays: what the trained models minimise, each by its formula."""

import jax
import jax.numpy as jnp

IGNORED = -100
"""The label that HF's collators put where nothing is to be predicted."""


def token_log_probabilities(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log softmax(logits)[label]: [..., V] and [...] -> [...], float32. Negative labels give any finite number."""
    logits = logits.astype(jnp.float32)
    # A masked sum, not a gather: its gradient is no scatter, and it works where the vocabulary is split over devices.
    chosen = jnp.arange(logits.shape[-1]) == labels[..., None]
    return jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1) - jax.nn.logsumexp(logits, axis=-1)


def token_cross_entropy(logits: jax.Array, labels: jax.Array, *, pad: int = 0) -> tuple[jax.Array, jax.Array]:
    """Sum over the label tokens of -log p(y_t | y_<t, x), and how many there are.

    loss = sum / count is HF's: the mean over all tokens of the batch that are neither padding nor `IGNORED`. Sums and
    counts of parts add up to those of the whole, so accumulation is exact. Logits [B, T, V], labels [B, T].
    """
    counted = (labels != pad) & (labels != IGNORED)
    log_p = token_log_probabilities(logits, labels)
    return -jnp.sum(jnp.where(counted, log_p, 0.0)), jnp.sum(counted.astype(jnp.float32))


def sequence_log_probability(logits: jax.Array, labels: jax.Array, *, pad: int = 0) -> jax.Array:
    """log p(y | x) = sum_t log p(y_t | y_<t, x) over a row's label tokens, `</s>` included: [B, T, V] -> [B]."""
    counted = (labels != pad) & (labels != IGNORED)
    return jnp.sum(jnp.where(counted, token_log_probabilities(logits, labels), 0.0), axis=-1)
