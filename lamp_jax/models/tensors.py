"""Tensors of a model directory: safetensors or PyTorch files, single or in shards, validated while reading."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lamp_jax.errors import LampError
from lamp_jax.models.hf_names import Place
from lamp_jax.runs.json_files import check_fetched, short_repr

WEIGHTS, CONFIG, TORCH = "model.safetensors", "config.json", "pytorch_model.bin"
INDEX, TORCH_INDEX = f"{WEIGHTS}.index.json", f"{TORCH}.index.json"

_FLOATS = ("F64", "F32", "F16", "BF16")
_LISTED = 40  # mismatches per message
_SLICE = 2**24  # number of values compared at a time


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one directory, as a map from name to safetensors file."""

    directory: Path
    files: Mapping[str, Path]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. LampError for a tensor whose type is not floating-point."""
        with safe_open(self.files[name], framework="numpy") as file:
            values = file.get_slice(name)
            dtype, shape = values.get_dtype(), tuple(values.get_shape())
        if dtype not in _FLOATS:
            raise _no_weight(self.files[name], name, dtype)
        return shape

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Tensor, or rows of it, converted to float32. LampError for a value that is not finite."""
        values = self.load(name, rows)
        check_finite(values, name, path=self.files[name])
        return values

    def load(self, name: str, rows: slice) -> np.ndarray:
        with safe_open(self.files[name], framework="numpy") as file:
            return np.asarray(file.get_slice(name)[rows], dtype=np.float32)

    def equal(self, one: str, other: str) -> bool:
        """Whether two matrices are equal; the comparison ends at the first slice that differs."""
        shape = self.shape(one)
        if shape != self.shape(other) or len(shape) != 2:
            return False
        step = max(1, _SLICE // max(1, int(np.prod(shape[1:]))))
        starts = [0, *range(8, shape[0], step)]  # different matrices usually differ in their first rows
        slices = (slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True))
        return all(np.array_equal(self.read(one, rows), self.read(other, rows)) for rows in slices)


@dataclass(frozen=True)
class TorchCheckpoint(Checkpoint):
    """Tensors of PyTorch files, all in memory: the only format of older models on the hub, such as Contriever."""

    tensors: Mapping[str, Any] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        if not self.tensors[name].is_floating_point():
            raise _no_weight(self.files[name], name, self.tensors[name].dtype)
        return tuple(self.tensors[name].shape)

    def load(self, name: str, rows: slice) -> np.ndarray:
        return self.tensors[name][rows].detach().float().numpy()


def check_finite(values: np.ndarray, name: str, *, path: Path) -> None:
    """LampError, with the first position, if a weight has NaN or infinity.

    Any such value makes the sum not finite, so that valid weights are read once, without allocation.
    """
    with np.errstate(all="ignore"):
        if np.isfinite(values.sum()):
            return
    bad = ~np.isfinite(values)
    if bad.any():
        first = np.unravel_index(int(bad.argmax()), values.shape)
        where = ", ".join(str(place) for place in first)
        raise LampError(
            f"{path}: {bad.sum():,} of {values.size:,} values of {name} are not finite, the first at [{where}] "
            f"({values[first]}); the model is damaged, or its training diverged or overflowed in float16: "
            "use an earlier checkpoint, or save it again in float32 or bfloat16"
        )


def _no_weight(path: Path, name: str, dtype: Any) -> LampError:
    return LampError(
        f"{path}: {name} has the type {dtype}, expected one of {', '.join(_FLOATS)}; "
        "give a model that is not quantized, as it was published"
    )


def has_weights(directory: Path) -> bool:
    """Whether a directory has files that `open_checkpoint` can read."""
    names = (WEIGHTS, INDEX, *((TORCH, TORCH_INDEX) if importlib.util.find_spec("torch") else ()))
    return any((directory / name).is_file() for name in names)


def open_checkpoint(directory: Path) -> Checkpoint:
    """Tensors of `model.safetensors`, or of the shards that its index names. LampError for missing or damaged files.

    If there are only PyTorch files, torch reads them, if it is installed.
    """
    if (directory / WEIGHTS).is_file():
        return Checkpoint(directory, dict.fromkeys(_names(directory / WEIGHTS), directory / WEIGHTS))
    if (directory / INDEX).is_file():
        shards = _read_index(directory / INDEX)
        held = {shard: _names(shard) for shard in sorted(set(shards.values()))}
        return Checkpoint(directory, _by_index(shards, held, directory / INDEX))
    if has_weights(directory):
        return _open_torch(directory)
    raise LampError(_no_weights(directory))


