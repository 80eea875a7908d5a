"""Settings of a model's `generation_config.json` for beam and greedy search, as read by transformers 5."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lamp_jax.config import Answering
from lamp_jax.decoding.generation_names import (
    BEAM_ONLY,
    GENERATION,
    IGNORED,
    TECHNICAL,
    check_values,
)
from lamp_jax.errors import LampError
from lamp_jax.models.families import read_generator_config
from lamp_jax.models.generator import end_tokens
from lamp_jax.models.tensors import CONFIG, find_model, read_json
from lamp_jax.runs.json_files import write_json

GENERATION_CONFIG = "generation_config.json"

_SPECIAL = {"pad_token_id", "eos_token_id", "decoder_start_token_id"}


@dataclass(frozen=True)
class Generation:
    """Generation settings besides the search options. The names are transformers'; the defaults have no effect."""

    eos_token_id: tuple[int, ...] = ()
    """Tokens that end an answer; empty: those of `config.json`."""
    decoder_start_token_id: int | None = None
    """Token before an answer; None: that of `config.json`."""
    max_new_tokens: int | None = None
    """Maximum length of an answer, with `</s>`; it overrides the options."""
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    encoder_repetition_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    renormalize_logits: bool = False
    source: str = field(default="", compare=False)
    """File that was read; empty: none."""
    ignored: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Settings in the file without effect, and the reason."""

    @property
    def applied(self) -> dict[str, Any]:
        """Settings that differ from the defaults."""
        own, defaults = asdict(self), asdict(DEFAULT_GENERATION)
        return {name: own[name] for name in own if name not in ("source", "ignored") and own[name] != defaults[name]}

    @property
    def facts(self) -> dict[str, Any]:
        """Entry of the run record."""
        return {"source": Path(self.source).name, "applied": self.applied, "ignored": dict(self.ignored)}

    def configure(self, config: Any) -> Any:
        """Config of a model with the start and end tokens of these settings."""
        found: dict[str, Any] = {}
        if ends := self.eos_token_id:
            found["eos_token_id"] = ends
        if self.decoder_start_token_id is not None:
            found["decoder_start_token_id"] = self.decoder_start_token_id
        return replace(config, **found)

    def __str__(self) -> str:
        parts = [f"{name} {value}" for name, value in self.applied.items()]
        parts += [f"{name} ignored ({why})" for name, why in self.ignored.items()]
        return f"{self.source}: {', '.join(parts)}"


DEFAULT_GENERATION = Generation()
"""Settings without effect: the options alone determine the search."""


def searches_greedily(answering: Answering) -> bool:
    """Whether the search is greedy, as in transformers for one beam."""
    return answering.decode == "greedy" or answering.num_beams == 1


def open_generation(model: str | Path, answering: Answering) -> Generation:
    """Settings as from `read_generation`, which are printed if the model's files have any."""
    generation = read_generation(model, answering)
    if generation.source and (generation.applied or generation.ignored):
        print(generation)
    return generation


def read_generation(model: str | Path, answering: Answering) -> Generation:
    """Generation settings in the files of a model directory or hub name, for a search with these options.

    They are read from `generation_config.json`, or if it does not exist from `config.json`, into which older versions
    of transformers wrote them. Special tokens that `generation_config.json` lacks are those of `config.json`, whereas
    transformers would have none. LampError, naming the file, for an invalid value, and for settings that neither beam
    nor greedy search supports.
    """
    if answering.decode == "labels":
        return Generation(ignored={"all": "labels are scored, nothing is generated"})
    if answering.generation_config == "none":
        return Generation(ignored={"all": "--generation-config none"})
    path, values = _read_values(find_model(model))
    config = read_generator_config(model)
    found = check_values(values, path, vocabulary=config.vocab_size)
    ignored = _find_ignored(values, answering)
    if "min_length" in found:  # it counts the start token
        least = max(found.pop("min_length") - 1, 0)
        if "min_new_tokens" in found:
            ignored["min_length"] = "min_new_tokens decides"
        found.setdefault("min_new_tokens", least)
    if searches_greedily(answering):
        for name in BEAM_ONLY & found.keys():
            if found.pop(name) != getattr(DEFAULT_GENERATION, name):
                ignored[name] = "only beam search reads it"
    if found.get("eos_token_id") == end_tokens(config):
        del found["eos_token_id"]
    if config.decoder_start_token_id in (None, found.get("decoder_start_token_id")):
        found.pop("decoder_start_token_id", None)
    generation = Generation(**found, source=str(path), ignored=ignored)
    _check_powers(generation, generation.max_new_tokens or answering.generation_max_length - 1)
    return generation


def keep_generation(model: str | Path, output: Path) -> None:
    """Writes the generation settings in a model's files to the directory of a model trained from it."""
    path, values = _read_values(find_model(model))
    if path.name == GENERATION_CONFIG or values.keys() - _SPECIAL:
        write_json(output / GENERATION_CONFIG, values)


def _read_values(directory: Path) -> tuple[Path, dict[str, Any]]:
    """File of a model directory with the generation settings, and all of its values that are not null."""
    own = (directory / GENERATION_CONFIG).is_file()
    path = directory / (GENERATION_CONFIG if own else CONFIG)
    values = {name: value for name, value in read_json(path).items() if value is not None}
    if not own:
        return path, {name: value for name, value in values.items() if name in GENERATION | _SPECIAL}
    if "decoder_start_token_id" not in values and "bos_token_id" in values:
        values["decoder_start_token_id"] = values["bos_token_id"]
    return path, values


def _find_ignored(values: Mapping[str, Any], answering: Answering) -> dict[str, str]:
    """Names of settings without effect, and the reason; values equal to the options or the defaults are left out."""
    beams = 1 if searches_greedily(answering) else answering.num_beams
    same = {"num_beams": beams, "max_length": answering.generation_max_length}
    ignored = {
        name: why
        for name, (why, ordinary) in IGNORED.items()
        if name in values and values[name] != same.get(name, ordinary)
    }
    if "max_length" in ignored and "max_new_tokens" in values:
        ignored["max_length"] = "max_new_tokens decides"
    unknown = values.keys() - GENERATION - TECHNICAL
    return ignored | dict.fromkeys(sorted(unknown), "not a name in transformers 5")


def _check_powers(generation: Generation, longest: int) -> None:
    """LampError if a power that a search computes overflows or vanishes in float32."""
    start, factor = generation.exponential_decay_length_penalty or (longest, 1.0)
    with np.errstate(all="ignore"):
        powers = {
            "length_penalty": np.float32(float(longest) ** np.float64(generation.length_penalty)),
            "exponential_decay_length_penalty": np.float32(abs(np.float64(factor)) ** max(longest - start, 0)),
        }
    for name, power in powers.items():
        if not np.isfinite(power) or (name == "length_penalty" and power == 0):
            raise LampError(
                f"{generation.source}: {name} {getattr(generation, name)} is too large for answers of {longest} tokens"
            )
