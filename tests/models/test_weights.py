import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from lamp_jax.errors import LampError
from lamp_jax.models import weights
from lamp_jax.models.families import load_generator, save_generator
from lamp_jax.models.hf_names import t5_places
from lamp_jax.models.weights import hf_tensors
from lamp_jax.sharding import FSDP_AND_TENSOR_PARALLEL, make_mesh
from tests.models.tiny import GATED, TIED, build, make_batch


@pytest.fixture(params=[TIED, GATED], ids=["tied", "gated"])
def config(request):
    return request.param


@pytest.fixture
def directory(tmp_path, config):
    save_generator(build(config), tmp_path)
    return tmp_path


def change_config(directory, **values):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def change_tensors(directory, change):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_saved_model_is_loaded_unchanged(directory, config):
    assert_same(load_generator(directory), build(config))


def test_every_parameter_is_mapped_to_hf_tensors_exactly_once(config):
    model = build(config)
    places = t5_places(config)
    assert sum(tensor.size for tensor in hf_tensors(model, places).values()) == sum(
        leaf.size for leaf in jax.tree.leaves(model)
    )
    assert len({(place.path, place.layer) for place in places.values()}) == len(places)


def test_matrices_are_stored_output_first(directory, config):
    tensors = load_file(directory / "model.safetensors")
    model = build(config)
    query, output = model.decoder.cross.query[...][1], model.decoder.cross.output[...][1]
    x = jnp.arange(16.0)
    np.testing.assert_allclose(
        tensors["decoder.block.1.layer.1.EncDecAttention.q.weight"] @ x,
        jnp.einsum("d,dhk->hk", x, query).ravel(),
        atol=1e-5,
    )
    heads = jnp.arange(output.shape[0] * output.shape[1], dtype=jnp.float32).reshape(output.shape[:2])
    np.testing.assert_allclose(
        tensors["decoder.block.1.layer.1.EncDecAttention.o.weight"] @ heads.ravel(),
        jnp.einsum("hk,hkd->d", heads, output),
        rtol=1e-4,
        atol=1e-4,
    )


def test_sharded_files_are_read_by_their_index(directory, config):
    tensors = load_file(directory / "model.safetensors")
    names = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for shard in set(names.values()):
        save_file({name: tensors[name] for name in names if names[name] == shard}, directory / shard)
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    assert_same(load_generator(directory), build(config))

    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(LampError, match=r"model-00002-of-00002\.safetensors: listed in"):
        load_generator(directory)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_read_as_float32(tmp_path, dtype):
    save_generator(build(GATED), tmp_path)
    tensors = {name: tensor.astype(dtype) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    kinds = {ml_dtypes.bfloat16: "BF16", np.float16: "F16"}
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": kinds[dtype], "shape": tensor.shape, "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    head = json.dumps(header).encode()
    content = len(head).to_bytes(8, "little") + head + b"".join(tensor.tobytes() for tensor in tensors.values())
    (tmp_path / "model.safetensors").write_bytes(content)
    model = load_generator(tmp_path)
    assert model.embedding[...].dtype == jnp.float32
    np.testing.assert_array_equal(model.embedding[...], tensors["shared.weight"].astype(np.float32))


def test_parameters_are_loaded_onto_the_mesh_and_saved_from_it(tmp_path):
    save_generator(build(GATED), tmp_path)
    with jax.set_mesh(make_mesh(4, 2)):
        model = load_generator(tmp_path, rules=FSDP_AND_TENSOR_PARALLEL)
        save_generator(model, tmp_path / "again")
    assert model.encoder.mlp.inner[...].sharding.spec == P(None, "data", "model")
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(model), jax.tree.leaves(build(GATED)))
    assert_same(load_generator(tmp_path / "again"), build(GATED))


