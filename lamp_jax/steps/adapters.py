"""How the adapters of many users learn at once, each from its own user's items alone, over one frozen model.

What is computed at once is a part: rows of any users that are about as long. It adds to the users' gradients; a user
whose update it completes takes a step of their own AdamW. So users learn as if alone (arXiv 2409.09510). A user whose
numbers are no more finite stops learning, and disturbs no other.
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
    """All that training holds of U users, beside the frozen model: adapters, and the sums of their updates at hand."""

    adapters: dict[str, jax.Array]
    """[U, ...] float32."""
    moments: Any
    """AdamW's, for each user."""
    gradient: dict[str, jax.Array]
    """[U, ...]: of the updates at hand, so far."""
    step: jax.Array
    """[U] int32: updates made."""
    loss: jax.Array
    """[U]: nats a token, summed over the updates that count (`Users.counts`); NaN for a user who has diverged."""
    partial: jax.Array
    """[U]: nats a token of the updates at hand, so far."""


class MicrobatchArrays(NamedTuple):
    """Rows that are computed at once, of any users; those of a device's users on that device."""

    source: Any
    """[B, S] int32"""
    target: Any
    """[B, T] int32"""
    user: Any
    """[B] int32: which of its device's users a row is of."""
    weight: Any
    """[B] float32: 1 / the number of target tokens in the user's update; 0 for rows that only fill the part."""


class Users(NamedTuple):
    """What a part is for each of U users."""

    total: Any
    """[U] int32: updates that the user's training has."""
    warmup: Any
    """[U] int32: how many of them are the warm-up."""
    ends: Any
    """[U] bool: whether the user's update is complete with this part."""
    counts: Any
    """[U] float32: 1 where the loss of the update that is completed counts (it is one of the last epoch), else 0."""


def start_users(adapters: dict[str, jax.Array], learning: Optimization, rules: Rules) -> AdapterState:
    """The state before the first update of adapters [U, ...]."""
    users = len(next(iter(adapters.values())))
    nothing = jnp.zeros((users,), jnp.float32, out_sharding=rules.out("batch"))
    moments = jax.tree.map(
        # Not all of it is made from the adapters, and so laid out as they are.
        lambda leaf: gathered(leaf, P(rules.batch)) if leaf.ndim == 1 else leaf,
        _first_moments(learning)(adapters),
    )
    step, loss, partial = nothing.astype(jnp.int32), nothing, jnp.copy(nothing)
    return AdapterState(adapters, moments, jax.tree.map(jnp.zeros_like, adapters), step, loss, partial)


@cache
def _first_moments(learning: Optimization) -> Callable[[Any], Any]:
    """Compiled once, for all blocks of users."""
    return jax.jit(jax.vmap(optax.chain(*direction(learning)).init))


