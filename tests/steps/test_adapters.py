"""Adapters trained in a cohort: equal to those of each user's separate training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lamp_jax.compiler import costs
from lamp_jax.compiler.program import Program
from lamp_jax.inputs.batches import Example, pad_rows
from lamp_jax.inputs.microbatches import UserExamples
from lamp_jax.models.generator import decoder_inputs
from lamp_jax.models.lora import adapter_shapes, attach
from lamp_jax.models.t5 import T5
from lamp_jax.options import Learning, Lora, Optimization, TrainAdapters
from lamp_jax.sharding import RULES, make_mesh
from lamp_jax.steps.adapters import MicrobatchArrays, Users, learning_rate, make_adapter_update, start_users
from lamp_jax.steps.generator import generator_loss
from lamp_jax.steps.update import TrainState, make_optimizer, make_update
from lamp_jax.training.adapters import AdapterCohorts
from tests.models.tiny import GATED, build

CONFIG = replace(GATED, num_layers=1, num_decoder_layers=1, dropout_rate=0.0)
LORA = Lora(rank=2, alpha=8.0, targets=("q", "o"), dropout=0.0)
LEARNING = Optimization(epochs=10, batch_size=4, learning_rate=1e-3, warmup_ratio=0.1)
UPDATES = 20
SIZES = {"ann": 5, "bob": 7, "sue": 3}
"""Number of examples of each user; the last user has only half of the updates."""


def user_examples(user: str) -> UserExamples:
    rng = np.random.default_rng(list(SIZES).index(user))

    def tokens(*lengths: int) -> list[int]:
        return [*map(int, rng.integers(2, 48, rng.choice(lengths))), 1]

    # Of few lengths, so that few programs are compiled.
    return UserExamples(user, [Example(f"{user} {n}", tokens(7, 23), tokens(1, 4)) for n in range(SIZES[user])])


class Layout(NamedTuple):
    data: int = 1
    model: int = 1
    sharding: str = "data"

    def open(self) -> Any:
        return jax.set_mesh(make_mesh(self.data, self.model, devices=jax.devices()[: self.data * self.model]))


def cohorts(users, layout, *, tokens=128, together=8, learning=LEARNING, **changes) -> AdapterCohorts:
    sizes = {"tokens_per_device": tokens, "users_per_step": together}
    options = TrainAdapters("LaMP-3", "", "", lora=LORA, learning=learning, **sizes, **changes)
    return AdapterCohorts(options, build(CONFIG, rules=RULES[layout.sharding]), [user_examples(user) for user in users])


ALONE = Layout()


class Trained(NamedTuple):
    adapters: Mapping[str, Mapping[str, np.ndarray]]
    """By user, by name."""
    losses: Mapping[str, float]
    history: Mapping[str, list[Mapping[str, np.ndarray]]]
    """A user's adapter before the first update and after each update."""
    last: Mapping[str, Mapping[str, np.ndarray]]
    """When all users are done."""
    computed: int


@cache
def train(users: tuple[str, ...], layout: Layout = ALONE, **changes: Any) -> Trained:
    adapters, losses, history, last = {}, {}, {}, {}
    with layout.open():
        room = cohorts(users, layout, **changes)
        for number, block in enumerate(room.all):
            state = room.start(block)
            states, ends = [jax.device_get(state.adapters)], [np.ones(block.size, bool)]
            for place, part in enumerate(block.microbatches()):
                state = room.compute(state, block, part, (number, 0, place))
                states.append(jax.device_get(state.adapters))
                ends.append(part.ends)
            learned = room.finish(state, block)
            for row, (one, place) in enumerate(zip(learned.users, block.places, strict=True)):
                adapters[one.user] = {name: values[row] for name, values in learned.adapters.items()}
                losses[one.user] = float(learned.losses[row])
                own = [each for each, ended in zip(states, ends, strict=True) if ended[place]]
                history[one.user] = [{name: values[place] for name, values in each.items()} for each in own]
                last[one.user] = {name: values[place] for name, values in states[-1].items()}
    return Trained(adapters, losses, history, last, room.computed)


def assert_adapters_close(found: Trained, expected: Trained, users: Sequence[str] = tuple(SIZES)) -> None:
    for user in users:
        for name, values in expected.adapters[user].items():
            np.testing.assert_allclose(found.adapters[user][name], values, rtol=0, atol=1e-5, err_msg=f"{user} {name}")
        assert found.losses[user] == pytest.approx(expected.losses[user], abs=1e-5)


ALL = tuple(SIZES)


