"""Reading and writing of adapter directories of Hugging Face's `peft`."""

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lamp_jax.config import Lora
from lamp_jax.errors import LampError
from lamp_jax.models.families import family_of
from lamp_jax.models.generator import GeneratorConfig
from lamp_jax.models.lora import DOWN, UP
from lamp_jax.models.peft_config import CONFIG, read_peft_form
from lamp_jax.models.weights import write_tensors
from lamp_jax.runs.json_files import atomic_path, atomic_write, check_fetched

WEIGHTS, TORCH = "adapter_model.safetensors", "adapter_model.bin"

_PREFIX = "base_model.model."


def read_form(directory: str | Path, config: GeneratorConfig) -> Lora:
    """LoRA settings of a directory's adapter for a generator. LampError for a form that is not supported here."""
    return read_peft_form(directory, config).lora


def read_peft(
    directory: str | Path, config: GeneratorConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Adapter of a directory, with arrays of these shapes. LampError, with all mismatches, if its tensors do not fit.

    Modules that the directory's configuration does not target are 0. Matrices of lower rank than the arrays are padded
    with 0, and matrices of another scale are rescaled.
    """
    lora, additions = read_peft_form(directory, config)
    path, tensors = _read_tensors(Path(directory))
    places, ours = _places(config, shapes), tensor_shapes(config, shapes)
    expected = {}
    for name, shape in ours.items():
        module, part = _module(name)
        if module in additions:
            rank = additions[module].rank if lora.rank == _rank_of(shape, part) else _rank_of(shape, part)
            expected[name] = (rank, shape[1]) if part == "lora_A" else (shape[0], rank)
    _check_tensors(path, tensors, expected)
    adapter = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for name in expected:
        array, layer = places[name]
        module, part = _module(name)
        values = np.asarray(tensors[name], np.float32)
        if part == "lora_B" and additions[module].scale != lora.alpha / lora.rank:
            values = values * np.float32(additions[module].scale / (lora.alpha / lora.rank))
        full = np.zeros(ours[name], np.float32)
        full[: values.shape[0], : values.shape[1]] = values
        adapter[array][layer] = full.T.reshape(adapter[array][layer].shape)
    if not any(values.any() for name, values in adapter.items() if name.endswith(f".{UP}")):
        raise LampError(f"{path}: has no effect, all of its lora_B are 0; train it first")
    return adapter


def _module(name: str) -> tuple[str, str]:
    """Module and matrix (lora_A or lora_B) of a tensor's name in peft's file."""
    module, part, _ = name.removeprefix(_PREFIX).rsplit(".", 2)
    return module, part


def _rank_of(shape: tuple[int, ...], part: str) -> int:
    return shape[0] if part == "lora_A" else shape[1]


def _check_tensors(path: Path, tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing: {name}" for name in expected if name not in tensors]
    problems += [f"unexpected: {name}" for name in tensors if name not in expected]
    problems += [
        f"shape of {name}: {list(tensors[name].shape)} in the file, {list(shape)} by the model"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise LampError(f"{path}: does not fit the model ({len(problems)} mismatches)\n  {listed}")
    typed = [name for name in expected if tensors[name].dtype.kind in "biu"]
    if typed:
        raise LampError(
            f"{path}: {typed[0]} has the type {tensors[typed[0]].dtype}, not that of a weight; give an adapter that is "
            "not quantized"
        )
    broken = [name for name in expected if not np.isfinite(np.asarray(tensors[name], np.float32)).all()]
    if broken:
        raise LampError(f"{path}: {broken[0]} has values that are not finite; train the adapter again")


def _read_tensors(directory: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """File of an adapter's tensors, and the tensors; as in peft, a PyTorch file if there is no safetensors file."""
    path = directory / WEIGHTS
    if not path.exists() and (directory / TORCH).exists():
        return directory / TORCH, _read_torch(directory / TORCH)
    check_fetched(path)
    try:
        return path, load_file(path)
    except FileNotFoundError:
        raise LampError(f"{path}: no such file; save the adapter with peft's save_pretrained") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise LampError(f"{path}: not a complete safetensors file ({error}); copy it again") from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    if not importlib.util.find_spec("torch"):
        raise LampError(
            f"{path}: a PyTorch file, which only torch can read; install torch==2.13.0, or save the adapter again with "
            "peft's save_pretrained(DIR, safe_serialization=True)"
        )
    import torch

    check_fetched(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many classes for a damaged file
        raise LampError(
            f"{path}: not a complete PyTorch file of tensors ({type(error).__name__}); copy it again"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(one, torch.Tensor) for one in tensors.values()):
        raise LampError(f"{path}: contains something other than named tensors; save the adapter again with peft")
    return {str(name): (one.float() if one.is_floating_point() else one).numpy() for name, one in tensors.items()}


FILES = (CONFIG, WEIGHTS)
"""Files that `write_peft` writes."""


def write_peft(
    directory: str | Path, adapter: Mapping[str, np.ndarray], config: GeneratorConfig, lora: Lora, *, base: str
) -> None:
    """Writes a directory for `PeftModel.from_pretrained` on the base; each file atomically, the weights first."""
    directory = Path(directory)
    shapes = {name: values.shape for name, values in adapter.items()}
    tensors = {
        name: np.ascontiguousarray(_matrix(adapter[array][layer].astype(np.float32), array))
        for name, (array, layer) in _places(config, shapes).items()
    }
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": family_of(config).peft_task,
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


def tensor_shapes(config: GeneratorConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of an adapter by peft's name: lora_A [r, in], lora_B [out, r]."""
    found = {}
    for name, (array, _) in _places(config, shapes).items():
        _, *rest = shapes[array]
        found[name] = (rest[-1], math.prod(rest[:-1])) if array.endswith(DOWN) else (math.prod(rest[1:]), rest[0])
    return found


def _matrix(values: np.ndarray, array: str) -> np.ndarray:
    """One layer's [in, r] or [r, out], whose `in` or `out` may be several axes, as a matrix in peft's order."""
    rows = math.prod(values.shape[:-1]) if array.endswith(DOWN) else values.shape[0]
    return values.reshape(rows, -1).T


def _places(config: GeneratorConfig, arrays: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Array and layer of every tensor, by peft's name."""
    places = {}
    for name, place in family_of(config).projections(config).items():
        site = ".".join(place.path)
        if f"{site}.{DOWN}" in arrays:
            places[f"{_PREFIX}{name}.lora_A.weight"] = (f"{site}.{DOWN}", place.layer or 0)
            places[f"{_PREFIX}{name}.lora_B.weight"] = (f"{site}.{UP}", place.layer or 0)
    return places
