"""Simultaneous training of many users' adapters, each on its own user's items, over one frozen model.

A microbatch has rows of any users, of similar length. Its gradients are added to the users' gradients; a user whose
update is complete takes an AdamW step with a separate optimizer state. The result is that of separate training (arXiv
2409.09510). A user whose values are no longer finite stops training and does not affect the others.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from lamp_jax.config import Lora, Optimization
from lamp_jax.losses import sequence_log_probability
from lamp_jax.models.dropout import split_key
from lamp_jax.models.lora import attach
from lamp_jax.sharding import Rules, gathered, shards
from lamp_jax.steps.update import direction


class AdapterState(NamedTuple):
    """Training state of U users, without the frozen model: adapters, optimizer states, gradient accumulators."""

    adapters: dict[str, jax.Array]
    """[U, ...] float32: arrays by name."""
    moments: Any
    """Optimizer state of AdamW, for each user."""
    gradient: dict[str, jax.Array]
    """[U, ...]: accumulated gradient of the current update."""
    step: jax.Array
    """[U] int32: number of completed updates."""
    loss: jax.Array
    """[U]: nats per token, summed over the updates that count (`Users.counts`); NaN for a user who has diverged."""
    partial: jax.Array
    """[U]: nats per token of the current update, accumulated so far."""


class MicrobatchArrays(NamedTuple):
    """Arrays of a microbatch: rows of any users, each on the device of its user."""

    source: Any
    """[B, S] int32: tokens of the prompts."""
    target: Any
    """[B, T] int32: tokens of the answers."""
    user: Any
    """[B] int32: index of each row's user among the users of its device."""
    weight: Any
    """[B] float32: 1 / the number of target tokens in the user's update; 0 for padding rows."""


class Users(NamedTuple):
    """State of each of U users for one microbatch."""

    total: Any
    """[U] int32: number of updates in the user's training."""
    warmup: Any
    """[U] int32: number of warm-up updates."""
    ends: Any
    """[U] bool: whether the user's update is complete with this microbatch."""
    counts: Any
    """[U] float32: 1 if the loss of the completed update counts (an update of the last epoch), else 0."""


def start_users(adapters: dict[str, jax.Array], learning: Optimization, rules: Rules) -> AdapterState:
    """State before the first update of adapters [U, ...]."""
    users = len(next(iter(adapters.values())))
    zeros = jnp.zeros((users,), jnp.float32, out_sharding=rules.out("batch"))
    moments = jax.tree.map(
        # Counters are not derived from the adapters, and so do not have their sharding.
        lambda leaf: gathered(leaf, P(rules.batch)) if leaf.ndim == 1 else leaf,
        _first_moments(learning)(adapters),
    )
    step, loss, partial = zeros.astype(jnp.int32), zeros, jnp.copy(zeros)
    return AdapterState(adapters, moments, jax.tree.map(jnp.zeros_like, adapters), step, loss, partial)


@cache
def _first_moments(learning: Optimization) -> Callable[[Any], Any]:
    """Initial optimizer state of users, as a function that is compiled once for all cohorts."""
    return jax.jit(jax.vmap(optax.chain(*direction(learning)).init))


