"""LoRA adapters per row of a batch: the same result as adapters merged into the weights, row by row."""

import math
from contextlib import closing
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lamp_jax.artifacts.adapters import AdapterEntry, AdapterForm, create_store, open_store
from lamp_jax.config import Answering, Lora
from lamp_jax.decoding.answers import make_decoder
from lamp_jax.errors import LampError
from lamp_jax.models.families import abstract_generator
from lamp_jax.models.generator import decoder_inputs
from lamp_jax.models.lora import Adapted, adapter_shapes, adapter_specs, attach, draw_adapter, find_sites
from lamp_jax.models.t5_config import SIZES
from lamp_jax.sharding import RULES, make_mesh, place_batch, put
from tests.models.tiny import GATED, TIED, build, make_batch

CONFIGS = {"tied": TIED, "gated": GATED}
ALL = {"tied": ("q", "k", "v", "o", "wi", "wo"), "gated": ("q", "k", "v", "o", "wi_0", "wi_1", "wo")}
ROWS = 8


@pytest.fixture(params=CONFIGS)
def kind(request):
    return request.param


def lora_of(kind, **changes):
    return replace(Lora(rank=3, alpha=6.0, targets=ALL[kind], dropout=0.3), **changes)


def draw(model, lora, rows=ROWS, seed=0):
    """Adapters [rows, ...] that change a model's outputs considerably."""
    rng = np.random.default_rng(seed)
    return {
        name: 0.15 * rng.standard_normal((rows, *shape), np.float32)
        for name, shape in adapter_shapes(model, lora).items()
    }


@partial(jax.jit, static_argnums=(0, 5))
def run(graph, params, tokens, labels, adapters, lora, key=None):
    model = nnx.merge(graph, params)
    if adapters is not None:
        attach(model, adapters, lora, key=key)
    return model.decode(decoder_inputs(labels, model.config), model.encode(tokens), model.source_mask(tokens))


def logits_of(model, adapters=None, lora=None, *, rows=slice(None), key=None):
    tokens, labels = (values[rows] for values in make_batch(ROWS))
    return np.asarray(run(*nnx.split(model), tokens, labels, adapters, lora, key))


def one_row(adapters, row):
    return {name: values[row : row + 1] for name, values in adapters.items()}


def test_a_new_adapter_changes_nothing(kind):
    model, lora = build(CONFIGS[kind]), lora_of(kind)
    new = draw_adapter(np.random.default_rng(0), adapter_shapes(model, lora))
    assert {bool(values.any()) for name, values in new.items() if name.endswith(".down")} == {True}
    rows = {name: np.stack([values] * ROWS) for name, values in new.items()}
    np.testing.assert_array_equal(logits_of(model, rows, lora), logits_of(model))


def test_new_adapters_are_initialized_like_in_peft():
    """A from U(-1, 1) / sqrt(in), which equals Kaiming initialization with a = sqrt(5); B is zero."""
    found = draw_adapter(np.random.default_rng(0), {"o.down": (2, 4, 16, 50), "o.up": (2, 50, 64)})
    assert not found["o.up"].any()
    assert 0.99 / 8 < np.abs(found["o.down"]).max() <= 1 / 8
    assert found["o.down"].std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.05)


def test_each_row_uses_its_own_adapter(kind):
    model, lora = build(CONFIGS[kind]), lora_of(kind)
    adapters = draw(model, lora)
    found = logits_of(model, adapters, lora)
    assert np.abs(found - logits_of(model)).max(axis=(1, 2)).min() > 0.1
    for row in range(ROWS):
        alone = logits_of(model, one_row(adapters, row), lora, rows=slice(row, row + 1))
        np.testing.assert_allclose(found[row], alone[0], atol=1e-5)


def merge(model, adapter, lora):
    """The model with the adapter's products added to its weights."""
    for site in find_sites(model.config, lora.targets):
        *parents, last = site.path
        holder = model
        for name in parents:
            holder = getattr(holder, name)
        weight = getattr(holder, last)[...]
        down, up = adapter[f"{site.name}.down"], adapter[f"{site.name}.up"]
        layers, rank = len(weight), lora.rank
        product = np.matmul(down.reshape(layers, -1, rank), up.reshape(layers, rank, -1)).reshape(weight.shape)
        setattr(holder, last, nnx.Param(weight + lora.alpha / lora.rank * product))
    return model


