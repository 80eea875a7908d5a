"""The attention kernel for TPUs: equal to `attend` when interpreted, and accepted by the compiler of each TPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import pallas
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lamp_jax.compiler import costs
from lamp_jax.compiler.chips import open_topology
from lamp_jax.compiler.program import Program
from lamp_jax.compiler.report import compile_step, count_products
from lamp_jax.compiler.traffic import traffic
from lamp_jax.models import attention_pallas
from lamp_jax.models.attention_kernel import attend_in_kernel, fits
from lamp_jax.models.kernels import HIDDEN, NO_BIAS, attend, attend_by_rows
from lamp_jax.models.t5 import T5
from lamp_jax.models.t5_config import T5Config
from lamp_jax.sharding import DATA_PARALLEL, TENSOR_PARALLEL, Rules, make_mesh, place_batch
from lamp_jax.steps.generator import generator_loss


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels run by jax's interpreter, 8 queries at a time, so that there are several steps."""
    monkeypatch.setattr(attention_pallas.pl, "pallas_call", partial(pallas.pallas_call, interpret=True))
    monkeypatch.setattr(attention_pallas, "_ROWS", 8)
    monkeypatch.setattr(attention_pallas, "_BIAS_ROWS", 8)


def arrays(rows: int, length: int, others: int, heads: int, size: int):
    """Queries, keys, values, a gradient of the result, scores by distance, padding of the second half of a row."""
    generator = np.random.default_rng(0)
    query, keys, values, gradient = (
        jnp.asarray(generator.normal(size=(rows, tokens, heads, size)), jnp.float32)
        for tokens in (length, others, others, length)
    )
    band = jnp.asarray(generator.normal(size=(heads, length + others)), jnp.float32)
    shown = jnp.arange(others) < jnp.where(jnp.arange(rows) == 0, others // 2, others)[:, None]
    return query * size**-0.5, keys, values, gradient, band, jnp.where(shown, 0.0, HIDDEN)[:, None, None]


def positions(band: jax.Array, length: int, others: int) -> jax.Array:
    """Scores of every query for every key, [1, H, T, S], from those by distance."""
    return band[:, np.arange(others) - np.arange(length)[:, None] + length - 1][None]


@pytest.mark.parametrize(
    ("length", "others", "heads", "size", "bias"),
    [(16, 24, 4, 64, "both"), (24, 24, 1, 128, "past"), (8, 16, 4, 32, "none")],
)
def test_the_kernel_and_its_gradients_equal_attention(interpreted, length, others, heads, size, bias):
    *inputs, gradient, band, padding = arrays(2, length, others, heads, size)
    if bias == "past":
        band = jnp.where(jnp.arange(1 - length, others + 1) > 0, HIDDEN, band)
    assert fits(inputs[0].shape, inputs[1].shape, DATA_PARALLEL)

    def in_kernel(query, keys, values, band):
        band = None if bias == "none" else band
        return attend_in_kernel(query, keys, values, band, padding, DATA_PARALLEL)

    def expected(query, keys, values, band, order=attend):
        position = NO_BIAS if bias == "none" else positions(band, length, others)
        return order(query, keys, values, jnp.asarray(position), padding)

    result, pull = jax.vjp(in_kernel, *inputs, band)
    wanted, pull_wanted = jax.vjp(expected, *inputs, band)
    np.testing.assert_allclose(result, wanted, atol=1e-5)
    np.testing.assert_allclose(result, expected(*inputs, band, partial(attend_by_rows, rules=Rules())), atol=1e-5)
    for found, one in zip(pull(gradient), pull_wanted(gradient), strict=True):
        np.testing.assert_allclose(found, one, atol=1e-5 * max(1.0, float(jnp.abs(one).max())))


def test_only_shapes_that_fit_registers_and_fast_memory_are_accepted():
    shape = (2, 512, 12, 64)
    assert fits(shape, shape, DATA_PARALLEL)
    assert not fits((2, 500, 12, 64), shape, DATA_PARALLEL)  # no multiple of 8
    assert not fits((2, 512, 12, 48), (2, 512, 12, 48), DATA_PARALLEL)  # heads that do not fill 128 lanes
    assert not fits((2, 512, 3, 64), (2, 512, 3, 64), DATA_PARALLEL)  # a head without its pair
    assert not fits((2, 2048, 12, 64), (2, 1024, 12, 64), DATA_PARALLEL)  # too many scores
    with jax.set_mesh(make_mesh(2, 4)):
        assert not fits(shape, shape, TENSOR_PARALLEL)  # three heads on a device


CONFIG = T5Config(vocab_size=64, d_model=32, d_kv=32, num_heads=4, d_ff=32, num_layers=1, num_decoder_layers=1)


def test_a_model_that_attends_in_kernels_has_the_same_loss_and_gradients_on_a_mesh(interpreted):
    source, target = np.arange(4 * 16).reshape(4, 16) % 60 + 2, np.arange(4 * 8).reshape(4, 8) % 50 + 2
    source[1, 9:] = 0
    source[2, 3:] = 0

    def loss_and_gradients(attention, rules=DATA_PARALLEL):
        graph, params = nnx.split(T5(CONFIG, rngs=nnx.Rngs(1), attention=attention, rules=rules))
        update = jax.jit(jax.value_and_grad(generator_loss(graph), has_aux=True))
        return jax.device_get(update(params, place_batch((source, target), rules=rules), jax.random.key(0)))

    wanted = loss_and_gradients("whole")
    with jax.set_mesh(make_mesh(2, 2, devices=jax.devices()[:4])):
        found = loss_and_gradients("kernel", TENSOR_PARALLEL)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, wanted)


