"""Losses of selectors trained on a generator's feedback: RSPG-Pre and RSPG-Post (arXiv 2404.05970, section 4.2)."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from lamp_jax import losses
from lamp_jax.config import CORRECT, Compatibility
from lamp_jax.models.longformer import Longformer
from lamp_jax.steps.update import LossSum


def selector_loss(graph: nnx.GraphDef, *, temperature: float = 1.0, compatibility: Compatibility = CORRECT) -> LossSum:
    """Loss function, Eq. 5 to 7: sum over a `CandidateBatch`'s questions, and the number of questions with candidates.

    `temperature` divides scores and rewards.
    """

    def loss_sum(params, batch, key):
        tokens, rewards, mask, _ = batch
        scores = score_texts(nnx.merge(graph, params), tokens, key=key)
        if compatibility.selector_temperature == "loss":
            loss = losses.kl_of_scaled_log_probabilities(scores, rewards, mask, temperature=temperature)
        else:
            loss = losses.kd_loss(scores, rewards, mask, score_temperature=temperature, reward_temperature=temperature)
        return jnp.sum(loss), jnp.sum(jnp.any(mask, axis=-1).astype(jnp.float32))

    return loss_sum


def score_texts(model: Longformer, tokens: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Scores of N texts of B questions, [B, N], float32: tokens [B, N, S]."""
    return model.each_text(partial(model.score, key=key), tokens)
