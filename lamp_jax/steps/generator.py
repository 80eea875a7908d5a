"""Loss of a generator on prompts and answers: the cross-entropy of the answers' tokens."""

from flax import nnx

from lamp_jax.losses import token_cross_entropy
from lamp_jax.models.generator import Generator
from lamp_jax.steps.update import LossSum


def generator_loss(graph: nnx.GraphDef) -> LossSum:
    """Loss function: sum of nats over the target tokens of a batch (source [B, S], target [B, T]), and their number."""

    def loss_sum(params, batch, key):
        source, target = batch
        model: Generator = nnx.merge(graph, params)
        return token_cross_entropy(model.target_logits(source, target, key=key), target, pad=model.config.pad_token_id)

    return loss_sum
