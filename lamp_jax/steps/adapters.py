"""How the adapters of many users learn at once, each from its own user's items alone, over one frozen model.

An update of all users is computed in parts: rows of any users that are about as long. Each part adds to the users'
gradients; behind the last, each user's AdamW takes its own step. So users learn as if alone (arXiv 2409.09510).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from lamp_jax.config import Lora, Optimization
from lamp_jax.losses import sequence_log_probability
from lamp_jax.models.lora import attach
from lamp_jax.models.t5 import decoder_inputs
from lamp_jax.sharding import Rules, gathered, shards
from lamp_jax.steps.update import direction


class AdapterState(NamedTuple):
    """All that training holds of U users, beside the frozen model: adapters, and the sums of the update at hand."""

    adapters: dict[str, jax.Array]
    """[U, ...] float32."""
    moments: Any
    """AdamW's, for each user."""
    gradient: dict[str, jax.Array]
    """[U, ...]: of the update's parts so far."""
    step: jax.Array
    """[U] int32: updates made."""
    loss: jax.Array
    """[U]: nats a token, summed over the updates that count (`Users.counts`)."""


class Part(NamedTuple):
    """Rows of one part of an update, of any users; those of a device's users on that device."""

    source: Any
    """[B, S] int32"""
    target: Any
    """[B, T] int32"""
    user: Any
    """[B] int32: which of its device's users a row is of."""
    weight: Any
    """[B] float32: 1 / the number of target tokens in the user's update; 0 for rows that only fill the part."""


class Users(NamedTuple):
    """What an update is for each of U users."""

    total: Any
    """[U] int32: updates that the user's training has."""
    warmup: Any
    """[U] int32: how many of them are the warm-up."""
    learns: Any
    """[U] bool: whether the user has rows in this update."""
    counts: Any
    """[U] float32: 1 where the update's loss counts (it is one of the last epoch), else 0."""


def start_users(adapters: dict[str, jax.Array], learning: Optimization, rules: Rules) -> AdapterState:
    """The state before the first update of adapters [U, ...]."""
    optimizer = optax.chain(*direction(learning))
    users = len(next(iter(adapters.values())))
    nothing = jnp.zeros((users,), jnp.float32, out_sharding=rules.out("batch"))
    moments = jax.tree.map(
        # Not all of it is made from the adapters, and so laid out as they are.
        lambda leaf: gathered(leaf, P(rules.batch)) if leaf.ndim == 1 else leaf,
        jax.jit(jax.vmap(optimizer.init))(adapters),
    )
    return AdapterState(adapters, moments, jax.tree.map(jnp.zeros_like, adapters), nothing.astype(jnp.int32), nothing)


