"""How a T5 learns from prompts and answers: the cross-entropy of the answers' tokens."""

import jax
from flax import nnx

from lamp_jax.losses import token_cross_entropy
from lamp_jax.models.t5 import decoder_inputs
from lamp_jax.steps.update import LossSum


def generator_loss(graph: nnx.GraphDef) -> LossSum:
    """Nats over the target tokens of a batch (source [B, S], target [B, T]), and their number."""

    def loss_sum(params, batch, key):
        source, target = batch
        model = nnx.merge(graph, params)
        encoder_key, decoder_key = jax.random.split(key)
        encoded = model.encode(source, key=encoder_key)
        read = decoder_inputs(target, model.config)
        logits = model.decode(read, encoded, model.source_mask(source), key=decoder_key)
        return token_cross_entropy(logits, target, pad=model.config.pad_token_id)

    return loss_sum
