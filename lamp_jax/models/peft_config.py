"""Parsing of peft's `adapter_config.json`: which modules of a generator are adapted, with which rank and scale.

Modules are selected as in peft 0.21, by Hugging Face's names of modules. An adapter here has matrices for all layers of
a projection; they are 0 for layers that the file does not adapt.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lamp_jax.config import Lora
from lamp_jax.errors import LampError
from lamp_jax.models.families import family_of
from lamp_jax.models.generator import GeneratorConfig
from lamp_jax.models.weights import read_json

CONFIG = "adapter_config.json"

_OTHER_KINDS = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "modules_to_save", "arrow_config"),
    *("layer_replication", "alora_invocation_tokens", "target_parameters", "trainable_token_indices", "velora_config"),
    *("monteclora_config", "kasa_config", "target_modules_to_tie"),
)
"""Options of peft for adapters that are no plain LoRA."""
_SAME_BASE = ("gaussian", "orthogonal", "eva", "mica")
"""Initializations that leave the base's weights unchanged; others (PiSSA, OLoRA) subtract the adapter from them."""


class Addition(NamedTuple):
    """LoRA of one module: its rank, and the scale of the product of its matrices."""

    rank: int
    scale: float


class PeftForm(NamedTuple):
    """LoRA settings of a configuration: those of the adapter here, and those of each module."""

    lora: Lora
    additions: Mapping[str, Addition]


def read_peft_form(directory: str | Path, config: GeneratorConfig) -> PeftForm:
    """LoRA settings of a directory for a generator. LampError for a form that is not supported here."""
    path = Path(directory) / CONFIG
    values = read_json(path)
    _check_kind(path, values)
    rank, alpha = _number(path, values, "r", integer=True), _number(path, values, "lora_alpha")
    dropout = _number(path, values, "lora_dropout", 0.0)
    if rank < 1 or not 0 <= dropout <= 1:
        raise _damaged(path, f"r {rank}, lora_dropout {dropout}")
    try:
        modules = _chosen(path, values, config)
        ranks = {name: int(_by_pattern(path, values, "rank_pattern", name, rank)) for name in modules}
        alphas = {name: _by_pattern(path, values, "alpha_pattern", name, alpha) for name in modules}
    except re.error as error:
        raise LampError(f"{path}: {error.pattern!r} is no regular expression ({error})") from None
    root = math.sqrt if values.get("use_rslora") else float
    additions = {name: Addition(ranks[name], alphas[name] / root(ranks[name])) for name in modules}
    widest = max(ranks.values())
    # Unchanged where all modules have the same form; otherwise matrices are padded to a higher rank at the same scale.
    plain = widest == rank and not values.get("use_rslora")
    scaled = alpha if plain else alpha / root(rank) * widest
    targets = tuple(sorted({name.rpartition(".")[2] for name in modules}))
    return PeftForm(Lora(int(widest), float(scaled), targets, float(dropout)), additions)


def _check_kind(path: Path, values: Mapping[str, Any]) -> None:
    if values.get("peft_type") != "LORA":
        raise LampError(f"{path}: peft_type {values.get('peft_type')!r}; only LORA can be imported")
    others = [name for name in _OTHER_KINDS if values.get(name)]
    others += ["bias"] * (values.get("bias", "none") != "none")
    if others:
        raise LampError(f"{path}: {', '.join(others)}: only a plain LoRA can be imported, without these options")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _SAME_BASE:
        raise LampError(
            f"{path}: init_lora_weights {start!r} changed the base's weights, so the plain base needs another adapter; "
            "save it with peft's `path_initial_model_for_weight_conversion`, or train it with init_lora_weights=True"
        )