def make_adapter_update(
    graph: nnx.GraphDef, learning: Optimization, lora: Lora, *, seed: int, shared: bool, rules: Rules
) -> Callable[[AdapterState, Any, MicrobatchArrays, Users, Any, Any], AdapterState]:
    """Jitted `(state, base parameters, microbatch, users, number, steps) -> state`; compiled once per shape.

    `number` (a few integers, different for each microbatch of a run) seeds dropout; `steps` (a bool) is whether any
    user's update is complete. With `shared`, all U are copies of one adapter, which is trained on all rows.
    """
    optimizer = optax.chain(*direction(learning))

    def update(
        state: AdapterState, base: Any, microbatch: MicrobatchArrays, users: Users, number: jax.Array, steps: jax.Array
    ) -> AdapterState:
        key = jax.random.key(seed, impl="threefry2x32")
        for place in range(len(number)):
            key = jax.random.fold_in(key, number[place])

        def loss(rows: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            losses = microbatch.weight * _row_losses(nnx.merge(graph, base), rows, lora, microbatch, key)
            return jnp.sum(losses), losses

        chosen = _one_hot(microbatch.user, len(users.total), rules)
        rows = {name: _rows_of(values, chosen, rules) for name, values in state.adapters.items()}
        gradient, losses = jax.grad(loss, has_aux=True)(rows)
        finite = _are_finite(losses, gradient, rules)
        gradient = {
            name: _sums_of(jnp.where(_wide(finite, one), one, 0), chosen, rules) for name, one in gradient.items()
        }
        diverged = _sums_of((~finite & (microbatch.weight > 0)).astype(jnp.float32), chosen, rules)
        partial = state.partial + _sums_of(jnp.where(finite, losses, 0), chosen, rules)
        state = state._replace(
            gradient=jax.tree.map(jnp.add, state.gradient, gradient), partial=jnp.where(diverged > 0, jnp.nan, partial)
        )
        return jax.lax.cond(steps, take_step, lambda state, _: state, state, users)

    def take_step(state: AdapterState, users: Users) -> AdapterState:
        gradient, partial = state.gradient, state.partial
        if shared:
            gradient, partial = jax.tree.map(_sum_for_all, (gradient, partial))
        # Clipping would turn a norm that is not finite into a zero update.
        partial = jnp.where(jnp.isfinite(jax.vmap(optax.tree.norm)(gradient)), partial, jnp.nan)
        loss = state.loss + jnp.where(users.counts > 0, partial, 0 * partial)  # NaN stays NaN
        changes, moments = jax.vmap(optimizer.update)(gradient, state.moments, state.adapters)
        rate = learning_rate(learning.learning_rate, state.step, users.warmup, users.total)
        adapters = jax.tree.map(lambda old, change: old - _wide(rate, old) * change, state.adapters, changes)
        learns = users.ends & jnp.isfinite(loss)
        return AdapterState(
            adapters=_choose(learns, adapters, state.adapters),
            moments=_choose(learns, moments, state.moments),
            gradient=_choose(users.ends, jax.tree.map(jnp.zeros_like, gradient), state.gradient),
            step=state.step + users.ends,
            loss=_choose(users.ends, loss, state.loss),
            partial=_choose(users.ends, jnp.zeros_like(loss), state.partial),
        )

    return jax.jit(update, donate_argnums=0)


def _choose(users: jax.Array, new: Any, old: Any) -> Any:
    """Selection of new values [U, ...] where `users` [U] is true, old values elsewhere."""
    return jax.tree.map(lambda new, old: jnp.where(_wide(users, old), new, old), new, old)


def _sum_for_all(values: jax.Array) -> jax.Array:
    """Sum over U of [U, ...], broadcast to the same shape and sharding."""
    total = jnp.broadcast_to(jnp.sum(values, axis=0, keepdims=True), values.shape)
    return gathered(total, jax.typeof(values).sharding.spec)


def learning_rate(peak: float, step: jax.Array, warmup: jax.Array, total: jax.Array) -> jax.Array:
    """Learning rate of update `step` (from 0) of `total`, each [U]: linear warm-up to the peak, then decay to 0."""
    rise = step / jnp.maximum(warmup, 1)
    fall = 1 - (step - warmup) / jnp.maximum(total - warmup, 1)
    return peak * jnp.maximum(jnp.where(step < warmup, rise, fall), 0.0)


def _row_losses(
    model: Any, rows: Mapping[str, jax.Array], lora: Lora, microbatch: MicrobatchArrays, key: jax.Array
) -> jax.Array:
    """Negative log-probability of each row's target tokens, summed, [B]."""
    *_, adapter_key = split_key(key, 3)  # the model's dropout uses the first two
    model = attach(model, rows, lora, key=adapter_key)
    logits = model.target_logits(microbatch.source, microbatch.target, key=key)
    return -sequence_log_probability(logits, microbatch.target, pad=model.config.pad_token_id)


# Users [U, ...] and rows [B, ...] are sharded alike, so that a row and its user are on the same device. A one-hot
# matrix assigns rows to users: look-ups and sums per user are products with it.


def _one_hot(user: jax.Array, users: int, rules: Rules) -> jax.Array:
    """One-hot matrix of rows and users, [B] -> [devices, B / devices, U / devices]: 1 where the row is the user's."""
    split = shards(rules.batch)
    user = jnp.reshape(user, (split, -1), out_sharding=rules.out("batch", None))
    return (user[:, :, None] == jnp.arange(users // split)).astype(jnp.float32)


def _rows_of(values: jax.Array, chosen: jax.Array, rules: Rules) -> jax.Array:
    """Look-up of each row's user: values of users [U, ...] -> values of rows [B, ...]."""
    return _product("gbu,gu...->gb...", chosen, values, rules)


def _sums_of(rows: jax.Array, chosen: jax.Array, rules: Rules) -> jax.Array:
    """Sums per user: values of rows [B, ...] -> [U, ...]."""
    return _product("gbu,gb...->gu...", chosen, rows, rules)


def _product(subscripts: str, chosen: jax.Array, values: jax.Array, rules: Rules) -> jax.Array:
    """Product with the one-hot matrix on each device's shard; the axes after the first are unchanged."""
    rest, spec = values.shape[1:], _rest(values, rules)
    own = jnp.reshape(values, (len(chosen), len(values) // len(chosen), *rest), out_sharding=spec(2))
    found = jnp.einsum(subscripts, chosen, own, precision="highest", out_sharding=spec(2))
    return jnp.reshape(found, (len(chosen) * found.shape[1], *rest), out_sharding=spec(1))


def _rest(values: jax.Array, rules: Rules) -> Callable[[int], Any]:
    """Function: number of leading axes into which the first axis is split -> partition spec of the values."""
    if rules.out() is None:
        return lambda axes: None
    first, *rest = (*jax.typeof(values).sharding.spec,)
    return lambda axes: P(first, *(None,) * (axes - 1), *rest)


def _are_finite(losses: jax.Array, gradient: Mapping[str, jax.Array], rules: Rules) -> jax.Array:
    """Whether a row's loss and its entire gradient are finite, [B] bool."""
    sums = (jnp.sum(one, axis=tuple(range(1, one.ndim))) for one in gradient.values())
    return jnp.isfinite(sum(sums, losses))


def _wide(values: jax.Array, like: jax.Array) -> jax.Array:
    """Values [U] as [U, 1, ...], with as many axes as `like`."""
    return jnp.reshape(values, (*values.shape, *(1,) * (like.ndim - 1)))
