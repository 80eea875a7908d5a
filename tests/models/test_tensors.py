"""Damaged and unusual weight files of every kind of model: read, or rejected with file and tensor in the error."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lamp_jax.errors import LampError
from lamp_jax.models.bert import BertConfig
from lamp_jax.models.families import fingerprint_generator, load_generator, save_generator
from lamp_jax.models.longformer import Longformer, LongformerConfig
from lamp_jax.models.t5_config import T5Config
from lamp_jax.models.tensors import check_finite, open_checkpoint
from lamp_jax.models.weights import check_tokenizer, load_bert, load_longformer, save_bert, save_longformer
from tests.models.tiny import BERT, GATED, TIED, build, build_bert

LONGFORMER = LongformerConfig(
    vocab_size=48,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=34,
    attention_window=8,
)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 990345061\n"
LOADERS = {"t5": load_generator, "bert": load_bert, "longformer": load_longformer}
A_MATRIX = {
    "t5": "decoder.block.1.layer.2.DenseReluDense.wo.weight",
    "bert": "encoder.layer.1.output.dense.weight",
    "longformer": "longformer.encoder.layer.1.attention.self.query_global.weight",
}
A_VECTOR = {
    "t5": "encoder.final_layer_norm.weight",
    "bert": "embeddings.LayerNorm.bias",
    "longformer": "classifier.out_proj.bias",
}


@pytest.fixture(params=LOADERS)
def kind(request):
    return request.param


@pytest.fixture
def directory(kind, tmp_path):
    if kind == "longformer":
        save_longformer(Longformer(LONGFORMER, rngs=nnx.Rngs(0)), tmp_path)
    elif kind == "bert":
        save_bert(build_bert(BERT), tmp_path)
    else:
        save_generator(build(GATED), tmp_path)
    return tmp_path


def weights_of(directory):
    return load_file(directory / "model.safetensors")


def rewrite(directory, tensors):
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def refuse(kind, directory, match):
    with pytest.raises(LampError, match=match) as caught:
        LOADERS[kind](directory)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("names", [A_MATRIX, A_VECTOR], ids=["matrix", "vector"])
def test_a_weight_that_is_not_finite_is_an_error_that_names_the_tensor(kind, directory, value, dtype, names):
    tensors = {name: tensor.astype(dtype) for name, tensor in weights_of(directory).items()}
    tensors[names[kind]][-1] = value
    rewrite(directory, tensors)
    last = len(tensors[names[kind]]) - 1
    refuse(kind, directory, rf"model\.safetensors: .* of {names[kind]} are not finite, the first at \[{last}.*{value}")


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_quantized_and_sharded_weights_are_checked_too(tmp_path, storage):
    save_generator(build(GATED), tmp_path)
    tensors = weights_of(tmp_path)
    tensors[A_MATRIX["t5"]][3, 2] = np.nan
    halves = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    names = {}
    for number, half in enumerate(halves):
        save_file(half, tmp_path / f"part-{number}.safetensors")
        names |= dict.fromkeys(half, f"part-{number}.safetensors")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(LampError, match=rf"part-\d\.safetensors: 1 of 512 values of {A_MATRIX['t5']} are not finite"):
        load_generator(tmp_path, storage=storage)


def test_weights_read_for_the_fingerprint_are_checked_too(tmp_path):
    save_generator(build(GATED), tmp_path)
    tensors = weights_of(tmp_path)
    tensors["shared.weight"][0] = np.nan
    rewrite(tmp_path, tensors)
    with pytest.raises(LampError, match=r"shared\.weight are not finite"):
        fingerprint_generator(tmp_path)


def test_large_finite_values_are_no_error(tmp_path):
    large = np.full((4, 4), np.finfo(np.float32).max)
    check_finite(large, "x", path=tmp_path)
    check_finite(np.zeros((0, 4), np.float32), "x", path=tmp_path)
    large[2, 1] = -np.inf
    with pytest.raises(LampError, match=r"1 of 16 values of x are not finite, the first at \[2, 1\] \(-inf\)"):
        check_finite(large, "x", path=tmp_path)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_an_integer_weight_is_an_error(kind, directory, dtype):
    tensors = weights_of(directory)
    tensors[A_MATRIX[kind]] = np.ones(tensors[A_MATRIX[kind]].shape, dtype)
    rewrite(directory, tensors)
    refuse(kind, directory, f"{A_MATRIX[kind]} has the type .*, expected one of F64, F32, F16, BF16")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_git_lfs_pointer_is_named(kind, directory, file):
    (directory / file).write_bytes(POINTER)
    refuse(kind, directory, rf"{file}: a git-lfs pointer, not the file itself; run `git lfs pull`")


@pytest.mark.parametrize("left", [0, 7, 9, 300, -1])
def test_a_cut_off_file_of_weights_is_an_error(kind, directory, left):
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[:left])
    refuse(kind, directory, r"model\.safetensors: not a complete safetensors file")


@pytest.mark.parametrize("content", ["", "[]", "null", "3", "{", '{"a": ' * 100_000, "\ufffe"])
def test_a_config_that_is_not_an_object_is_an_error(kind, directory, content):
    (directory / "config.json").write_text(content, encoding="utf-16" if content == "\ufffe" else "utf-8")
    refuse(kind, directory, r"config\.json: (invalid JSON|contains a)")


def shard(directory):
    """Moves the weights into two shards; the index's names."""
    tensors = weights_of(directory)
    names = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in names if names[name] == file}, directory / file)
    (directory / "model.safetensors").unlink()
    return names


