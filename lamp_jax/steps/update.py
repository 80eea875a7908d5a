"""Training update of all components: AdamW on the gradient of a mean loss, with gradient accumulation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lamp_jax.config import Learning, Optimization
from lamp_jax.sharding import Rules, check_divides

LossSum = Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]]
"""Function: parameters, batch, dropout key -> sum of the losses, and their number (of tokens, or of questions)."""


class TrainState(NamedTuple):
    """State of training, sufficient to resume. `step` is the number of updates, int32."""

    step: jax.Array
    params: Any
    optimizer: Any


def make_optimizer(learning: Learning, total_steps: int) -> optax.GradientTransformation:
    """AdamW with clipped gradients; linear warm-up for `warmup_ratio` of the updates, then linear decay to 0.

    Weight decay excludes biases, the norms' scales and the relative position biases, as usual. With the step size
    "relative", each tensor's update is multiplied by the root mean square of its values, as in Adafactor (Shazeer and
    Stern 2018, section 8), with which T5 was trained: its embeddings are initially ten times as large as its other
    matrices.
    """
    warmup, peak = round(learning.warmup_ratio * total_steps), learning.learning_rate
    rise = optax.linear_schedule(0.0, peak, warmup)
    fall = optax.linear_schedule(peak, 0.0, max(total_steps - warmup, 1))
    schedule = optax.join_schedules([rise, fall], [warmup])
    return optax.chain(*direction(learning), optax.scale_by_learning_rate(schedule))


def direction(learning: Optimization) -> tuple[optax.GradientTransformation, ...]:
    """Update before it is negated and scaled by the learning rate."""
    return (
        optax.clip_by_global_norm(learning.clip),
        optax.scale_by_adam(),
        optax.add_decayed_weights(learning.weight_decay, _decayed),
        optax.scale_by_param_block_rms() if learning.step_size == "relative" else optax.identity(),
    )


def start(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first update."""
    return TrainState(jnp.zeros((), jnp.int32, out_sharding=Rules().out()), params, jax.jit(optimizer.init)(params))


def make_update(
    loss_sum: LossSum, optimizer: optax.GradientTransformation, *, seed: int, accumulation: int, rules: Rules
) -> jax.stages.Wrapped:
    """Jitted update `(state, batch) -> (state, metrics)`; a batch is a tree of arrays [B, ...].

    It is computed in `accumulation` microbatches. The loss is the mean over all tokens or questions that count in the
    update's batch, however they are distributed over the microbatches. `metrics` has scalars: `loss` and
    `gradient_norm` (before clipping).
    """

    def split(rows: jax.Array) -> jax.Array:
        """Microbatches, [B, ...] -> [A, B / A, ...]; every device keeps its rows."""
        shape = (rows.shape[0] // accumulation, accumulation, *rows.shape[1:])
        check_divides("microbatch size", shape[0], rules.batch)
        sharding = rules.out("batch", *(None,) * (len(shape) - 1))
        return jnp.swapaxes(jnp.reshape(rows, shape, out_sharding=sharding), 0, 1)

    def update(state: TrainState, batch: Any):
        key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), state.step)

        def learn(microbatch: Any, place: jax.Array | int):
            (loss, count), gradient = jax.value_and_grad(loss_sum, has_aux=True)(
                state.params, microbatch, jax.random.fold_in(key, place)
            )
            return gradient, loss, count

        if accumulation == 1:  # without an accumulator, which would be a copy of the parameters
            gradient, loss, count = learn(batch, 0)
        else:
            zeros = (jax.tree.map(jnp.zeros_like, state.params), jnp.zeros(()), jnp.zeros(()))
            (gradient, loss, count), _ = jax.lax.scan(
                lambda sums, microbatch: (jax.tree.map(jnp.add, sums, learn(*microbatch)), None),
                zeros,
                (jax.tree.map(split, batch), jnp.arange(accumulation)),
            )
        gradient = jax.tree.map(lambda leaf: leaf / jnp.maximum(count, 1), gradient)
        changes, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, changes)
        metrics = {"loss": loss / jnp.maximum(count, 1), "gradient_norm": optax.tree.norm(gradient)}
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return jax.jit(update, donate_argnums=0)


def _decayed(params: Any) -> Any:
    """Mask of weight decay: True for matrices and embeddings, False for biases, norms and relative position biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not _is_spared(path), params)


def _is_spared(path: tuple[Any, ...]) -> bool:
    return any(word in jax.tree_util.keystr(path) for word in ("norm", "bias", "_positions"))
