import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamp_jax.decoding.labels import score_labels
from lamp_jax.losses import sequence_log_probability
from lamp_jax.models.generator import decoder_inputs
from tests.models.tiny import GATED, TIED, build, make_batch

LABELS = np.array([[5, 1, 0, 0], [7, 8, 9, 1], [1, 0, 0, 0]])


@pytest.mark.parametrize("config", [TIED, GATED], ids=["tied", "gated"])
def test_label_scores_equal_a_full_forward_pass_per_label(config):
    model = build(config)
    tokens, _ = make_batch()

    @jax.jit
    def score_one(label):
        labels = jnp.broadcast_to(label, (len(tokens), len(label)))
        logits = model.decode(decoder_inputs(labels, config), model.encode(tokens), model.source_mask(tokens))
        return sequence_log_probability(logits, labels, pad=0)

    scores = jax.jit(score_labels)(model, tokens, LABELS)
    assert scores.shape == (len(tokens), len(LABELS))
    np.testing.assert_allclose(scores, np.stack([score_one(label) for label in LABELS], axis=1), atol=1e-4)


def test_probabilities_of_all_sequences_sum_to_one():
    model = build(GATED)
    tokens, _ = make_batch(rows=2)
    # Every first token with any continuation: a label of one token, without `</s>`.
    labels = np.arange(1, 48)[:, None]
    # Token 0 is padding, hence no label; its probability is what is left.
    total = jnp.exp(jax.jit(score_labels)(model, tokens, labels)).sum(axis=1)
    encoded, mask = model.encode(tokens), model.source_mask(tokens)
    first = jax.nn.softmax(model.decode(jnp.zeros((2, 1), jnp.int32), encoded, mask)[:, 0])
    np.testing.assert_allclose(total, 1 - first[:, 0], atol=1e-5)