def write_index(directory, content):
    (directory / "model.safetensors.index.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "content",
    [{}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 3}}, {"weight_map": "x"}],
    ids=str,
)
def test_an_index_without_its_map_is_an_error(kind, directory, content):
    shard(directory)
    write_index(directory, content)
    refuse(kind, directory, r"index\.json: has no 'weight_map' of tensors and their files")


@pytest.mark.parametrize("content", ["[]", "{", POINTER.decode()])
def test_an_index_that_is_not_an_object_is_an_error(kind, directory, content):
    shard(directory)
    (directory / "model.safetensors.index.json").write_text(content)
    refuse(kind, directory, r"model\.safetensors\.index\.json: (invalid JSON|contains a|a git-lfs pointer)")


@pytest.mark.parametrize("name", ["../model-0.safetensors", "/tmp/model-0.safetensors", "", "..", "a/b", "."])
def test_a_shard_outside_the_directory_is_an_error(kind, directory, name):
    names = shard(directory)
    write_index(directory, {"weight_map": {**names, A_MATRIX[kind]: name}})
    refuse(kind, directory, r"index\.json: refers to .*, which is not a file in its directory")


def test_a_missing_shard_is_an_error(kind, directory):
    names = shard(directory)
    write_index(directory, {"weight_map": names})
    (directory / "model-1.safetensors").unlink()
    refuse(kind, directory, r"model-1\.safetensors: listed in model\.safetensors\.index\.json but missing")


def test_a_shard_without_a_tensor_of_the_index_is_an_error(kind, directory):
    names = shard(directory)
    other = {"model-0.safetensors": "model-1.safetensors", "model-1.safetensors": "model-0.safetensors"}
    write_index(directory, {"weight_map": {**names, A_MATRIX[kind]: other[names[A_MATRIX[kind]]]}})
    refuse(kind, directory, f"lists {A_MATRIX[kind]} in model-.*, which lacks it")


def test_the_index_chooses_between_two_shards_with_the_same_tensor(tmp_path):
    save_generator(build(TIED), tmp_path)
    names = shard(tmp_path)
    write_index(tmp_path, {"weight_map": names})
    old = {name: np.ones(2, np.float32) for name in names}
    for file in ("model-0.safetensors", "model-1.safetensors"):
        held = load_file(tmp_path / file)
        save_file({**old, **held}, tmp_path / file)
    model = load_generator(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, model, build(TIED))