def test_training_changes_adapters():
    """Each adapter changes by far more than the tolerance between two ways to compute it."""
    found = train(ALL)
    for user in ALL:
        first, last = found.history[user][0], found.adapters[user]
        assert max(np.abs(last[name] - first[name]).max() for name in last) > 3e-3
        assert len(found.history[user]) == 1 + (UPDATES / 2 if user == "sue" else UPDATES)


def separately_trained() -> Trained:
    """Training of all users one after the other, in cohorts of one user."""
    return train(ALL, together=1)


def test_users_of_a_cohort_learn_the_same_as_separately():
    assert len(separately_trained().history["sue"]) == UPDATES / 2 + 1
    assert_adapters_close(train(ALL), separately_trained())


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(Layout(8, 1, "data"), id="data", marks=pytest.mark.slow),
        pytest.param(Layout(4, 2, "fsdp+tensor"), id="fsdp+tensor"),
        pytest.param(Layout(2, 4, "tensor"), id="tensor", marks=pytest.mark.slow),
    ],
)
def test_users_learn_the_same_on_all_meshes(layout):
    assert_adapters_close(train(ALL, layout), train(ALL))


def test_adapters_of_finished_users_do_not_change():
    found = train(ALL)
    for user in ALL:
        jax.tree.map(np.testing.assert_array_equal, found.last[user], found.history[user][-1])
        assert any((found.history[user][-2][name] != values).any() for name, values in found.last[user].items())


@pytest.mark.slow
@pytest.mark.parametrize("layout", [ALONE, Layout(2, 1)])
@pytest.mark.parametrize(
    ("where", "large"),
    [
        ("adapters", 1e30),  # products of these are not finite
        ("gradient", 1e25),  # the norm of this is not finite
    ],
)
def test_a_diverging_user_does_not_change_the_others(layout, where, large):
    """Values that are not finite would spread to all users of a device by products with the one-hot user matrix."""
    expected = train(ALL, layout)
    with layout.open():
        room = cohorts(ALL, layout)
        (block,) = room.all
        state = room.start(block)
        ill = int(block.places[[one.user for one in block.users].index("bob")])

        def spoil(values: jax.Array) -> jax.Array:
            numbers = np.array(values)
            numbers[ill] = large
            return jax.device_put(numbers, values.sharding)

        state = state._replace(**{where: jax.tree.map(spoil, getattr(state, where))})
        for place, part in enumerate(block.microbatches()):
            state = room.compute(state, block, part, (0, 0, place))
        learned = room.finish(state, block)
        assert jax.device_get(state.step)[ill] == UPDATES
    for row, one in enumerate(learned.users):
        if one.user == "bob":
            assert np.isnan(learned.losses[row])
            assert all(np.isfinite(values[row]).all() for values in learned.adapters.values())
        else:
            assert learned.losses[row] == pytest.approx(expected.losses[one.user], abs=1e-5)
            for name, values in expected.adapters[one.user].items():
                np.testing.assert_allclose(learned.adapters[name][row], values, rtol=0, atol=1e-5)


def plain_adamw(user: str, learning: Optimization) -> tuple[dict[str, np.ndarray], float]:
    """A user's adapter trained with only JAX's gradient and optax, on the mean loss of the tokens of each batch."""
    with ALONE.open():
        room = cohorts((user,), ALONE, learning=learning)
        (block,) = room.all
        model = build(CONFIG)
        graph, params = nnx.split(model)
        total = block.users[0].updates(learning)
        # `Learning` has the same optimization options, and the other options of training a complete model.
        optimizer = make_optimizer(Learning(**vars(learning)), total)

        def mean_loss(adapter, source, target):
            rows = {name: jnp.broadcast_to(one, (len(source), *one.shape)) for name, one in adapter.items()}
            model = attach(nnx.merge(graph, params), rows, LORA)
            logits = model.decode(decoder_inputs(target, CONFIG), model.encode(source), model.source_mask(source))
            each = optax.softmax_cross_entropy_with_integer_labels(logits, target)
            return jnp.sum(each * (target >= 0)) / jnp.sum(target >= 0)

        @jax.jit
        def step(adapter, state, source, target):
            loss, gradient = jax.value_and_grad(mean_loss)(adapter, source, target)
            changes, state = optimizer.update(gradient, state, adapter)
            return optax.apply_updates(adapter, changes), state, loss

        adapter = {name: jnp.asarray(values) for name, values in separately_trained().history[user][0].items()}
        state, losses = optimizer.init(adapter), []
        for number in range(total):
            examples = [row.example for row in block.rows(0, number)]
            sources, targets = zip(*((one.source, one.target) for one in examples), strict=True)
            source = jnp.asarray(pad_rows(sources, learning.batch_size, 24))
            adapter, state, loss = step(adapter, state, source, jnp.asarray(pad_rows(targets, len(source), 8)))
            losses.append(float(loss))
    last = room.all[0].users[0].updates_an_epoch(learning)
    return jax.device_get(adapter), float(np.mean(losses[-last:]))


