"""Generator families by the `model_type` of `config.json`; loading and saving of generator directories."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lamp_jax.config import Storage
from lamp_jax.errors import LampError
from lamp_jax.models import weights
from lamp_jax.models.generator import Generator, GeneratorConfig
from lamp_jax.models.hf_names import Place, t5_places
from lamp_jax.models.quantized import abstract_quantized, as_type
from lamp_jax.models.t5 import T5
from lamp_jax.models.t5_config import SIZES, T5Config
from lamp_jax.models.t5_weights import NO_PROJECTIONS, open_t5, read_t5_config
from lamp_jax.models.tensors import CONFIG, Checkpoint, find_model, read_json
from lamp_jax.runs.json_files import short_repr

_FINGERPRINT_ROWS = 8  # per matrix
_NEVER_SMALL = ("scale", "table")  # norms and relative positions, by the last part of their names


@dataclass(frozen=True)
class Family:
    """One generator architecture: its model, and its format in Hugging Face's files."""

    config: type[Any]
    """Frozen dataclass that implements `GeneratorConfig`, with `from_hf(values, source=...)` and `to_hf()`."""
    model: Callable[..., Generator]
    """Constructor: takes a config, `rngs`, and the keyword arguments of `sharding.model_options`."""
    places: Callable[[Any], Mapping[str, Place]]
    """Function: config -> place of every parameter in the model, by Hugging Face's name."""
    read_config: Callable[[Path], Any]
    """Function: directory -> config, completed from the weights where `config.json` is not sufficient."""
    open: Callable[[Path], tuple[Any, Checkpoint, Mapping[str, Place]]]
    """Function: directory -> config, tensors to read from its weights, and their places."""
    peft_task: str
    """`task_type` of peft's adapters."""
    no_projections: tuple[str, ...] = ()
    """Modules other than layer projections which peft can adapt, but LoRA here cannot."""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """Configs of published models, by the last part of their names on the hub."""

    def projections(self, config: GeneratorConfig) -> dict[str, Place]:
        """Matrices of all layers that LoRA can adapt, by Hugging Face's name of their module."""
        return {
            name.removesuffix(".weight"): place
            for name, place in self.places(config).items()
            if place.layer is not None and place.inputs
        }


FAMILIES: dict[str, Family] = {
    T5Config.model_type: Family(
        config=T5Config,
        model=T5,
        places=t5_places,
        read_config=read_t5_config,
        open=open_t5,
        peft_task="SEQ_2_SEQ_LM",
        no_projections=NO_PROJECTIONS,
        sizes=SIZES,
    ),
}
"""Families by model type. A new architecture adds a row."""


def find_family(directory: Path) -> Family:
    """Family of the generator in a directory. LampError for a `config.json` of an unsupported model."""
    kind = read_json(directory / CONFIG).get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise LampError(
            f"{directory / CONFIG}: model_type {short_repr(kind)} is not supported, only {', '.join(FAMILIES)}; "
            "give such a model, for example google/flan-t5-base"
        )
    return FAMILIES[kind]


def family_of(config: GeneratorConfig) -> Family:
    """Family of a config."""
    return FAMILIES[config.model_type]


def published_configs() -> dict[str, GeneratorConfig]:
    """Configs of published models of all families, by the last part of their names on the hub."""
    return {name: config for family in FAMILIES.values() for name, config in family.sizes.items()}


def scratch_config(vocabulary: int, **sizes: Any) -> GeneratorConfig:
    """Config of a new model for a tokenizer with `vocabulary` tokens, made by `T5Config.for_scratch`."""
    return T5Config.for_scratch(vocabulary, **sizes)


def new_generator(config: GeneratorConfig, *, seed: int, **model_kwargs: Any) -> Generator:
    """Generator with parameters drawn from the seed, on the current mesh; `model_kwargs` as in `load_generator`."""
    return family_of(config).model(config, rngs=nnx.Rngs(seed), **model_kwargs)


def abstract_generator(config: GeneratorConfig, *, storage: Storage = "float32", **model_kwargs: Any) -> Generator:
    """Abstract generator: shapes without values."""
    model = jax.eval_shape(lambda: new_generator(config, seed=0, **model_kwargs))
    if storage == "float32":
        return model
    for place in {place.path: place for place in family_of(config).places(config).values()}.values():
        *parents, last = place.path
        module = reduce(getattr, parents, model)
        if storage == "int8" and place.inputs:
            setattr(module, last, abstract_quantized(getattr(module, last), inputs=place.inputs))
        elif last not in _NEVER_SMALL:
            weight = getattr(module, last)
            setattr(module, last, weight.replace(as_type(weight.get_value(), jnp.bfloat16)))
    return model


def load_generator(source: str | Path, *, storage: Storage = "float32", **model_kwargs: Any) -> Generator:
    """Generator of a directory or hub name, on the current mesh; parameters in float32.

    For a frozen model, `storage` is the type in which its matrices are kept in memory. `model_kwargs` are the keyword
    arguments of the family's model: dtype, remat, attention, rules. LampError, naming the file, for a model of an
    unsupported family, and if the directory has no usable config or weights or they do not fit each other.
    """
    directory = find_model(source)
    config, checkpoint, places = find_family(directory).open(directory)
    return weights.fill(abstract_generator(config, storage=storage, **model_kwargs), checkpoint, places)


def read_generator_config(source: str | Path) -> GeneratorConfig:
    """Config of the generator in a directory or of a hub name. LampError as load_generator.

    Values that `config.json` lacks are read from the weights if they exist.
    """
    directory = find_model(source)
    return find_family(directory).read_config(directory)


def check_generator_tokenizer(tokenizer: Any, source: str | Path) -> None:
    """LampError for a tokenizer with ids outside the embedding of the generator in a directory or of a hub name."""
    weights.check_tokenizer(tokenizer, source, find_family(find_model(source)).config)


def fingerprint_generator(source: str | Path) -> str:
    """Fingerprint of a generator's weights: SHA-256 over a few rows of each, independent of their file format."""
    directory = find_model(source)
    config, checkpoint, places = find_family(directory).open(directory)
    weights.check_fit(abstract_generator(config), checkpoint, places)
    digest = hashlib.sha256()
    for name, place in sorted(places.items(), key=lambda one: (one[1].path, one[1].layer or 0)):
        digest.update(f"{'.'.join(place.path)} {place.layer}".encode())
        rows = min(_FINGERPRINT_ROWS, checkpoint.shape(name)[0])  # a slice beyond the end is an error of safetensors
        digest.update(checkpoint.read(name, slice(rows)).astype("<f4").tobytes())
    return digest.hexdigest()


def save_generator(model: Any, directory: str | Path) -> None:
    """Writes `config.json` and `model.safetensors`, which transformers' `from_pretrained` reads.

    Each file is written atomically, the weights first. With several processes, all call this function and the first
    one writes.
    """
    config = model.config
    weights.save(model, family_of(config).places(config), config.to_hf(), directory)