def make_adapter_update(
    graph: nnx.GraphDef, learning: Optimization, lora: Lora, *, seed: int, shared: bool, rules: Rules
) -> Callable[[AdapterState, Any, Part, Users, Any, Any], AdapterState]:
    """The jitted `(state, the base's parameters, part, users, number, last) -> state`; one compilation for each shape.

    `number` (a few integers, others for each part of a run) draws dropout; behind the `last` part (a bool) of an update
    all its users take their step. With `shared`, all U are copies of one adapter, which learns from all rows.
    """
    optimizer = optax.chain(*direction(learning))

    def update(
        state: AdapterState, base: Any, part: Part, users: Users, number: jax.Array, last: jax.Array
    ) -> AdapterState:
        key = jax.random.key(seed, impl="rbg")
        for place in range(len(number)):
            key = jax.random.fold_in(key, number[place])

        def loss(adapters: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            chosen = _one_hot(part.user, len(users.total), rules)
            rows = {name: _rows_of(values, chosen, rules) for name, values in adapters.items()}
            losses = part.weight * _row_losses(nnx.merge(graph, base), rows, lora, part, key)
            return jnp.sum(losses), _sum_by_user(losses, chosen, rules)

        gradient, losses = jax.grad(loss, has_aux=True)(state.adapters)
        state = state._replace(
            gradient=jax.tree.map(jnp.add, state.gradient, gradient), loss=state.loss + users.counts * losses
        )
        return jax.lax.cond(last, take_step, lambda state, _: state, state, users)

    def take_step(state: AdapterState, users: Users) -> AdapterState:
        gradient = state.gradient
        if shared:
            gradient = jax.tree.map(_sum_for_all, gradient)
        changes, moments = jax.vmap(optimizer.update)(gradient, state.moments, state.adapters)
        rate = learning_rate(learning.learning_rate, state.step, users.warmup, users.total)
        adapters = jax.tree.map(lambda old, change: old - _wide(rate, old) * change, state.adapters, changes)

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(_wide(users.learns, old), new, old)

        return AdapterState(
            jax.tree.map(keep, adapters, state.adapters),
            jax.tree.map(keep, moments, state.moments),
            jax.tree.map(jnp.zeros_like, gradient),
            state.step + users.learns,
            state.loss,
        )

    return jax.jit(update, donate_argnums=0)


def _sum_for_all(values: jax.Array) -> jax.Array:
    """[U, ...] -> the same shape and layout: everywhere the sum over U."""
    whole = jnp.broadcast_to(jnp.sum(values, axis=0, keepdims=True), values.shape)
    return gathered(whole, jax.typeof(values).sharding.spec)


def learning_rate(peak: float, step: jax.Array, warmup: jax.Array, total: jax.Array) -> jax.Array:
    """The rate of update `step` (from 0) of `total`, each [U]: up to the peak in the warm-up, then down to 0."""
    rise = step / jnp.maximum(warmup, 1)
    fall = 1 - (step - warmup) / jnp.maximum(total - warmup, 1)
    return peak * jnp.maximum(jnp.where(step < warmup, rise, fall), 0.0)


def _row_losses(model: Any, rows: Mapping[str, jax.Array], lora: Lora, part: Part, key: jax.Array) -> jax.Array:
    """The sum over each row's target tokens of their negative log-probability, [B]."""
    encoder_key, decoder_key, adapter_key = jax.random.split(key, 3)
    model = attach(model, rows, lora, key=adapter_key)
    mask = model.source_mask(part.source)
    encoded = model.encode(part.source, mask=mask, key=encoder_key)
    logits = model.decode(decoder_inputs(part.target, model.config), encoded, mask, key=decoder_key)
    return -sequence_log_probability(logits, part.target)


# Users [U, ...] and rows [B, ...] are split over devices alike, so that all a row needs is on its own device. What is
# whose is said by a matrix of ones and zeros: the gradient of a product is a product, that of a look-up a scatter.


def _one_hot(user: jax.Array, users: int, rules: Rules) -> jax.Array:
    """[B] -> [devices, B / devices, U / devices]: 1 where a device's row is of its user."""
    split = shards(rules.batch)
    user = jnp.reshape(user, (split, -1), out_sharding=rules.out("batch", None))
    return (user[:, :, None] == jnp.arange(users // split)).astype(jnp.float32)


def _rows_of(values: jax.Array, chosen: jax.Array, rules: Rules) -> jax.Array:
    """Of users [U, ...], those of the rows, [B, ...]."""
    split, rows, users = chosen.shape
    layout = _rest(values, rules)
    own = jnp.reshape(values, (split, users, *values.shape[1:]), out_sharding=layout(2))
    found = jnp.einsum("gbu,gu...->gb...", chosen, own, precision="highest", out_sharding=layout(2))
    return jnp.reshape(found, (split * rows, *values.shape[1:]), out_sharding=layout(1))


def _rest(values: jax.Array, rules: Rules) -> Callable[[int], Any]:
    """The layout of values whose first axis becomes so many."""
    if rules.out() is None:
        return lambda axes: None
    first, *rest = (*jax.typeof(values).sharding.spec,)
    return lambda axes: P(first, *(None,) * (axes - 1), *rest)


def _sum_by_user(losses: jax.Array, chosen: jax.Array, rules: Rules) -> jax.Array:
    """[B] -> [U]"""
    split, rows, users = chosen.shape
    losses = jnp.reshape(losses, (split, rows), out_sharding=rules.out("batch", None))
    found = jnp.einsum("gb,gbu->gu", losses, chosen, precision="highest", out_sharding=rules.out("batch", None))
    return jnp.reshape(found, (split * users,), out_sharding=rules.out("batch"))


def _wide(values: jax.Array, like: jax.Array) -> jax.Array:
    """[U] -> [U, 1, ...], as many axes as another array."""
    return jnp.reshape(values, (*values.shape, *(1,) * (like.ndim - 1)))
