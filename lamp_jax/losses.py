"""Losses of the trained models, each by its formula."""

import jax
import jax.numpy as jnp

IGNORED = -100
"""Label of HF's collators for tokens that are not to be predicted."""


def is_target(labels: jax.Array, *, pad: int) -> jax.Array:
    """True at labels to be predicted: neither the model's padding id nor negative, as NO_TOKEN and IGNORED are."""
    return (labels != pad) & (labels >= 0)


def token_log_probabilities(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log softmax(logits)[label]: [..., V] and [...] -> [...], float32. Negative labels give any finite number."""
    logits = logits.astype(jnp.float32)
    # A masked sum, not a gather: its gradient is no scatter, and it works where the vocabulary is split over devices.
    chosen = jnp.arange(logits.shape[-1]) == labels[..., None]
    return jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1) - jax.nn.logsumexp(logits, axis=-1)


def token_cross_entropy(logits: jax.Array, labels: jax.Array, *, pad: int) -> tuple[jax.Array, jax.Array]:
    """Sum over the label tokens of -log p(y_t | y_<t, x), and the number of these tokens.

    loss = sum / count is HF's: the mean over all target tokens of the batch. Sums and counts of microbatches add up to
    those of the batch, so accumulation is exact. Logits [B, T, V], labels [B, T].
    """
    counted = is_target(labels, pad=pad)
    log_p = token_log_probabilities(logits, labels)
    return -jnp.sum(jnp.where(counted, log_p, 0.0)), jnp.sum(counted.astype(jnp.float32))


def sequence_log_probability(logits: jax.Array, labels: jax.Array, *, pad: int) -> jax.Array:
    """log p(y | x) = sum_t log p(y_t | y_<t, x) over a row's label tokens, `</s>` included: [B, T, V] -> [B]."""
    counted = is_target(labels, pad=pad)
    return jnp.sum(jnp.where(counted, token_log_probabilities(logits, labels), 0.0), axis=-1)


# --- learning to rank from feedback: scores and rewards [B, N] of N items, `mask` [B, N] True at items that exist.
#
# All return one loss for each question, [B] float32; a question without items gives 0. Equations are those of
# ROPG/RSPG (Salemi et al. 2024, arXiv 2404.05970).

_NO_ITEM = -1e9  # finite, so that a question without items gives numbers


def log_policy(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """log pi(d | x) over a question's items, Eq. 1: [B, N] -> [B, N]; far below any other where there is no item."""
    return jax.nn.log_softmax(jnp.where(mask, scores.astype(jnp.float32), _NO_ITEM), axis=-1)


def kd_loss(
    scores: jax.Array,
    rewards: jax.Array,
    mask: jax.Array,
    *,
    score_temperature: float = 1.0,
    reward_temperature: float = 1.0,
) -> jax.Array:
    """ROPG-KD and RSPG: KL(p_reward || p_score), Eq. 4 and Eq. 5 to 7 with corrected sign.

    p_reward = softmax(reward / T'), p_score = softmax(score / T). The sum over items of
    p_reward log(p_reward / p_score) is multiplied by T T', so that gradients keep their size at other temperatures.
    """
    log_reward = log_policy(rewards / reward_temperature, mask)
    log_score = log_policy(scores / score_temperature, mask)
    terms = jnp.where(mask, jnp.exp(log_reward) * (log_reward - log_score), 0.0)
    return score_temperature * reward_temperature * jnp.sum(terms, axis=-1)


def kd_loss_of_probabilities(scores: jax.Array, rewards: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """The public code's loss for ROPG-KD: cross-entropy of a softmax of probabilities, padding included."""
    target = jax.nn.softmax(rewards / temperature, axis=-1)
    return -jnp.sum(target * jax.nn.log_softmax(jax.nn.softmax(scores / temperature, axis=-1), axis=-1), axis=-1)


def kl_of_scaled_log_probabilities(
    scores: jax.Array, rewards: jax.Array, mask: jax.Array, *, temperature: float = 1.0
) -> jax.Array:
    """The public code's loss for RSPG: sum p_reward (log p_reward - log p_score / T).

    T has little effect other than scaling the loss. Equal to `kd_loss` for T = 1.
    """
    log_reward, log_score = log_policy(rewards, mask), log_policy(scores, mask)
    return jnp.sum(jnp.where(mask, jnp.exp(log_reward) * (log_reward - log_score / temperature), 0.0), axis=-1)


def expected_reward_loss(scores: jax.Array, rewards: jax.Array, mask: jax.Array, baseline: jax.Array) -> jax.Array:
    """ROPG-RL without sampling: -sum_d pi(d | x) (reward(d) - baseline), the expectation in Eq. 3; `baseline` [B].

    Its gradient is the expectation of the REINFORCE gradient, because every item's reward is known.
    """
    gain = jnp.where(mask, rewards - baseline[:, None], 0.0)
    return -jnp.sum(jnp.exp(log_policy(scores, mask)) * gain, axis=-1)


def sample_items(key: jax.Array, scores: jax.Array, mask: jax.Array, *, count: int) -> jax.Array:
    """`count` items drawn from the policy without replacement, in the order of the draws: [B, N] -> [B, count] int.

    A Plackett-Luce draw: the largest of the scores with Gumbel noise. Where a question has fewer items than `count`,
    the last entries are items that do not exist.
    """
    noisy = jnp.where(mask, scores.astype(jnp.float32) + jax.random.gumbel(key, scores.shape), _NO_ITEM)
    return jax.lax.top_k(jax.lax.stop_gradient(noisy), count)[1]


def reinforce_loss(
    scores: jax.Array, rewards: jax.Array, mask: jax.Array, baseline: jax.Array, items: jax.Array
) -> jax.Array:
    """ROPG-RL: -(mean reward of the sampled items - baseline) log p(items), Eq. 2 and 3 (there, one item).

    `items` [B, K] were drawn in this order without replacement (sample_items), so p is a product over the draws, each
    from the items that are left (Plackett-Luce). `baseline` [B]: the mean reward of the K items that the un-tuned
    retriever puts first. Items that do not exist count in neither.
    """
    drawn = items[..., None] == jnp.arange(scores.shape[-1])  # [B, K, N]
    earlier = jnp.cumsum(drawn, axis=1) - drawn
    counted = jnp.any(drawn & mask[:, None, :], axis=-1)
    left = mask[:, None, :] & (earlier == 0)
    log_p = jnp.sum(jnp.where(drawn, log_policy(scores[:, None, :], left), 0.0), axis=-1)
    reward = jnp.sum(jnp.where(drawn, rewards[:, None, :], 0.0), axis=-1)
    mean = jnp.sum(jnp.where(counted, reward, 0.0), axis=-1) / jnp.maximum(jnp.sum(counted, axis=-1), 1)
    gain = jax.lax.stop_gradient(mean - baseline)
    return jnp.where(jnp.any(counted, axis=-1), -gain * jnp.sum(jnp.where(counted, log_p, 0.0), axis=-1), 0.0)