def _names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file."""
    check_fetched(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise LampError(f"{path}: not a complete safetensors file ({error}); copy or download it again") from error


def _read_index(path: Path) -> dict[str, Path]:
    """File of every tensor in an index. LampError for files that are missing or in another directory."""
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise LampError(f"{path}: has no 'weight_map' of tensors and their files; copy or download it again")
    for name in sorted(set(names.values())):
        if Path(name).name != name or name in ("", ".."):
            raise LampError(
                f"{path}: refers to {short_repr(name)}, which is not a file in its directory; download the model again"
            )
        if not (path.parent / name).is_file():
            raise LampError(
                f"{path.parent / name}: listed in {path.name} but missing; copy or download the directory again"
            )
    return {tensor: path.parent / name for tensor, name in names.items()}


def _by_index(shards: Mapping[str, Path], held: Mapping[Path, Any], index: Path) -> dict[str, Path]:
    """File of every tensor: as in the index, or the file that has it if the index lacks it."""
    absent = [name for name, shard in shards.items() if name not in held[shard]]
    if absent:
        raise LampError(
            f"{index}: lists {absent[0]} in {shards[absent[0]].name}, which lacks it ({len(absent)} such "
            f"tensors); copy or download the directory again"
        )
    return {name: shard for shard, names in held.items() for name in names} | dict(shards)


def _open_torch(directory: Path) -> TorchCheckpoint:
    if (directory / TORCH).is_file():
        tensors = _read_torch(directory / TORCH)
        return TorchCheckpoint(directory, dict.fromkeys(tensors, directory / TORCH), tensors)
    shards = _read_index(directory / TORCH_INDEX)
    held = {shard: _read_torch(shard) for shard in sorted(set(shards.values()))}
    files = _by_index(shards, held, directory / TORCH_INDEX)
    return TorchCheckpoint(directory, files, {name: held[file][name] for name, file in files.items()})


def _read_torch(path: Path) -> dict[str, Any]:
    """Tensors of one PyTorch file, by name."""
    import torch

    check_fetched(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any exception
        raise LampError(f"{path}: not a complete PyTorch file ({error}); copy or download it again") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
        for name, tensor in tensors.items()
    ):
        raise LampError(f"{path}: contains something other than tensors by name; give the weights of a model")
    return tensors


def _no_weights(directory: Path) -> str:
    torch_files = [name for name in (TORCH, TORCH_INDEX) if (directory / name).is_file()]
    if torch_files:
        return (
            f"{directory}: has {torch_files[0]} but no {WEIGHTS}; install torch, which reads it, "
            "or save the model as safetensors on a machine that has torch"
        )
    others = sorted(file.name for pattern in ("*.bin", "*.safetensors", "*.h5") for file in directory.glob(pattern))
    found = f" but {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}" if others else ""
    return (
        f"{directory}: has no weights ({WEIGHTS}, {TORCH}, or the index of their shards){found}; "
        "give a directory that lamp or Hugging Face's save_pretrained wrote"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Object in a JSON file. LampError if the file is missing, truncated or no object."""
    if not path.is_file():
        raise LampError(f"{path.parent}: has no {path.name}; give a model directory in Hugging Face's format")
    check_fetched(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LampError(f"{path}: invalid JSON ({error}); copy or download it again") from error
    if not isinstance(values, dict):
        raise LampError(f"{path}: contains a {type(values).__name__}, not an object; copy or download it again")
    return values


def find_model(source: str | Path) -> Path:
    """Directory of a model: `source` itself, or the local copy of a hub name (downloaded once, then cached)."""
    if Path(source).is_dir():
        return Path(source)
    # Imported here, because only hub names need the package, and importing it is slow.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        found = Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.model"]))
        if not any(found.glob("*.safetensors")):
            patterns = ["*.json", TORCH, TORCH.replace(".", "-*."), "*.model"]
            found = Path(snapshot_download(str(source), allow_patterns=patterns))
        return found
    except (OSError, HFValidationError) as error:
        raise LampError(
            f"{source}: neither a directory nor a model that can be downloaded from the Hugging Face hub ({error}); "
            "give an existing directory, or a hub name such as google/flan-t5-base with a network"
        ) from error


def check_names_and_shapes(
    checkpoint: Checkpoint, places: Mapping[str, Place], shapes: Mapping[tuple[str, ...], tuple[int, ...]]
) -> None:
    """LampError with all tensors that are missing, unexpected or of another shape."""
    problems = [f"missing: {name}" for name in places if name not in checkpoint.files]
    problems += [f"unexpected: {name}" for name in checkpoint.files if name not in places]
    for name, place in places.items():
        shape = shapes[place.path] if place.layer is None else shapes[place.path][1:]
        expected = place.hf_shape(shape)
        if name in checkpoint.files and (found := checkpoint.shape(name)) != expected:
            problems.append(f"shape of {name}: {list(found)} in the file, {list(expected)} by {CONFIG}")
    if problems:
        more = [f"... and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        listed = "\n  ".join(problems[:_LISTED] + more)
        raise LampError(
            f"{checkpoint.directory}: the weights do not fit {CONFIG} ({len(problems)} mismatches); "
            f"use the {CONFIG} they were saved with\n  {listed}"
        )
