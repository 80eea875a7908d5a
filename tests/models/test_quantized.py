"""Models with quantized matrices: the same outputs as the same matrices in float32."""

import json
import tracemalloc
from dataclasses import replace
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from lamp_jax.config import Lora
from lamp_jax.models.families import abstract_generator, fingerprint_generator, load_generator, save_generator
from lamp_jax.models.generator import decoder_inputs
from lamp_jax.models.hf_names import t5_places
from lamp_jax.models.lora import adapter_shapes, attach
from lamp_jax.models.quantized import Quantized, quantize
from lamp_jax.models.t5 import T5
from lamp_jax.models.weights import fill, open_checkpoint
from lamp_jax.sharding import RULES, make_mesh, place_batch
from tests.models.tiny import GATED, TIED, build, make_batch

CONFIGS = {"tied": TIED, "gated": GATED}
STORAGES = ("int8", "bfloat16")


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request, tmp_path_factory):
    """The config of a T5, and the directory of the saved model."""
    directory = tmp_path_factory.mktemp(request.param)
    save_generator(build(CONFIGS[request.param]), directory)
    return CONFIGS[request.param], directory


@partial(jax.jit, static_argnums=0)
def run(graph, params, tokens, labels):
    model = nnx.merge(graph, params)
    return model.decode(decoder_inputs(labels, model.config), model.encode(tokens), model.source_mask(tokens))


def logits_of(model: T5) -> np.ndarray:
    return np.asarray(run(*nnx.split(model), *place_batch(make_batch(), rules=model.rules)))


WEIGHTS = arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@given(WEIGHTS, st.integers(1, 2))
def test_the_error_of_a_weight_is_at_most_half_a_step(weights, inputs):
    steps, scale = quantize(weights, inputs=inputs)
    assert (steps.dtype, scale.dtype) == (np.int8, np.float32)
    assert scale.shape == (2, *weights.shape[1 + inputs :])
    wide = np.expand_dims(scale, tuple(range(1, 1 + inputs))).astype(np.float64)
    # The margin above one half is float32's rounding of the quotient and the scale, of at most 127 steps.
    allowed = 0.5 * wide * (1 + 2 * 127 * np.finfo(np.float32).eps) + np.finfo(np.float32).tiny
    assert (np.abs(steps * wide - weights) <= allowed).all()


@pytest.mark.parametrize("size", [1.75e-38, 1e-40, 1e-43, 1e-45, 0])
def test_the_smallest_weights_are_represented(size):
    weights = np.full((2, 3, 4), size, np.float32)
    steps, scale = quantize(weights, inputs=1)
    assert np.abs(steps * scale[:, None].astype(np.float64) - weights).max() <= max(0.01 * size, 1e-43)


def test_the_largest_weights_are_127_steps():
    weights = np.random.default_rng(0).standard_normal((2, 6, 5), np.float32)
    steps, scale = quantize(weights, inputs=1)
    np.testing.assert_array_equal(np.abs(steps).max(axis=1), 127)
    np.testing.assert_allclose(scale * 127, np.abs(weights).max(axis=1), rtol=1e-6)


def test_an_output_without_weights_stays_zero():
    steps, scale = quantize(np.zeros((1, 3, 2), np.float32), inputs=1)
    assert not steps.any()
    assert not scale.any()


@pytest.mark.parametrize(("storage", "bound"), [("int8", 0.03), ("bfloat16", 0.01)])
def test_quantized_models_give_nearly_the_same_logits(saved, storage, bound):
    """The difference is a few percent.

    Errors of weights are up to 1/254 of their output's largest weight (int8), or 1/512 of the weight (bfloat16). Each
    product has about the same relative error, and a logit is computed by some tens of products.
    """
    _, directory = saved
    expected = logits_of(load_generator(directory))
    found = logits_of(load_generator(directory, storage=storage))
    error = np.sqrt(np.mean(np.square(found - expected))) / expected.std()
    assert 1e-4 < error < bound


def dequantized(config, directory) -> T5:
    """The T5 with dequantized 8-bit matrices in float32, and embeddings rounded to bfloat16."""
    model = load_generator(directory)
    for place in {place.path: place for place in t5_places(config).values()}.values():
        *parents, last = place.path
        holder = reduce(getattr, parents, model)
        values = np.asarray(getattr(holder, last)[...])
        if place.inputs is not None:
            steps, scale = quantize(values, inputs=place.inputs)
            values = steps * np.expand_dims(scale, tuple(range(1, 1 + place.inputs)))
        elif last in {"embedding", "head"}:
            values = values.astype(jnp.bfloat16).astype(np.float32)
        setattr(holder, last, nnx.Param(jnp.asarray(values)))
    return model


