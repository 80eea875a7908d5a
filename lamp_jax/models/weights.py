"""Models from, and to, directories in Hugging Face's format."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from safetensors import SafetensorError
from safetensors.numpy import save_file

from lamp_jax.config import Storage
from lamp_jax.distributed import read
from lamp_jax.errors import LampError
from lamp_jax.models.bert import Bert, BertConfig
from lamp_jax.models.hf_names import Place, bert_places, longformer_places, t5_places
from lamp_jax.models.longformer import Longformer, LongformerConfig
from lamp_jax.models.quantized import abstract_quantized, as_type, quantize
from lamp_jax.models.t5 import T5
from lamp_jax.models.t5_config import T5Config
from lamp_jax.models.tensors import (
    CONFIG,
    WEIGHTS,
    Checkpoint,
    check_names_and_shapes,
    find_model,
    has_weights,
    open_checkpoint,
    read_json,
)
from lamp_jax.runs.json_files import atomic_path, atomic_write
from lamp_jax.runs.processes import is_first
from lamp_jax.sharding import put

MODEL_FILES = (CONFIG, WEIGHTS)
"""What `save_t5`, `save_bert` and `save_longformer` write."""

_FINGERPRINT_ROWS = 8  # of each matrix
_NEVER_SMALL = ("scale", "table")  # norms and relative positions, by their last name

# The embedding's names, of which the first that a file has is read; then leftovers beside the parameters.
_T5_TABLE, _T5_HEAD = "shared.weight", "lm_head.weight"
_T5_COPIES = ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight")
_T5_UNREAD = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"}
_BERT_UNREAD = ("pooler.", "cls.", "embeddings.position_ids")

# A Longformer inside HF's larger models, inside the public code's selector, or alone; its pooler and head beside it.
_LONGFORMER_BODIES = ("longformer.", "model.", "")
_LONGFORMER_HEAD = {"body": "longformer.", "pooler": "classifier.dense", "head": "classifier.out_proj"}
_LONGFORMER_UNREAD = ("lm_head.", "pooler.", "embeddings.position_ids")


def fill(model: Any, checkpoint: Checkpoint, places: Mapping[str, Place]) -> Any:
    """A model with every parameter that has a place read from the checkpoint, each on its own devices, as it is stored.

    The model is abstract (`jax.eval_shape`), or real where parameters without a place are to stay.
    """
    graph, state = nnx.split(model)
    flat = dict(nnx.to_flat_state(state))
    shapes = _check_fit(flat, checkpoint, places)
    parts: dict[tuple[Any, ...], list[tuple[str, Place]]] = defaultdict(list)
    for name, place in places.items():
        parts[place.path].append((name, place))
    for path, members in parts.items():
        if path in flat:
            arrays = {path: _read_whole(checkpoint, members, shapes[path])}
        else:
            steps, scale = _read_quantized(checkpoint, members, shapes[path])
            arrays = {(*path, "steps"): steps, (*path, "scale"): scale}
        for leaf, array in arrays.items():
            like = flat[leaf].get_value()
            spec = getattr(like.sharding, "spec", P())  # of one device's arrays, or none, there is nothing to say
            flat[leaf] = flat[leaf].replace(put(array.astype(like.dtype, copy=False), spec))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _check_fit(
    flat: Mapping[tuple[Any, ...], Any], checkpoint: Checkpoint, places: Mapping[str, Place]
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of every parameter that has a place. LampError unless the checkpoint's tensors are those."""
    shapes = {place.path: _stored(flat, place.path).shape for place in places.values()}
    check_names_and_shapes(checkpoint, places, shapes)
    return shapes


