"""Adapters in and out of directories of Hugging Face's `peft`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lamp_jax.config import Lora
from lamp_jax.data.files import atomic_path, atomic_write
from lamp_jax.errors import LampError
from lamp_jax.models.hf_names import t5_places
from lamp_jax.models.lora import DOWN, UP
from lamp_jax.models.t5_config import T5Config
from lamp_jax.models.weights import read_json, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_OTHER_KINDS = (
    *("use_dora", "use_rslora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "modules_to_save"),
    *("rank_pattern", "alpha_pattern", "layers_to_transform", "layer_replication", "alora_invocation_tokens"),
    *("exclude_modules", "target_parameters", "trainable_token_indices", "velora_config", "monteclora_config"),
)
"""Options of peft that make an adapter compute something else."""
_SAME_BASE = ("gaussian", "orthogonal", "eva", "mica")
"""Names of first values that leave the base's weights as they are; others (PiSSA, OLoRA) are taken out of them."""


def read_peft(directory: str | Path, config: T5Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The adapter of a directory: its arrays of these shapes. LampError, with all that differs, where it has others."""
    directory = Path(directory)
    try:
        tensors = load_file(directory / WEIGHTS)
    except FileNotFoundError:
        raise LampError(f"{directory / WEIGHTS}: no such file; save the adapter with peft's save_pretrained") from None
    except SafetensorError as error:
        raise LampError(f"{directory / WEIGHTS}: not a whole safetensors file ({error}); copy it again") from None
    expected = tensor_shapes(config, shapes)
    problems = [f"missing: {name}" for name in expected if name not in tensors]
    problems += [f"unexpected: {name}" for name in tensors if name not in expected]
    problems += [
        f"shape of {name}: {list(tensors[name].shape)} in the file, {list(shape)} by the model"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise LampError(f"{directory / WEIGHTS}: does not fit the model ({len(problems)} mismatches)\n  {listed}")
    adapter = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for name, (array, layer) in _places(config, shapes).items():
        part = adapter[array][layer]
        part[...] = np.asarray(tensors[name], np.float32).T.reshape(part.shape)
    if not any(values.any() for name, values in adapter.items() if name.endswith(f".{UP}")):
        raise LampError(f"{directory / WEIGHTS}: has no effect, all of its lora_B are 0; train it first")
    return adapter


def read_form(directory: str | Path) -> Lora:
    """What kind of LoRA a directory holds. LampError for anything but a plain one."""
    path = Path(directory) / CONFIG
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise LampError(f"{path}: peft_type {config.get('peft_type')!r}; only LORA can be imported")
    others = [name for name in _OTHER_KINDS if config.get(name)]
    others += ["bias"] * (config.get("bias", "none") != "none")
    if others:
        raise LampError(f"{path}: {', '.join(others)}: only a plain LoRA can be imported, without these options")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _SAME_BASE:
        raise LampError(
            f"{path}: init_lora_weights {start!r} changed the base's weights, so the plain base needs another adapter; "
            "save it with peft's `path_initial_model_for_weight_conversion`, or train it with init_lora_weights=True"
        )
    try:
        targets = config["target_modules"]
        targets = (targets,) if isinstance(targets, str) else tuple(targets)
        return Lora(int(config["r"]), float(config["lora_alpha"]), targets, float(config.get("lora_dropout", 0.0)))
    except (KeyError, TypeError, ValueError) as error:
        raise LampError(f"{path}: not a whole configuration ({error!r}); save the adapter again with peft") from None


FILES = (CONFIG, WEIGHTS)
"""What `write_peft` writes."""


def write_peft(
    directory: str | Path, adapter: Mapping[str, np.ndarray], config: T5Config, lora: Lora, *, base: str
) -> None:
    """Writes a directory that `PeftModel.from_pretrained` loads on the base; the weights first, each file whole."""
    directory = Path(directory)
    shapes = {name: values.shape for name, values in adapter.items()}
    tensors = {
        name: np.ascontiguousarray(_matrix(adapter[array][layer].astype(np.float32), array))
        for name, (array, layer) in _places(config, shapes).items()
    }
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(set(lora.targets)),
        "bias": "none",
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory / CONFIG) as file, atomic_path(directory / WEIGHTS) as weights:
        write_tensors(tensors, weights, directory / WEIGHTS)
        file.write(json.dumps(settings, indent=2) + "\n")


def tensor_shapes(config: T5Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """peft's name of every tensor of an adapter -> its shape: lora_A [r, in], lora_B [out, r]."""
    found = {}
    for name, (array, _) in _places(config, shapes).items():
        _, *rest = shapes[array]
        found[name] = (rest[-1], math.prod(rest[:-1])) if array.endswith(DOWN) else (math.prod(rest[1:]), rest[0])
    return found


def _matrix(values: np.ndarray, array: str) -> np.ndarray:
    """One layer's [in, r] or [r, out], whose `in` or `out` may be several axes, as peft stores it."""
    rows = math.prod(values.shape[:-1]) if array.endswith(DOWN) else values.shape[0]
    return values.reshape(rows, -1).T


def _places(config: T5Config, arrays: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """peft's name of every tensor -> the array that holds it, and the layer there."""
    places = {}
    for name, place in t5_places(config).items():
        site = ".".join(place.path)
        if place.layer is not None and f"{site}.{DOWN}" in arrays:
            module = f"{_PREFIX}{name.removesuffix('.weight')}"
            places[f"{module}.lora_A.weight"] = (f"{site}.{DOWN}", place.layer)
            places[f"{module}.lora_B.weight"] = (f"{site}.{UP}", place.layer)
    return places
