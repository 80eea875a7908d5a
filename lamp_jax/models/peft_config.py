"""What an `adapter_config.json` of `peft` says: which modules of a generator have an addition, and of what form.

Modules are chosen as peft 0.21 chooses them, by Hugging Face's names of modules. An adapter here has an addition in all
layers of a projection; where the file's has none, it is 0.
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
"""Options of peft that make an adapter compute something else."""
_SAME_BASE = ("gaussian", "orthogonal", "eva", "mica")
"""Names of first values that leave the base's weights as they are; others (PiSSA, OLoRA) are taken out of them."""


class Addition(NamedTuple):
    """The form of one module's addition: its rank, and what the product of its matrices is multiplied by."""

    rank: int
    scale: float


class PeftForm(NamedTuple):
    """What kind of LoRA a configuration describes: that of the adapter here, and each module's own addition."""

    lora: Lora
    additions: Mapping[str, Addition]


def read_peft_form(directory: str | Path, config: GeneratorConfig) -> PeftForm:
    """The LoRA that a directory says it holds for a generator. LampError for anything that cannot be computed here."""
    path = Path(directory) / CONFIG
    values = read_json(path)
    _check_kind(path, values)
    rank, alpha = _number(path, values, "r", whole=True), _number(path, values, "lora_alpha")
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
    # As it is written where all modules have the same form; otherwise matrices are widened, and the scale is kept.
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
    """The modules that get an addition. LampError if there are none, or some that lamp has no additions for."""
    family = family_of(config)
    projections, others = list(family.projections(config)), family.no_projections
    targets = _names(path, values, "target_modules")
    if isinstance(targets, str) and targets.lower() == "all-linear":
        targets, others = projections, ()  # the output layer is no part of it
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
        raise LampError(f"{path}: target_modules takes in {taken}; only the projections of its layers can be imported")
    found = [name for name in projections if is_chosen(name)]
    if not found:
        last = ", ".join(sorted({name.rpartition(".")[2] for name in projections}))
        chosen = values.get("target_modules")
        raise LampError(f"{path}: target_modules {chosen!r} names no projection of this model, which are {last}")
    return found


def _names_module(names: str | list[str] | tuple[str, ...], module: str) -> bool:
    """Whether a regular expression is a module's complete name, or one of several names is it or its last parts."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layer_of(name: str, pattern: list[str]) -> int | None:
    """The number of a module's layer: the first in its name, or the first behind one of the patterns."""
    if not pattern:
        match = re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", name)
    else:
        found = (re.match(rf"(?:^|.*?\.){one}\.(?P<idx>\d+)\.", name) for one in pattern)
        match = next((match for match in found if match), None)
    return int(match["idx"]) if match else None


def _layers(path: Path, values: Mapping[str, Any], targets: Any) -> tuple[list[int] | None, list[str]]:
    """The layers that get additions, None for all, and the names that stand before a layer's number."""
    layers = values.get("layers_to_transform")
    pattern = _names(path, values, "layers_pattern")
    layers = [layers] if isinstance(layers, int) and not isinstance(layers, bool) else layers
    if layers is None or layers == []:
        return None, []
    if not isinstance(layers, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in layers):
        raise _damaged(path, f"layers_to_transform {layers!r}")
    if isinstance(targets, str):
        raise LampError(f"{path}: layers_to_transform goes with a list of target_modules, not with {targets!r}")
    return layers, [pattern] if isinstance(pattern, str) else pattern or []


def _names(path: Path, values: Mapping[str, Any], field: str) -> str | list[str] | None:
    """A field that holds a text or a list of them. LampError for anything else; null only where it may be left out."""
    found = values.get(field)
    if isinstance(found, str) or (isinstance(found, list) and all(isinstance(one, str) for one in found)):
        return found
    if found is not None or field == "target_modules":
        raise _damaged(path, f"{field} {found!r}")
    return None


def _by_pattern(path: Path, values: Mapping[str, Any], field: str, module: str, default: float) -> float:
    """A module's number in a field that maps patterns to numbers, the first that fits; or else the default."""
    found = values.get(field) or {}
    if not isinstance(found, dict):
        raise _damaged(path, f"{field} {found!r}")
    for pattern in found:
        if re.match(rf"(.*\.)?({pattern})$", module):
            number = _number(path, found, pattern, whole=field == "rank_pattern")
            if field == "rank_pattern" and number < 1:
                raise _damaged(path, f"{field} {found!r}")
            return number
    return default


def _number(
    path: Path, values: Mapping[str, Any], field: str, default: float | None = None, *, whole: bool = False
) -> float:
    found = values.get(field, default)
    kinds = (int,) if whole else (int, float)
    if isinstance(found, bool) or not isinstance(found, kinds) or not math.isfinite(found):
        raise _damaged(path, f"{field} {found!r}")
    return found


def _damaged(path: Path, what: str) -> LampError:
    return LampError(f"{path}: not a whole configuration ({what}); save the adapter again with peft")