def test_copies_of_the_embedding_are_accepted(directory, config):
    def add_copies(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["decoder.embed_tokens.weight"] = tensors["shared.weight"]
        leftover = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[leftover] = np.zeros((32, 4), np.float32)

    change_tensors(directory, add_copies)
    assert_same(load_generator(directory), build(config))
    change_tensors(directory, lambda tensors: tensors.pop("shared.weight"))
    assert_same(load_generator(directory), build(config))


def test_all_mismatches_are_reported_together(directory, config):
    def spoil(tensors):
        tensors["encoder.final_layer_norm.bias"] = np.zeros(16, np.float32)
        tensors["decoder.block.1.layer.0.SelfAttention.q.weight"] = np.zeros((3, 16), np.float32)
        del tensors["encoder.block.1.layer.1.DenseReluDense.wo.weight"]

    change_tensors(directory, spoil)
    with pytest.raises(LampError) as caught:
        load_generator(directory)
    message = str(caught.value)
    assert str(directory) in message
    assert "(3 mismatches)" in message
    assert "missing: encoder.block.1.layer.1.DenseReluDense.wo.weight" in message
    assert "unexpected: encoder.final_layer_norm.bias" in message
    width = config.num_heads * config.d_kv
    assert (
        f"shape of decoder.block.1.layer.0.SelfAttention.q.weight: [3, 16] in the file, [{width}, 16] by config.json"
        in message
    )


def test_a_config_of_another_size_is_reported(tmp_path):
    save_generator(build(GATED), tmp_path)
    change_config(tmp_path, num_layers=3)
    with pytest.raises(LampError, match=r"missing: encoder\.block\.2\.layer\.0\.layer_norm\.weight"):
        load_generator(tmp_path)


def remove_weights(directory):
    (directory / "model.safetensors").unlink()


def leave_torch_weights(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def remove_config(directory):
    (directory / "config.json").unlink()


def cut_config(directory):
    (directory / "config.json").write_text('{"model_type": "t5", ', encoding="utf-8")


def cut_weights(directory):
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_weights, "has no weights .*give a directory"),
        (leave_torch_weights, "has pytorch_model.bin but no model.safetensors; install torch"),
        (remove_config, "has no config.json; give a model directory"),
        (cut_config, "config.json: invalid JSON .*again"),
        (cut_weights, "model.safetensors: not a complete safetensors file .*again"),
    ],
)
def test_a_directory_without_a_model_is_a_named_error(tmp_path, monkeypatch, spoil, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # a machine without torch
    save_generator(build(GATED), tmp_path)
    spoil(tmp_path)
    with pytest.raises(LampError, match=message) as caught:
        load_generator(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_pytorch_file_is_read_if_torch_is_installed(tmp_path):
    torch = pytest.importorskip("torch")
    save_generator(build(GATED), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, tmp_path / "pytorch_model.bin")
    remove_weights(tmp_path)
    assert_same(load_generator(tmp_path), build(GATED))
    complete = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(complete[: len(complete) // 2])
    with pytest.raises(LampError, match=r"pytorch_model\.bin: not a complete PyTorch file"):
        load_generator(tmp_path)


def test_the_pytorch_file_of_a_hub_model_without_safetensors_is_downloaded(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    save_generator(build(GATED), tmp_path)
    leave_torch_weights(tmp_path)
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns: asked.append("pytorch_model.bin" in allow_patterns) or str(tmp_path),
    )
    with pytest.raises(LampError, match="not a complete PyTorch file"):
        load_generator("facebook/contriever")
    assert asked == [False, True]


def test_a_hub_name_is_loaded_from_its_snapshot(tmp_path, monkeypatch):
    save_generator(build(GATED), tmp_path)
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path), raising=True
    )
    assert_same(load_generator("google/flan-t5-base"), build(GATED))
    assert asked == ["google/flan-t5-base"]


def test_an_unknown_name_is_a_named_error(monkeypatch):
    def refuse(name, **_):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(LampError, match=r"runs/missing: neither a directory nor a model .*offline"):
        load_generator("runs/missing")


def test_a_missing_path_is_a_named_error():
    with pytest.raises(LampError, match="/no/such/directory: neither a directory"):
        load_generator("/no/such/directory")


def test_an_interrupted_save_leaves_the_old_model(tmp_path, monkeypatch):
    save_generator(build(GATED), tmp_path)

    def save_half(tensors, path, **_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "save_file", save_half)
    with pytest.raises(KeyboardInterrupt):
        save_generator(build(GATED), tmp_path)
    assert_same(load_generator(tmp_path), build(GATED))


@pytest.mark.parity
def test_transformers_loads_a_saved_model_with_the_same_outputs(directory, config):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs, report = transformers.T5ForConditionalGeneration.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values())
    tokens, labels = make_batch()
    with torch.no_grad():
        mask = torch.tensor(tokens != 0).long()
        expected = theirs(input_ids=torch.tensor(tokens), attention_mask=mask, decoder_input_ids=torch.tensor(labels))
    ours = load_generator(directory)
    logits = jax.jit(lambda model: model.decode(labels, model.encode(tokens), model.source_mask(tokens)))(ours)
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4)

    theirs.save_pretrained(directory / "theirs")
    shutil.copy(directory / "theirs" / "config.json", directory / "config.json")
    assert_same(load_generator(directory / "theirs"), ours)
