"""Losses of dual encoders trained on a generator's feedback: ROPG-KD and ROPG-RL (arXiv 2404.05970, section 4.1)."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from lamp_jax import losses
from lamp_jax.config import Compatibility
from lamp_jax.models.bert import Bert
from lamp_jax.retrieval.encoders import EncoderSettings
from lamp_jax.settings import Ropg
from lamp_jax.steps.update import LossSum

Objective = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""Function: scores [B, N], rewards [B, N], mask [B, N], baseline [B], key -> loss of each question [B]."""


def choose_objective(ropg: Ropg, *, compatibility: Compatibility) -> Objective:
    """Objective that `ropg` names; with `compatibility.ropg="padded"` that of the public code."""
    if ropg.method == "kd" and compatibility.ropg == "padded":
        # One temperature for both, as in the public code; padding counts, because that code does not mask it.
        temperature = ropg.score_temperature
        return lambda scores, rewards, mask, baseline, key: jnp.where(
            jnp.any(mask, axis=-1), losses.kd_loss_of_probabilities(scores, rewards, temperature=temperature), 0.0
        )
    if ropg.method == "kd":
        temperatures = {
            "score_temperature": ropg.score_temperature,
            "reward_temperature": ropg.reward_temperature,
        }
        return lambda scores, rewards, mask, baseline, key: losses.kd_loss(scores, rewards, mask, **temperatures)
    if ropg.gradient == "expected":
        return lambda scores, rewards, mask, baseline, key: losses.expected_reward_loss(scores, rewards, mask, baseline)

    def reinforce(scores, rewards, mask, baseline, key):
        items = losses.sample_items(key, scores, mask, count=min(ropg.sampled_items, scores.shape[-1]))
        return losses.reinforce_loss(scores, rewards, mask, baseline, items)

    return reinforce


def retriever_loss(
    graph: nnx.GraphDef,
    objective: Objective,
    settings: EncoderSettings = EncoderSettings(),  # noqa: B008 (frozen)
    skips: tuple[int, int] = (0, 0),
) -> LossSum:
    """Loss function: sum over a `CandidateBatch`'s questions, and the number of questions with items."""

    def loss_sum(params, batch, key):
        tokens, rewards, mask, baseline = batch
        dropout_key, sample_key = jax.random.split(key)
        scores = score_candidates(nnx.merge(graph, params), tokens, settings, skips, key=dropout_key)
        loss = objective(scores, rewards, mask, baseline, sample_key)
        return jnp.sum(loss), jnp.sum(jnp.any(mask, axis=-1).astype(jnp.float32))

    return loss_sum


def score_candidates(
    model: Bert,
    tokens: jax.Array,
    settings: EncoderSettings = EncoderSettings(),  # noqa: B008 (frozen)
    skips: tuple[int, int] = (0, 0),
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Similarities of a query and its documents, [B, N], float32: tokens [B, 1 + N, S], the query first.

    `skips` are the numbers of first tokens of queries and of documents that pooling leaves out.
    """
    questions, texts, _ = tokens.shape
    skip = jnp.tile(jnp.where(jnp.arange(texts) == 0, *skips), questions) if any(skips) else 0
    normalize = settings.normalize or settings.similarity == "cosine"
    embed = partial(model.embed, pooling=settings.pooling, normalize=normalize, skip=skip, key=key)
    vectors = model.each_text(embed, tokens)
    return jnp.einsum("bnd,bd->bn", vectors[:, 1:], vectors[:, 0], precision="highest")