def _chosen(path: Path, values: Mapping[str, Any], config: GeneratorConfig) -> list[str]:
    """Modules that are adapted. LampError if there are none, or some that cannot be adapted here."""
    family = family_of(config)
    projections, others = list(family.projections(config)), family.no_projections
    targets = _names(path, values, "target_modules")
    if isinstance(targets, str) and targets.lower() == "all-linear":
        targets, others = projections, ()  # peft excludes the output layer
    excluded = _names(path, values, "exclude_modules")
    layers, pattern = _layers(path, values, targets)

    def is_chosen(name: str) -> bool:
        if excluded and _names_module(excluded, name):
            return False
        if isinstance(targets, str) or name in (targets or ()):
            return _names_module(targets or (), name)
        return _names_module(targets or (), name) and (layers is None or _layer_of(name, pattern) in layers)

    unknown = [name for name in others if is_chosen(name)]
    if unknown:
        taken = ", ".join(unknown)
        raise LampError(f"{path}: target_modules includes {taken}; only the projections of its layers can be imported")
    found = [name for name in projections if is_chosen(name)]
    if not found:
        last = ", ".join(sorted({name.rpartition(".")[2] for name in projections}))
        chosen = values.get("target_modules")
        raise LampError(f"{path}: target_modules {chosen!r} matches no projection of this model; choose from {last}")
    return found


def _names_module(names: str | list[str] | tuple[str, ...], module: str) -> bool:
    """Whether a regular expression matches a module's complete name, or one of several names is it or its suffix."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layer_of(name: str, pattern: list[str]) -> int | None:
    """Layer number of a module: the first in its name, or the first after one of the patterns."""
    if not pattern:
        match = re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", name)
    else:
        found = (re.match(rf"(?:^|.*?\.){one}\.(?P<idx>\d+)\.", name) for one in pattern)
        match = next((match for match in found if match), None)
    return int(match["idx"]) if match else None


def _layers(path: Path, values: Mapping[str, Any], targets: Any) -> tuple[list[int] | None, list[str]]:
    """Numbers of the layers that are adapted, None for all, and the names that precede a layer's number."""
    layers = values.get("layers_to_transform")
    pattern = _names(path, values, "layers_pattern")
    layers = [layers] if isinstance(layers, int) and not isinstance(layers, bool) else layers
    if layers is None or layers == []:
        return None, []
    if not isinstance(layers, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in layers):
        raise _damaged(path, f"layers_to_transform {layers!r}")
    if isinstance(targets, str):
        raise LampError(f"{path}: layers_to_transform needs a list of target_modules, not {targets!r}")
    return layers, [pattern] if isinstance(pattern, str) else pattern or []


def _names(path: Path, values: Mapping[str, Any], field: str) -> str | list[str] | None:
    """Field with a text or a list of texts. LampError for any other value; null only where the field is optional."""
    found = values.get(field)
    if isinstance(found, str) or (isinstance(found, list) and all(isinstance(one, str) for one in found)):
        return found
    if found is not None or field == "target_modules":
        raise _damaged(path, f"{field} {found!r}")
    return None


def _by_pattern(path: Path, values: Mapping[str, Any], field: str, module: str, default: float) -> float:
    """Number of a module in a field that maps patterns to numbers: that of the first match, or else the default."""
    found = values.get(field) or {}
    if not isinstance(found, dict):
        raise _damaged(path, f"{field} {found!r}")
    for pattern in found:
        if re.match(rf"(.*\.)?({pattern})$", module):
            number = _number(path, found, pattern, integer=field == "rank_pattern")
            if field == "rank_pattern" and number < 1:
                raise _damaged(path, f"{field} {found!r}")
            return number
    return default


def _number(
    path: Path, values: Mapping[str, Any], field: str, default: float | None = None, *, integer: bool = False
) -> float:
    found = values.get(field, default)
    kinds = (int,) if integer else (int, float)
    if isinstance(found, bool) or not isinstance(found, kinds) or not math.isfinite(found):
        raise _damaged(path, f"{field} {found!r}")
    return found


def _damaged(path: Path, what: str) -> LampError:
    return LampError(f"{path}: not a complete configuration ({what}); save the adapter again with peft")
