"""What a model's `generation_config.json` asks of beam and greedy search, as transformers 5 reads it."""

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
    """What is asked of a search beside its options. The names are transformers'; by default nothing is asked."""

    eos_token_id: tuple[int, ...] = ()
    """The tokens that end an answer; empty: those of `config.json`."""
    decoder_start_token_id: int | None = None
    """The token before an answer; None: that of `config.json`."""
    max_new_tokens: int | None = None
    """Longest answer, `</s>` included, whatever the options say."""
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
    """The file that was read; empty: none."""
    ignored: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What the file says besides, and why it has no effect."""

    @property
    def applied(self) -> dict[str, Any]:
        """What is asked."""
        own, nothing = asdict(self), asdict(NOTHING)
        return {name: own[name] for name in own if name not in ("source", "ignored") and own[name] != nothing[name]}

    @property
    def facts(self) -> dict[str, Any]:
        """What a run record holds of it."""
        return {"source": Path(self.source).name, "applied": self.applied, "ignored": dict(self.ignored)}

    def configure(self, config: Any) -> Any:
        """A model's config with the tokens that start and end generated answers."""
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


NOTHING = Generation()
"""The search that its options alone describe."""


def searches_greedily(answering: Answering) -> bool:
    """Whether the search is greedy, as transformers' is for one beam."""
    return answering.decode == "greedy" or answering.num_beams == 1


def open_generation(model: str | Path, answering: Answering) -> Generation:
    """As `read_generation`; what the model's files ask for is printed."""
    generation = read_generation(model, answering)
    if generation.source and (generation.applied or generation.ignored):
        print(generation)
    return generation


def read_generation(model: str | Path, answering: Answering) -> Generation:
    """What the files of a model directory or hub name ask of a search with these options.

    That is what `generation_config.json` says, or where there is no such file `config.json`, into which older versions
    of transformers wrote it. Special tokens that the first does not name are those of `config.json` in any case; for
    transformers there would be none. LampError, naming the file, for a value that is none of its name, and for what
    neither beam nor greedy search can do.
    """
    if answering.decode == "labels":
        return Generation(ignored={"all": "labels are scored, nothing is generated"})
    if answering.generation_config == "none":
        return Generation(ignored={"all": "--generation-config none"})
    path, values = _read_values(find_model(model))
    config = read_generator_config(model)
    found = check_values(values, path, vocabulary=config.vocab_size)
    ignored = _find_ignored(values, answering)
    if "min_length" in found:  # the start token counts
        least = max(found.pop("min_length") - 1, 0)
        if "min_new_tokens" in found:
            ignored["min_length"] = "min_new_tokens decides"
        found.setdefault("min_new_tokens", least)
    if searches_greedily(answering):
        for name in BEAM_ONLY & found.keys():
            if found.pop(name) != getattr(NOTHING, name):
                ignored[name] = "only beam search reads it"
    if found.get("eos_token_id") == end_tokens(config):
        del found["eos_token_id"]
    if config.decoder_start_token_id in (None, found.get("decoder_start_token_id")):
        found.pop("decoder_start_token_id", None)
    generation = Generation(**found, source=str(path), ignored=ignored)
    _check_powers(generation, generation.max_new_tokens or answering.generation_max_length - 1)
    return generation


def keep_generation(model: str | Path, output: Path) -> None:
    """Writes what a model's files say of generation to the directory of a model that is trained from it."""
    path, values = _read_values(find_model(model))
    if path.name == GENERATION_CONFIG or values.keys() - _SPECIAL:
        write_json(output / GENERATION_CONFIG, values)


def _read_values(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The file of a model directory that says how to generate, and all that it says of it, without nulls."""
    own = (directory / GENERATION_CONFIG).is_file()
    path = directory / (GENERATION_CONFIG if own else CONFIG)
    values = {name: value for name, value in read_json(path).items() if value is not None}
    if not own:
        return path, {name: value for name, value in values.items() if name in GENERATION | _SPECIAL}
    if "decoder_start_token_id" not in values and "bos_token_id" in values:
        values["decoder_start_token_id"] = values["bos_token_id"]
    return path, values


def _find_ignored(values: Mapping[str, Any], answering: Answering) -> dict[str, str]:
    """The names of values without effect, and why; not those that say what would be done without them."""
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
    return ignored | dict.fromkeys(sorted(unknown), "no name of transformers 5")


def _check_powers(generation: Generation, longest: int) -> None:
    """LampError where a power that a search computes is beyond what float32 holds."""
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
