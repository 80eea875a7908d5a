"""Loading and saving of models in Hugging Face's format."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from safetensors import SafetensorError
from safetensors.numpy import save_file

from lamp_jax.distributed import read
from lamp_jax.errors import LampError
from lamp_jax.models.bert import Bert, BertConfig
from lamp_jax.models.hf_names import Place, bert_places, longformer_places
from lamp_jax.models.longformer import Longformer, LongformerConfig
from lamp_jax.models.quantized import quantize
from lamp_jax.models.tensors import (
    CONFIG,
    WEIGHTS,
    Checkpoint,
    check_names_and_shapes,
    find_model,
    open_checkpoint,
    read_json,
)
from lamp_jax.runs.json_files import atomic_path, atomic_write
from lamp_jax.runs.processes import is_first
from lamp_jax.sharding import put

MODEL_FILES = (CONFIG, WEIGHTS)
"""Files that `save` writes."""

_BERT_UNREAD = ("pooler.", "cls.", "embeddings.position_ids")

# Prefixes of a Longformer in HF's larger models, in the public code's selector, or alone; names of pooler and head.
_LONGFORMER_BODIES = ("longformer.", "model.", "")
_LONGFORMER_HEAD = {"body": "longformer.", "pooler": "classifier.dense", "head": "classifier.out_proj"}
_LONGFORMER_UNREAD = ("lm_head.", "pooler.", "embeddings.position_ids")


def fill(model: Any, checkpoint: Checkpoint, places: Mapping[str, Place]) -> Any:
    """Model with every parameter that has a place read from the checkpoint, in the model's sharding and dtype.

    The model is abstract (`jax.eval_shape`), or concrete if parameters without a place keep their values.
    """
    graph, state = nnx.split(model)
    flat = dict(nnx.to_flat_state(state))
    shapes = check_fit(model, checkpoint, places)
    parts: dict[tuple[Any, ...], list[tuple[str, Place]]] = defaultdict(list)
    for name, place in places.items():
        parts[place.path].append((name, place))
    for path, members in parts.items():
        if path in flat:
            arrays = {path: _read_parameter(checkpoint, members, shapes[path])}
        else:
            steps, scale = _read_quantized(checkpoint, members, shapes[path])
            arrays = {(*path, "steps"): steps, (*path, "scale"): scale}
        for leaf, array in arrays.items():
            like = flat[leaf].get_value()
            spec = getattr(like.sharding, "spec", P())  # arrays without or with a single-device sharding have none
            flat[leaf] = flat[leaf].replace(put(array.astype(like.dtype, copy=False), spec))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def check_fit(
    model: Any, checkpoint: Checkpoint, places: Mapping[str, Place]
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shape of every parameter that has a place. LampError unless the checkpoint's tensors match."""
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    shapes = {place.path: _stored(flat, place.path).shape for place in places.values()}
    check_names_and_shapes(checkpoint, places, shapes)
    return shapes


def _read_parameter(checkpoint: Checkpoint, members: Sequence[tuple[str, Place]], shape: tuple[int, ...]) -> np.ndarray:
    """Parameter of this shape, all of its layers, as float32."""
    values = np.empty(shape, np.float32)
    for name, place in members:
        part = values if place.layer is None else values[place.layer]
        part[...] = place.from_hf(checkpoint.read(name), part.shape)
    return values