def test_many_mismatches_are_counted_and_the_first_are_listed(tmp_path):
    save_generator(build(GATED), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_layers": 1000}))
    with pytest.raises(LampError, match=r"\(\d{4} mismatches\)") as caught:
        load_generator(tmp_path)
    assert len(str(caught.value).splitlines()) < 50


def torch_shards(directory):
    """Moves the weights into two PyTorch files with their index."""
    torch = pytest.importorskip("torch")
    tensors = weights_of(directory)
    names = {name: f"pytorch_model-0000{number % 2 + 1}-of-00002.bin" for number, name in enumerate(tensors)}
    for file in set(names.values()):
        torch.save({name: torch.tensor(tensors[name]) for name in names if names[name] == file}, directory / file)
    (directory / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return names


def test_sharded_pytorch_files_are_read(kind, directory):
    expected = LOADERS[kind](directory)
    torch_shards(directory)
    jax.tree.map(np.testing.assert_array_equal, LOADERS[kind](directory), expected)


def test_damaged_pytorch_shards_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    save_generator(build(GATED), tmp_path)
    names = torch_shards(tmp_path)
    shards = sorted(set(names.values()))
    sound = (tmp_path / shards[1]).read_bytes()
    for content, match in (
        (b"x", "not a complete PyTorch file"),
        (b"", "not a complete PyTorch file"),
        (sound[: len(sound) // 2], "not a complete PyTorch file"),
        (POINTER, "a git-lfs pointer"),
    ):
        (tmp_path / shards[1]).write_bytes(content)
        with pytest.raises(LampError, match=rf"{shards[1]}: {match}"):
            load_generator(tmp_path)
    torch.save([1, 2], tmp_path / shards[1])
    with pytest.raises(LampError, match="contains something other than tensors by name"):
        load_generator(tmp_path)
    (tmp_path / shards[1]).unlink()
    with pytest.raises(LampError, match=rf"{shards[1]}: listed in pytorch_model\.bin\.index\.json but missing"):
        load_generator(tmp_path)


def test_a_pytorch_weight_that_is_not_finite_or_no_float_is_an_error(tmp_path):
    torch = pytest.importorskip("torch")
    save_generator(build(GATED), tmp_path)
    tensors = {name: torch.tensor(tensor) for name, tensor in weights_of(tmp_path).items()}
    (tmp_path / "model.safetensors").unlink()
    tensors[A_VECTOR["t5"]][2] = torch.inf
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(LampError, match=rf"pytorch_model\.bin: 1 of 16 values of {A_VECTOR['t5']} are not finite"):
        load_generator(tmp_path)
    tensors[A_VECTOR["t5"]] = torch.ones(16, dtype=torch.int64)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(LampError, match=rf"{A_VECTOR['t5']} has the type torch\.int64"):
        load_generator(tmp_path)


def test_installing_torch_is_recommended_only_where_it_is_missing(tmp_path, monkeypatch):
    save_generator(build(GATED), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "training_args.bin").write_bytes(b"x")
    with pytest.raises(LampError, match=r"has no weights .* but training_args\.bin; give a directory") as caught:
        open_checkpoint(tmp_path)
    assert "torch," not in str(caught.value)
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LampError, match=r"has pytorch_model\.bin\.index\.json but no .*; install torch"):
        open_checkpoint(tmp_path)


class Tokenizer:
    def __init__(self, *ids):
        self.ids = ids

    def get_vocab(self):
        return {str(token): token for token in self.ids}


@pytest.mark.parametrize("beyond", [48, 60])
def test_a_tokenizer_with_ids_beyond_the_embedding_is_an_error(kind, directory, beyond):
    config = {"t5": T5Config, "bert": BertConfig, "longformer": LongformerConfig}[kind]
    check_tokenizer(Tokenizer(*range(40), 47), directory, config)
    with pytest.raises(LampError, match=rf"the tokenizer has 41 ids up to {beyond}, and the embedding has 48 rows"):
        check_tokenizer(Tokenizer(*range(40), beyond), directory, config)