def test_an_adapter_equals_an_addition_to_the_weights(kind):
    model, lora = build(CONFIGS[kind]), lora_of(kind)
    adapter = {name: values[0] for name, values in draw(model, lora, rows=1).items()}
    found = logits_of(model, {name: np.stack([values] * ROWS) for name, values in adapter.items()}, lora)
    np.testing.assert_allclose(found, logits_of(merge(build(CONFIGS[kind]), adapter, lora)), atol=1e-5)


@pytest.mark.parametrize("decode", ["greedy", "beam", "labels"])
def test_answers_equal_those_with_each_adapter_separately(decode):
    """The separate batch repeats the same row, so that there is only one program."""
    model, lora = build(replace(GATED, num_layers=1, num_decoder_layers=1)), lora_of("gated")
    adapters = draw(model, lora)
    labels = np.array([[7, 1, 0], [9, 4, 1]], np.int32) if decode == "labels" else None
    graph, params = nnx.split(model)
    decoder = make_decoder(graph, Answering(decode, num_beams=3, generation_max_length=5), labels, lora=lora)
    tokens, _ = make_batch(ROWS)
    found = np.asarray(decoder(params, tokens, adapters))
    alone = np.concatenate(
        [
            decoder(params, *jax.tree.map(lambda values, row=row: values[[row] * ROWS], (tokens, adapters)))[:1]
            for row in range(ROWS)
        ]
    )
    base = np.asarray(decoder(params, tokens, jax.tree.map(np.zeros_like, adapters)))
    if decode == "labels":
        np.testing.assert_allclose(found, alone, atol=1e-5)
        assert np.abs(found - base).min() > 1e-3
    else:
        np.testing.assert_array_equal(found, alone)
        assert (found != base).any(axis=1).sum() > ROWS / 2


def test_without_adapters_the_answers_are_those_of_the_base_model():
    graph, params = nnx.split(build(replace(GATED, num_layers=1, num_decoder_layers=1)))
    tokens, _ = make_batch(ROWS)
    answering = Answering("greedy", generation_max_length=5)
    found, expected = (make_decoder(graph, answering, None, lora=lora)(params, tokens) for lora in (Lora(), None))
    np.testing.assert_array_equal(found, expected)