def _read_quantized(
    checkpoint: Checkpoint, members: Sequence[tuple[str, Place]], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Quantized weight of this shape, as by `quantize`; only one of its layers is in memory as float32 at a time."""
    inputs = members[0][1].inputs or 0
    steps, scale = np.empty(shape, np.int8), np.empty((shape[0], *shape[1 + inputs :]), np.float32)
    for name, place in members:
        layer, values = place.layer or 0, place.from_hf(checkpoint.read(name), shape[1:])
        (steps[layer],), (scale[layer],) = quantize(values[None], inputs=inputs)
    return steps, scale


def _stored(flat: Mapping[tuple[Any, ...], Any], path: tuple[str, ...]) -> Any:
    return flat[path] if path in flat else flat[*path, "steps"]


def read_config(directory: Path, kind: Any) -> Any:
    """Configuration of this class, such as BertConfig, in a directory's `config.json`."""
    return kind.from_hf(read_json(directory / CONFIG), source=str(directory / CONFIG))


def check_tokenizer(tokenizer: Any, source: str | Path, kind: Any) -> None:
    """LampError for a tokenizer with ids outside the embedding of the model in a directory or of a hub name.

    `kind` is the class of its configuration, as in `read_config`.
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


def load_bert(source: str | Path, **model_kwargs: Any) -> Bert:
    """BERT, such as Contriever, from a directory or a hub name, on the current mesh; parameters in float32.

    The pooler and heads of a larger model (`cls.*`) are not read.
    """
    directory = find_model(source)
    config: BertConfig = read_config(directory, BertConfig)
    checkpoint = open_checkpoint(directory)
    places = bert_places(config)
    if any(name.endswith(".gamma") for name in checkpoint.files):  # names of the first converted BERTs
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        places = {_renamed(name, old): place for name, place in places.items()}
    if not places.keys() & checkpoint.files.keys():  # saved as part of a larger model
        places = {f"bert.{name}": place for name, place in places.items()}
    used = {
        name: file
        for name, file in checkpoint.files.items()
        if name in places or not name.removeprefix("bert.").startswith(_BERT_UNREAD)
    }
    abstract = jax.eval_shape(lambda: Bert(config, rngs=nnx.Rngs(0), **model_kwargs))
    return fill(abstract, replace(checkpoint, files=used), places)


def load_longformer(source: str | Path, *, seed: int = 0, **model_kwargs: Any) -> Longformer:
    """Longformer from a directory or a hub name, on the current mesh; parameters in float32.

    A missing pooler or head, as in `allenai/longformer-base-4096`, is drawn from the seed.
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
        return Longformer(config, rngs=nnx.Rngs(seed), **model_kwargs)

    return fill(build() if fresh else jax.eval_shape(build), replace(checkpoint, files=used), read)


def _renamed(name: str, endings: Mapping[str, str]) -> str:
    ending = next((ending for ending in endings if name.endswith(ending)), None)
    return name if ending is None else name.removesuffix(ending) + endings[ending]


def save_bert(model: Bert, directory: str | Path) -> None:
    """Writes a BERT for `AutoModel.from_pretrained`; otherwise as `save`."""
    save(model, bert_places(model.config), model.config.to_hf(), directory)


def save_longformer(model: Longformer, directory: str | Path) -> None:
    """Writes a Longformer for `AutoModelForSequenceClassification.from_pretrained`, one label; otherwise as `save`.

    The first token of that model has global attention by default, as here with `first_token="global"`.
    """
    save(model, longformer_places(model.config, **_LONGFORMER_HEAD), model.config.to_hf(), directory)


def save(model: Any, places: Mapping[str, Place], config: Mapping[str, Any], directory: str | Path) -> None:
    """Writes `config.json`, and the parameters that have a place to `model.safetensors`.

    Each file is written atomically, the weights first. With several processes, all call this function and the first
    one writes.
    """
    directory, tensors = Path(directory), hf_tensors(model, places)
    if is_first():
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_write(directory / CONFIG) as file, atomic_path(directory / WEIGHTS) as weights:
            write_tensors(tensors, weights, directory / WEIGHTS)
            file.write(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_tensors(tensors: Mapping[str, np.ndarray], temporary: Path, path: Path) -> None:
    """Writes a safetensors file. LampError, naming `path`, if the disk is full."""
    try:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})
    except SafetensorError as error:  # raised by safetensors for an OSError
        raise LampError(
            f"{path}: cannot be written ({error}); free disk space, then run the same command again"
        ) from None


def hf_tensors(model: Any, places: Mapping[str, Place]) -> dict[str, np.ndarray]:
    """Tensors in host memory, by HF's name.

    All processes must call this function, because each parameter is gathered from all; only the first one gets tensors.
    """

    names: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, place in places.items():
        names[place.path].append(name)
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        gathered = read(variable.get_value())
        for name in names[path] if is_first() else ():
            values = gathered if places[name].layer is None else gathered[places[name].layer]
            tensors[name] = np.ascontiguousarray(places[name].to_hf(values))
    return tensors