def make_adapter_update(
    graph: nnx.GraphDef, learning: Optimization, lora: Lora, *, seed: int, shared: bool, rules: Rules
) -> Callable[[AdapterState, Any, MicrobatchArrays, Users, Any, Any], AdapterState]:
    """The jitted `(state, the base's parameters, part, users, number, steps) -> state`; one compilation for each shape.

    `number` (a few integers, others for each part of a run) draws dropout; `steps` (a bool) says whether any user's
    update is complete. With `shared`, all U are copies of one adapter, which learns from all rows.
    """
    optimizer = optax.chain(*direction(learning))

    def update(
        state: AdapterState, base: Any, part: MicrobatchArrays, users: Users, number: jax.Array, steps: jax.Array
    ) -> AdapterState:
        key = jax.random.key(seed, impl="threefry2x32")
        for place in range(len(number)):
            key = jax.random.fold_in(key, number[place])

        def loss(rows: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            losses = part.weight * _row_losses(nnx.merge(graph, base), rows, lora, part, key)
            return jnp.sum(losses), losses

        chosen = _one_hot(part.user, len(users.total), rules)
        rows = {name: _rows_of(values, chosen, rules) for name, values in state.adapters.items()}
        gradient, losses = jax.grad(loss, has_aux=True)(rows)
        finite = _are_finite(losses, gradient, rules)
        gradient = {
            name: _sums_of(jnp.where(_wide(finite, one), one, 0), chosen, rules) for name, one in gradient.items()
        }
        lost = _sums_of((~finite & (part.weight > 0)).astype(jnp.float32), chosen, rules)
        partial = state.partial + _sums_of(jnp.where(finite, losses, 0), chosen, rules)
        state = state._replace(
            gradient=jax.tree.map(jnp.add, state.gradient, gradient), partial=jnp.where(lost > 0, jnp.nan, partial)
        )
        return jax.lax.cond(steps, take_step, lambda state, _: state, state, users)

    def take_step(state: AdapterState, users: Users) -> AdapterState:
        gradient, partial = state.gradient, state.partial
        if shared:
            gradient, partial = jax.tree.map(_sum_for_all, (gradient, partial))
        # A norm that is not finite would be clipped to an update of nothing.
        partial = jnp.where(jnp.isfinite(jax.vmap(optax.tree.norm)(gradient)), partial, jnp.nan)
        loss = state.loss + jnp.where(users.counts > 0, partial, 0 * partial)  # what is no number stays none
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
    """The new values [U, ...] of some users [U], the old ones of the others."""
    return jax.tree.map(lambda new, old: jnp.where(_wide(users, old), new, old), new, old)


def _sum_for_all(values: jax.Array) -> jax.Array:
    """[U, ...] -> the same shape and layout: everywhere the sum over U."""
    whole = jnp.broadcast_to(jnp.sum(values, axis=0, keepdims=True), values.shape)
    return gathered(whole, jax.typeof(values).sharding.spec)


def learning_rate(peak: float, step: jax.Array, warmup: jax.Array, total: jax.Array) -> jax.Array:
    """The rate of update `step` (from 0) of `total`, each [U]: up to the peak in the warm-up, then down to 0."""
    rise = step / jnp.maximum(warmup, 1)
    fall = 1 - (step - warmup) / jnp.maximum(total - warmup, 1)
    return peak * jnp.maximum(jnp.where(step < warmup, rise, fall), 0.0)


def _row_losses(
    model: Any, rows: Mapping[str, jax.Array], lora: Lora, part: MicrobatchArrays, key: jax.Array
) -> jax.Array:
    """The sum over each row's target tokens of their negative log-probability, [B]."""
    *_, adapter_key = split_key(key, 3)  # the model's dropout takes the first two of this key
    model = attach(model, rows, lora, key=adapter_key)
    logits = model.target_logits(part.source, part.target, key=key)
    return -sequence_log_probability(logits, part.target, pad=model.config.pad_token_id)


# Users [U, ...] and rows [B, ...] are split over devices alike, so that all a row needs is on its own device. What is
# whose is said by a matrix of ones and zeros: a look-up and its sums are products with it.


def _one_hot(user: jax.Array, users: int, rules: Rules) -> jax.Array:
    """[B] -> [devices, B / devices, U / devices]: 1 where a device's row is of its user."""
    split = shards(rules.batch)
    user = jnp.reshape(user, (split, -1), out_sharding=rules.out("batch", None))
    return (user[:, :, None] == jnp.arange(users // split)).astype(jnp.float32)


def _rows_of(values: jax.Array, chosen: jax.Array, rules: Rules) -> jax.Array:
    """Of users [U, ...], those of the rows, [B, ...]."""
    return _product("gbu,gu...->gb...", chosen, values, rules)


def _sums_of(rows: jax.Array, chosen: jax.Array, rules: Rules) -> jax.Array:
    """Of rows [B, ...], the sums over those of each user, [U, ...]."""
    return _product("gbu,gb...->gu...", chosen, rows, rules)


def _product(subscripts: str, chosen: jax.Array, values: jax.Array, rules: Rules) -> jax.Array:
    """The products of each device's part of both; the axes behind the first stay as they are."""
    rest, layout = values.shape[1:], _rest(values, rules)
    own = jnp.reshape(values, (len(chosen), len(values) // len(chosen), *rest), out_sharding=layout(2))
    found = jnp.einsum(subscripts, chosen, own, precision="highest", out_sharding=layout(2))
    return jnp.reshape(found, (len(chosen) * found.shape[1], *rest), out_sharding=layout(1))


def _rest(values: jax.Array, rules: Rules) -> Callable[[int], Any]:
    """The layout of values whose first axis becomes so many."""
    if rules.out() is None:
        return lambda axes: None
    first, *rest = (*jax.typeof(values).sharding.spec,)
    return lambda axes: P(first, *(None,) * (axes - 1), *rest)


def _are_finite(losses: jax.Array, gradient: Mapping[str, jax.Array], rules: Rules) -> jax.Array:
    """[B] bool: whether a row's loss and all of its gradient are finite."""
    sums = (jnp.sum(one, axis=tuple(range(1, one.ndim))) for one in gradient.values())
    return jnp.isfinite(sum(sums, losses))


def _wide(values: jax.Array, like: jax.Array) -> jax.Array:
    """[U] -> [U, 1, ...], as many axes as another array."""
    return jnp.reshape(values, (*values.shape, *(1,) * (like.ndim - 1)))