def abstract(*shape: int, mesh, axis: str | None = "data", dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
    """Array sharded over its first axis."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(axis, *(None,) * (len(shape) - 1))))


def compiled(lowered) -> Program:
    return Program(compile_step(lambda: lowered)[0].as_text())


@pytest.mark.tpu_compile
@pytest.mark.parametrize("name", ["v5e:1x1", "v6e:1x1", "tpu7x:1x1x1"])
def test_every_tpu_accepts_the_kernels_and_their_traffic_is_that_of_their_arrays(name):
    """Arrays of 1 GiB each do not fit fast memory: each is read or written in main memory once."""
    rows, length, heads, size = 8192, 128, 8, 64
    mesh = make_mesh(1, 1, devices=open_topology(name).devices[:1])

    def loss(query, keys, values, band, padding):
        heads_of = (x.reshape(rows, length, heads, size) for x in (query, keys, values))
        return attend_in_kernel(*heads_of, band, padding, DATA_PARALLEL).reshape(query.shape)

    def both(gradient, *inputs):
        result, pull = jax.vjp(loss, *inputs)
        return result, pull(gradient)[:4]

    with jax.set_mesh(mesh):
        one = abstract(rows, length, heads * size, mesh=mesh)
        band = abstract(heads, 2 * length, mesh=mesh, axis=None, dtype=jnp.float32)
        padding = abstract(rows, 1, 1, length, mesh=mesh, dtype=jnp.float32)
        program = compiled(jax.jit(both).lower(one, one, one, one, band, padding))
        forward = count_products(loss, one, one, one, band, padding)
    assert forward == 2 * 2 * rows * heads * length * length * size
    assert costs.products(program) == (1 + 2.5) * forward
    array = rows * length * heads * size * 2
    assert traffic(program) == pytest.approx(11 * array, rel=0.01)  # 4 of the forward pass, 7 of the backward pass


@pytest.mark.tpu_compile
def test_the_cost_estimate_of_a_kernel_counts_what_it_reads_twice():
    mesh = make_mesh(1, 1, devices=open_topology("v5e:1x1").devices)
    shape, block = (2**17, 1024), pallas.BlockSpec((512, 1024), lambda turn, place: (place, 0))
    size = 2**17 * 1024 * 4

    def double(x_ref, result_ref):
        result_ref[...] = 2 * x_ref[...]

    def function(x):
        estimate = pallas.CostEstimate(flops=0, transcendentals=0, bytes_accessed=2 * size + 2 * size)
        call = {"grid": (2, 256), "in_specs": [block], "out_specs": block, "cost_estimate": estimate}
        return pallas.pallas_call(double, out_shape=jax.ShapeDtypeStruct(shape, jnp.float32), **call)(x)

    with jax.set_mesh(mesh):
        function = jax.shard_map(function, in_specs=P("data"), out_specs=P("data"), check_vma=False)
        program = compiled(jax.jit(function).lower(abstract(*shape, mesh=mesh, dtype=jnp.float32)))
    assert traffic(program) == 4 * size