def _read_whole(checkpoint: Checkpoint, members: Sequence[tuple[str, Place]], shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of this shape, all of its layers, as float32."""
    values = np.empty(shape, np.float32)
    for name, place in members:
        part = values if place.layer is None else values[place.layer]
        part[...] = place.from_hf(checkpoint.read(name), part.shape)
    return values


def _read_quantized(
    checkpoint: Checkpoint, members: Sequence[tuple[str, Place]], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """What `quantize` makes of a weight of this shape; only one of its layers is ever in memory as float32."""
    inputs = members[0][1].inputs or 0
    steps, scale = np.empty(shape, np.int8), np.empty((shape[0], *shape[1 + inputs :]), np.float32)
    for name, place in members:
        layer, values = place.layer or 0, place.from_hf(checkpoint.read(name), shape[1:])
        (steps[layer],), (scale[layer],) = quantize(values[None], inputs=inputs)
    return steps, scale


def _stored(flat: Mapping[tuple[Any, ...], Any], path: tuple[str, ...]) -> Any:
    return flat[path] if path in flat else flat[*path, "steps"]


def load_t5(source: str | Path, *, storage: Storage = "float32", **layout: Any) -> T5:
    """A T5 or FLAN-T5 from a directory or a hub name, onto the current mesh; parameters float32.

    For a model that is only read, `storage` says how its matrices lie in memory. `layout` is what `T5` takes beside its
    config: dtype, remat, attention, rules. LampError, naming the file, if the directory has no usable config or weights
    or they do not fit each other.
    """
    config, checkpoint, places = _open_t5(find_model(source))
    return fill(abstract_t5(config, storage=storage, **layout), checkpoint, places)


def read_t5_config(source: str | Path) -> T5Config:
    """The config of a T5 in a directory or of a hub name. LampError as load_t5.

    Whether the embeddings are tied, the weights say; without weights, `config.json` alone.
    """
    directory = find_model(source)
    config = read_config(directory, T5Config)
    return _open_t5(directory)[0] if config.tie_word_embeddings and has_weights(directory) else config


def read_config(directory: Path, kind: Any) -> Any:
    """The configuration of this kind (T5Config, BertConfig, LongformerConfig) in a directory's `config.json`."""
    return kind.from_hf(read_json(directory / CONFIG), source=str(directory / CONFIG))


def check_tokenizer(tokenizer: Any, source: str | Path, kind: type[T5Config] | type[BertConfig] = T5Config) -> None:
    """LampError for a tokenizer with ids for which the model of a directory or hub name has no row in its embedding.

    A look-up beyond the embedding is no error in jax: it reads the last row.
    """
    directory = find_model(source)
    rows = read_config(directory, kind).vocab_size
    ids = tokenizer.get_vocab().values()
    highest = max(ids, default=-1)
    if highest >= rows:
        raise LampError(
            f"{source}: the tokenizer has {len(ids)} ids up to {highest}, and the embedding has {rows} rows "
            f"(vocab_size in {CONFIG}); use the tokenizer that the model was trained with, or resize the model's "
            f"embedding to {highest + 1} rows or more and train it again"
        )


def abstract_t5(config: T5Config, *, storage: Storage = "float32", **layout: Any) -> T5:
    """A T5 of shapes without numbers."""
    model = jax.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0), **layout))
    for place in {place.path: place for place in t5_places(config).values()}.values() if storage != "float32" else ():
        *parents, last = place.path
        holder = reduce(getattr, parents, model)
        if storage == "int8" and place.inputs is not None:
            setattr(holder, last, abstract_quantized(getattr(holder, last), inputs=place.inputs))
        elif last not in _NEVER_SMALL:
            weight = getattr(holder, last)
            setattr(holder, last, weight.replace(as_type(weight.get_value(), jnp.bfloat16)))
    return model


def fingerprint_t5(source: str | Path) -> str:
    """What tells this T5's weights from any other's: SHA-256 over a few rows of each, however they are stored."""
    config, checkpoint, places = _open_t5(find_model(source))
    _check_fit(dict(nnx.to_flat_state(nnx.state(abstract_t5(config)))), checkpoint, places)
    found = hashlib.sha256()
    for name, place in sorted(places.items(), key=lambda one: (one[1].path, one[1].layer or 0)):
        found.update(f"{'.'.join(place.path)} {place.layer}".encode())
        found.update(checkpoint.read(name, slice(_FINGERPRINT_ROWS)).astype("<f4").tobytes())
    return found.hexdigest()


def _open_t5(directory: Path) -> tuple[T5Config, Checkpoint, dict[str, Place]]:
    """The configuration of a T5, the tensors of it that are read, and where they go.

    transformers 5 calls every T5 tied; it is, unless the file has two different matrices. Of equal ones one is read.
    """
    config, checkpoint = read_config(directory, T5Config), open_checkpoint(directory)
    files = checkpoint.files
    names = [_T5_TABLE, *_T5_COPIES, *([_T5_HEAD] if config.tie_word_embeddings else [])]
    table, *copies = [name for name in names if name in files] or [_T5_TABLE]
    others = [name for name in copies if not checkpoint.equal(table, name)]
    if _T5_HEAD in others:
        others.remove(_T5_HEAD)
        config = replace(config, tie_word_embeddings=False, scale_decoder_outputs=config.scales_outputs)
    if others:
        raise LampError(
            f"{files[others[0]]}: {', '.join(others)} should be equal to {table}, and is not; "
            "a T5 has one embedding: copy or download the model again"
        )
    places = t5_places(config)
    places[table] = places.pop(_T5_TABLE)
    redundant = {*copies, *_T5_UNREAD}
    used = {name: file for name, file in files.items() if name in places or name not in redundant}
    return config, replace(checkpoint, files=used), places