@pytest.mark.parametrize("changes", [{}, {"clip": 0.05, "weight_decay": 0.1, "step_size": "relative"}], ids=str)
def test_a_user_is_trained_by_adamw(changes):
    learning = replace(LEARNING, **changes)
    expected, loss = plain_adamw("bob", learning)
    found = train(("bob",), learning=learning) if changes else separately_trained()
    for name, values in expected.items():
        np.testing.assert_allclose(found.adapters["bob"][name], values, rtol=0, atol=1e-5, err_msg=name)
    assert found.losses["bob"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.07, 0.1, 0.15, 0.3, 0.5, 1.0])
def test_the_learning_rate_equals_that_of_training_a_complete_model(ratio):
    learning = Learning(learning_rate=2e-3, warmup_ratio=ratio, weight_decay=0.0, clip=1e9)

    @jax.jit
    def rates(steps, warmup, total):
        return learning_rate(learning.learning_rate, steps, jnp.full(len(steps), warmup), jnp.full(len(steps), total))

    for total in (1, 2, 3, 7, 10, 19, 30, 95, 100, 150, 190, 333, 1000, 4711):
        steps = np.arange(0, total + 2, max(1, total // 50), dtype=np.int32)
        optimizer = make_optimizer(learning, total)
        state = optimizer.init(jnp.ones(()))
        expected = [schedule_of(optimizer, state, int(step)) for step in steps]
        warmup = UserExamples("ann", [Example("1", (1,), (1,))]).warmup(replace(learning, epochs=total))
        np.testing.assert_allclose(rates(steps, warmup, total), expected, rtol=1e-4, atol=1e-9, err_msg=str(total))


def schedule_of(optimizer: optax.GradientTransformation, state: Any, step: int) -> float:
    """Learning rate of update `step`: the optimizer's update for a first gradient of 1."""
    *before, scale = state
    changes, _ = optimizer.update(jnp.ones(()), (*before, scale._replace(count=jnp.int32(step))), jnp.ones(()))
    return -float(changes)


def test_the_size_of_microbatches_changes_nothing():
    found, expected = train(ALL, tokens=1), train(ALL)
    assert found.computed != expected.computed
    assert_adapters_close(found, expected)


@pytest.mark.slow
def test_a_shared_adapter_learns_the_same_on_several_devices():
    assert_adapters_close(train(("bob",), Layout(8, 1), shared="profiles"), separately_trained(), ["bob"])


def test_the_gradient_of_the_base_model_is_not_computed():
    """A step of adapters costs two thirds of a step of the model: two products for each forward product, not three."""
    config = replace(CONFIG, d_ff=2048)
    lora, rows = Lora(rank=1, targets=("q",)), 8
    model = jax.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0)))
    graph, base = nnx.split(model)
    adapters = {name: jnp.zeros((1, *one)) for name, one in adapter_shapes(model, lora).items()}
    state = start_users(adapters, LEARNING, model.rules)
    update = make_adapter_update(graph, LEARNING, lora, seed=0, shared=False, rules=model.rules)
    integers, numbers, yes = (jax.ShapeDtypeStruct((1,), kind) for kind in (jnp.int32, jnp.float32, bool))
    source, target = (jax.ShapeDtypeStruct((rows, length), jnp.int32) for length in (16, 8))
    part = MicrobatchArrays(source, target, *(jax.ShapeDtypeStruct((rows,), kind) for kind in (jnp.int32, jnp.float32)))
    number, last = jax.ShapeDtypeStruct((3,), jnp.int32), jax.ShapeDtypeStruct((), bool)
    ours = products(update, state, base, part, Users(integers, integers, yes, numbers), number, last)
    optimizer = make_optimizer(Learning(), 10)
    complete = make_update(generator_loss(graph), optimizer, seed=0, accumulation=1, rules=model.rules)
    learned = TrainState(jax.ShapeDtypeStruct((), jnp.int32), base, jax.eval_shape(optimizer.init, base))
    full = products(complete, learned, (source, target))
    assert ours / full == pytest.approx(2 / 3, rel=0.03)


def products(step: Any, *arguments: Any) -> int:
    """FLOPs of all matrix products of a compiled step."""
    return costs.products(Program(step.lower(*arguments).compile().as_text()))