def test_a_quantized_model_equals_the_model_with_dequantized_matrices(saved):
    found, expected = logits_of(load_generator(saved[1], storage="int8")), logits_of(dequantized(*saved))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_adapters_are_additions_to_quantized_matrices_too(saved):
    config, _ = saved
    lora = Lora(rank=2, alpha=4.0, targets=("q", "o", "wo"))
    rng = np.random.default_rng(0)
    adapters = {
        name: 0.15 * rng.standard_normal((8, *shape), np.float32)
        for name, shape in adapter_shapes(abstract_generator(config), lora).items()
    }

    @partial(jax.jit, static_argnums=0)
    def adapted(graph, params):
        model, (tokens, labels) = attach(nnx.merge(graph, params), adapters, lora), make_batch()
        return model.decode(decoder_inputs(labels, config), model.encode(tokens), model.source_mask(tokens))

    small, wide = load_generator(saved[1], storage="int8"), dequantized(*saved)
    found, expected = (adapted(*nnx.split(model)) for model in (small, wide))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "sharding",
    [pytest.param("fsdp", marks=pytest.mark.slow), pytest.param("tensor", marks=pytest.mark.slow), "fsdp+tensor"],
)
@pytest.mark.parametrize("storage", STORAGES)
def test_outputs_on_a_mesh_equal_those_of_one_device(tmp_path, storage, sharding):
    save_generator(build(replace(GATED, num_layers=1, num_decoder_layers=1)), tmp_path)
    expected = logits_of(load_generator(tmp_path, storage=storage))
    with jax.set_mesh(make_mesh(4, 2)):
        model = load_generator(tmp_path, storage=storage, rules=RULES[sharding])
        np.testing.assert_allclose(logits_of(model), expected, atol=1e-5)


def test_quantized_matrices_are_sharded_by_the_rules(tmp_path):
    save_generator(build(GATED), tmp_path)
    with jax.set_mesh(make_mesh(4, 2)):
        model = load_generator(tmp_path, storage="int8", rules=RULES["fsdp+tensor"])
    query, outer = model.encoder.attention.query, model.decoder.mlp.outer
    assert query.steps[...].sharding.spec == P(None, "data", "model", None)
    assert query.scale[...].sharding.spec == P(None, "model", None)
    assert outer.steps[...].sharding.spec == P(None, "model", "data")
    assert outer.scale[...].sharding.spec == P(None, "data")
    assert model.embedding[...].sharding.spec == P("model", "data")


@pytest.mark.parametrize("storage", ["float32", *STORAGES])
def test_types_in_memory_are_those_of_the_storage(saved, storage):
    config, directory = saved
    found = types_of(load_generator(directory, storage=storage))
    assert found == types_of(abstract_generator(config, storage=storage))
    assert {kind for name, kind in found.items() if "norm" in name or "positions" in name} == {"float32"}
    assert found["embedding"] == ("float32" if storage == "float32" else "bfloat16")
    matrices = {".".join(place.path) for place in t5_places(config).values() if place.inputs is not None}
    for name in matrices:
        if storage == "int8":
            assert (found[f"{name}.steps"], found[f"{name}.scale"]) == ("int8", "float32")
        else:
            assert found[name] == storage
    assert len(found) == len({place.path for place in t5_places(config).values()}) + len(matrices) * (storage == "int8")


def types_of(model) -> dict[str, str]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(path): str(leaf.get_value().dtype) for path, leaf in flat}


def test_no_float32_copy_of_a_matrix_is_kept(saved):
    model = load_generator(saved[1], storage="int8")
    assert isinstance(model.encoder.attention.query, Quantized)
    assert model.encoder.attention.query.shape == load_generator(saved[1]).encoder.attention.query.shape


def test_layers_quantized_one_by_one_equal_those_of_the_stacked_weight(saved):
    config, directory = saved
    wide, small = load_generator(directory), load_generator(directory, storage="int8")
    for place in t5_places(config).values():
        if place.inputs is not None:
            found, complete = (reduce(getattr, place.path, model) for model in (small, wide))
            steps, scale = quantize(np.asarray(complete[...]), inputs=place.inputs)
            np.testing.assert_array_equal(found.steps[...], steps)
            np.testing.assert_array_equal(found.scale[...], scale)


def test_loading_8_bit_weights_never_holds_a_float32_array_of_all_layers(tmp_path):
    config = replace(GATED, num_layers=32, num_decoder_layers=1, d_ff=4096)
    save_generator(build(config), tmp_path)
    abstract = abstract_generator(config, storage="int8")
    tracemalloc.start()
    model = fill(abstract, open_checkpoint(tmp_path), t5_places(config))
    left, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert model.encoder.mlp.outer.steps[...].dtype == jnp.int8
    assert most - left < 4 * model.encoder.mlp.outer.steps[...].size


def split_file(directory):
    """The same weights in two files and an index."""
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, directory / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (directory / "model.safetensors").unlink()


def test_the_fingerprint_depends_on_the_weights_and_not_on_their_files(tmp_path):
    save_generator(build(GATED), tmp_path)
    complete = fingerprint_generator(tmp_path)
    assert complete == fingerprint_generator(tmp_path)
    split_file(tmp_path)
    assert fingerprint_generator(tmp_path) == complete


@pytest.mark.parametrize("name", ["decoder.block.1.layer.2.DenseReluDense.wo.weight", "shared.weight"])
def test_the_fingerprint_changes_when_a_matrix_is_trained(tmp_path, name):
    """A change of all elements of a single matrix, as in training, is enough."""
    save_generator(build(GATED), tmp_path)
    before = fingerprint_generator(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    tensors[name] = tensors[name] + 1e-4 * rng.standard_normal(tensors[name].shape, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert fingerprint_generator(tmp_path) != before


def test_models_of_other_sizes_have_other_fingerprints(tmp_path):
    """Also if all weights that both models have are equal."""
    save_generator(build(GATED), tmp_path)
    before = fingerprint_generator(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: values for name, values in tensors.items() if "decoder.block.1." not in name}
    save_file(kept, tmp_path / "model.safetensors")
    file = tmp_path / "config.json"
    values = json.loads(file.read_text(encoding="utf-8")) | {"num_decoder_layers": 1}
    file.write_text(json.dumps(values), encoding="utf-8")
    assert fingerprint_generator(tmp_path) != before