def load_bert(source: str | Path, **layout: Any) -> Bert:
    """A BERT, such as Contriever, from a directory or a hub name, onto the current mesh; as load_t5 otherwise.

    Its pooler and what a larger model has beside the encoder (`cls.*`) are not read.
    """
    directory = find_model(source)
    config: BertConfig = read_config(directory, BertConfig)
    checkpoint = open_checkpoint(directory)
    places = bert_places(config)
    if any(name.endswith(".gamma") for name in checkpoint.files):  # as the first BERTs were converted
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        places = {_renamed(name, old): place for name, place in places.items()}
    if not places.keys() & checkpoint.files.keys():  # saved inside a larger model
        places = {f"bert.{name}": place for name, place in places.items()}
    used = {
        name: file
        for name, file in checkpoint.files.items()
        if name in places or not name.removeprefix("bert.").startswith(_BERT_UNREAD)
    }
    abstract = jax.eval_shape(lambda: Bert(config, rngs=nnx.Rngs(0), **layout))
    return fill(abstract, replace(checkpoint, files=used), places)


def load_longformer(source: str | Path, *, seed: int = 0, **layout: Any) -> Longformer:
    """A Longformer from a directory or a hub name, onto the current mesh; as load_t5 otherwise.

    A pooler or head that is not there, as in `allenai/longformer-base-4096`, is drawn from the seed.
    """
    directory = find_model(source)
    config: LongformerConfig = read_config(directory, LongformerConfig)
    checkpoint = open_checkpoint(directory)
    files = checkpoint.files
    body = next((body for body in _LONGFORMER_BODIES if f"{body}embeddings.word_embeddings.weight" in files), "")
    pooler = "classifier.dense" if "classifier.dense.weight" in files else f"{body}pooler.dense"
    head = "classifier.out_proj" if "classifier.out_proj.weight" in files else "classifier"
    places = longformer_places(config, body=body, pooler=pooler, head=head)
    fresh = [part for part in (pooler, head) if f"{part}.weight" not in files]
    read = {name: place for name, place in places.items() if name.rpartition(".")[0] not in fresh}
    used = {
        name: file
        for name, file in files.items()
        if name in read or not name.removeprefix(body).startswith(_LONGFORMER_UNREAD)
    }

    def build() -> Longformer:
        return Longformer(config, rngs=nnx.Rngs(seed), **layout)

    return fill(build() if fresh else jax.eval_shape(build), replace(checkpoint, files=used), read)


def _renamed(name: str, endings: Mapping[str, str]) -> str:
    ending = next((ending for ending in endings if name.endswith(ending)), None)
    return name if ending is None else name.removesuffix(ending) + endings[ending]


def save_t5(model: T5, directory: str | Path) -> None:
    """Writes `config.json` and `model.safetensors` so that `T5ForConditionalGeneration.from_pretrained` reads them.

    Each file appears whole or not at all, the weights first. With several processes all call it; the first one writes.
    """
    _save(model, t5_places(model.config), model.config.to_hf(), Path(directory))


def save_bert(model: Bert, directory: str | Path) -> None:
    """Writes `config.json` and `model.safetensors` so that `AutoModel.from_pretrained` reads them; as save_t5."""
    _save(model, bert_places(model.config), model.config.to_hf(), Path(directory))


def save_longformer(model: Longformer, directory: str | Path) -> None:
    """Writes what `AutoModelForSequenceClassification.from_pretrained` reads, one label; otherwise as save_t5.

    That model's first token reads all texts unless it is told otherwise, as here with `first_token="global"`.
    """
    _save(model, longformer_places(model.config, **_LONGFORMER_HEAD), model.config.to_hf(), Path(directory))


def _save(model: Any, places: Mapping[str, Place], config: Mapping[str, Any], directory: Path) -> None:
    tensors = hf_tensors(model, places)
    if is_first():
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_write(directory / CONFIG) as file, atomic_path(directory / WEIGHTS) as weights:
            write_tensors(tensors, weights, directory / WEIGHTS)
            file.write(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_tensors(tensors: Mapping[str, np.ndarray], temporary: Path, path: Path) -> None:
    """A safetensors file. LampError, naming `path`, where it does not fit onto the disk."""
    try:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})
    except SafetensorError as error:  # an OSError of another name
        raise LampError(f"{path}: cannot be written ({error}); make room, then give the same command again") from None


def hf_tensors(model: Any, places: Mapping[str, Place]) -> dict[str, np.ndarray]:
    """HF's name -> tensor, in host memory.

    All processes call it, because each parameter is gathered from all; the first one keeps them, the others none.
    """
    names: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, place in places.items():
        names[place.path].append(name)
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        whole = read(variable.get_value())
        for name in names[path] if is_first() else ():
            values = whole if places[name].layer is None else whole[places[name].layer]
            tensors[name] = np.ascontiguousarray(places[name].to_hf(values))
    return tensors