def test_dropout_needs_a_key():
    model, lora = build(GATED), lora_of("gated")
    adapters = draw(model, lora)
    dry = logits_of(model, adapters, lora)
    np.testing.assert_array_equal(logits_of(model, adapters, lora), dry)
    wet, again, other = (logits_of(model, adapters, lora, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(wet, again)
    assert np.abs(wet - dry).max(axis=(1, 2)).min() > 0.01
    assert np.abs(wet - other).max(axis=(1, 2)).min() > 0.01
    still = logits_of(model, adapters, replace(lora, dropout=0.0), key=jax.random.key(0))
    np.testing.assert_allclose(still, dry, atol=1e-5)


def test_projections_of_the_same_input_share_a_dropout_mask():
    model, lora = build(GATED), lora_of("gated")
    attach(model, draw(model, lora), lora, key=jax.random.key(0))
    sites = find_sites(model.config, lora.targets)
    keys = {}
    for site in sites:
        holder = model
        for name in site.path:
            holder = getattr(holder, name)
        assert isinstance(holder, Adapted)
        keys.setdefault(jax.random.key_data(holder.key[...]).tobytes(), []).append(site.name)
    assert sorted(sorted(names) for names in keys.values()) == sorted(
        [
            *(
                sorted(f"{part}.{name}" for name in ("query", "key", "value"))
                for part in ("encoder.attention", "decoder.attention", "decoder.cross")
            ),
            *([f"{part}.output"] for part in ("encoder.attention", "decoder.attention", "decoder.cross")),
            *(sorted(f"{part}.mlp.{name}" for name in ("gate", "inner")) for part in ("encoder", "decoder")),
            *([f"{part}.mlp.outer"] for part in ("encoder", "decoder")),
        ]
    )


@pytest.mark.parametrize(
    ("kind", "targets", "message"),
    [
        ("tied", ("q", "wi_0"), "--targets wi_0: no such projections in this model; choose from k, o, q, v, wi, wo"),
        (
            "gated",
            ("wi", "lm_head"),
            "--targets wi lm_head: no such projections in this model; choose from k, o, q, v, wi_0, wi_1, wo",
        ),
        ("gated", (), "--targets \\(none\\): no such projections in this model"),
        ("gated", ("layer_norm",), "--targets layer_norm: no such projections in this model"),
    ],
)
def test_targets_that_no_weight_has_are_an_error(kind, targets, message):
    with pytest.raises(LampError, match=message):
        adapter_shapes(build(CONFIGS[kind]), lora_of(kind, targets=targets))


@pytest.mark.parametrize("rank", [-1, 0, 17, 1000])
def test_a_rank_out_of_range_is_an_error(rank):
    """The smallest dimension of GATED's matrices is the hidden size, 16."""
    with pytest.raises(LampError, match=f"--rank {rank}: must be from 1 to 16"):
        adapter_shapes(build(GATED), Lora(rank))


def test_the_largest_valid_rank_is_accepted():
    assert adapter_shapes(build(GATED), Lora(16))["encoder.attention.query.down"] == (2, 16, 16)


def test_targets_named_twice_are_adapted_once():
    once, twice = (adapter_shapes(build(GATED), lora_of("gated", targets=targets)) for targets in ("q", ("q", "q")))
    assert once == twice


@pytest.mark.parametrize("sharding", RULES)
@pytest.mark.parametrize(
    ("data", "parts"), [pytest.param(8, 1, marks=pytest.mark.slow), (4, 2), pytest.param(2, 4, marks=pytest.mark.slow)]
)
def test_logits_agree_on_all_meshes(data, parts, sharding):
    config, lora = replace(GATED, num_layers=1, num_decoder_layers=1), lora_of("gated")
    adapters = draw(build(config), lora)
    expected = logits_of(build(config), adapters, lora)
    with jax.set_mesh(make_mesh(data, parts)):
        model = build(config, rules=RULES[sharding])
        specs = adapter_specs(model, lora)
        placed = {name: put(values, specs[name]) for name, values in adapters.items()}
        batch = place_batch(make_batch(ROWS), rules=RULES[sharding])
        found = np.asarray(run(*nnx.split(model), *batch, placed, lora))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_adapters_are_sharded_like_batches_and_weights():
    with jax.set_mesh(make_mesh(4, 2)):
        model = build(GATED, rules=RULES["fsdp+tensor"])
        specs = adapter_specs(model, lora_of("gated"))
        assert specs["encoder.attention.query.down"] == jax.P("data", None, None, None)
        assert specs["encoder.attention.query.up"] == jax.P("data", None, None, "model", None)
        assert specs["decoder.cross.output.down"] == jax.P("data", None, "model", None, None)
        assert specs["decoder.mlp.outer.up"] == jax.P("data", None, None, None)
        assert specs.keys() == adapter_shapes(model, lora_of("gated")).keys()
        assert jnp.shape(draw(model, lora_of("gated"))["decoder.cross.output.down"]) == (ROWS, 2, 4, 8, 3)


def test_a_store_of_the_largest_models_adapters_has_the_computed_size(tmp_path):
    """FLAN-T5-XXL, rank 8, q, k and v: 14.16 million numbers per user."""
    lora = Lora()
    shapes = adapter_shapes(abstract_generator(SIZES["flan-t5-xxl"]), lora)
    numbers = sum(math.prod(shape) for shape in shapes.values())
    assert numbers == 8 * 3 * (24 + 2 * 24) * (4096 + 4096)
    form = AdapterForm("base", "google/flan-t5-xxl", lora.rank, lora.alpha, lora.targets, shapes, "bfloat16")
    drawn = {name: np.full((2, *shape), 0.5, np.float32) for name, shape in shapes.items()}
    with closing(create_store(tmp_path, form)) as store:
        store.append([AdapterEntry(user, 10, 20, 1.0) for user in ("ann", "bob")], drawn)
    assert 0 < sum(path.stat().st_size for path in tmp_path.glob("adapters-*")) - 2 * 2 * numbers < 1000
    assert open_store(tmp_path).read(["bob"])["encoder.attention.query.up"].shape == (1, 24, 8, 64, 64)
