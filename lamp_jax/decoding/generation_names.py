"""Names in transformers 5's `generation_config.json`: settings that a search applies, ignores or rejects."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import short_repr


class Kind(NamedTuple):
    """Valid values of a setting."""

    expected: str
    fits: Callable[[Any, int], bool]
    """Function: value, vocabulary size -> whether the value is valid."""
    convert: Callable[[Any], Any] = lambda value: value


def _is_count(value: Any, _: int) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any, _: int) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_token(value: Any, vocabulary: int) -> bool:
    return type(value) is int and 0 <= value < vocabulary


def _are_tokens(value: Any, vocabulary: int) -> bool:
    return isinstance(value, list) and all(_is_token(one, vocabulary) for one in value)


def _is_sequence(value: Any, vocabulary: int) -> bool:
    return _are_tokens(value, vocabulary) and len(value) > 0


def _is_bias(value: Any, vocabulary: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and _is_sequence(value[0], vocabulary)
        and _is_number(value[1], vocabulary)
    )


def _listed(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


_COUNT = Kind("an integer, 0 or more", _is_count)
_NUMBER = Kind("a number", _is_number)
_FACTOR = Kind("a number above 0", lambda value, _: _is_number(value, _) and value > 0)
_FLAG = Kind("true or false", lambda value, _: type(value) is bool)
_TOKEN = Kind("a token id", _is_token)
_TOKENS = Kind("a list of token ids", _are_tokens, tuple)
_TOKEN_OR_TOKENS = Kind(
    "a token id, or a list of them",
    lambda value, vocabulary: _is_token(value, vocabulary) or _is_sequence(value, vocabulary),
    _listed,
)

KINDS: Mapping[str, Kind] = {
    "eos_token_id": _TOKEN_OR_TOKENS,
    "decoder_start_token_id": Kind(
        "a token id, or a list that repeats it",
        lambda value, vocabulary: _is_sequence([*_listed(value)], vocabulary) and len(set(_listed(value))) == 1,
        lambda value: _listed(value)[0],
    ),
    "max_new_tokens": Kind("an integer above 0", lambda value, _: type(value) is int and value > 0),
    "min_new_tokens": _COUNT,
    "min_length": _COUNT,
    "length_penalty": _NUMBER,
    "early_stopping": Kind('true, false or "never"', lambda value, _: type(value) is bool or value == "never"),
    "sequence_bias": Kind(
        "a list of pairs, of a list of token ids and a number",
        lambda value, vocabulary: isinstance(value, list) and all(_is_bias(one, vocabulary) for one in value),
        lambda value: tuple((tuple(tokens), float(bias)) for tokens, bias in value),
    ),
    "encoder_repetition_penalty": _FACTOR,
    "repetition_penalty": _FACTOR,
    "no_repeat_ngram_size": _COUNT,
    "encoder_no_repeat_ngram_size": _COUNT,
    "bad_words_ids": Kind(
        "a list of lists of token ids",
        lambda value, vocabulary: isinstance(value, list) and all(_is_sequence(one, vocabulary) for one in value),
        lambda value: tuple(map(tuple, value)),
    ),
    "forced_bos_token_id": _TOKEN,
    "forced_eos_token_id": _TOKEN_OR_TOKENS,
    "remove_invalid_values": _FLAG,
    "exponential_decay_length_penalty": Kind(
        "a list of an integer, 0 or more, and a number",
        lambda value, _: (
            isinstance(value, list) and len(value) == 2 and _is_count(value[0], _) and _is_number(value[1], _)
        ),
        tuple,
    ),
    "suppress_tokens": _TOKENS,
    "begin_suppress_tokens": _TOKENS,
    "renormalize_logits": _FLAG,
}
"""Settings that a search applies."""

BEAM_ONLY = ("length_penalty", "early_stopping")
"""Settings among `KINDS` that greedy search does not read."""

_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "top_h": None, "typical_p": 1.0}
_SAMPLING |= {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
_ASSISTED = {"num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant", "assistant_lookbehind": 10}
_ASSISTED |= {"assistant_confidence_threshold": 0.4, "max_matching_ngram_size": None, "target_lookbehind": 10}
_ASSISTED |= {"assistant_ensemble_weight": None}

IGNORED: Mapping[str, tuple[str, Any]] = {
    "num_beams": ("--decode and --num-beams decide", None),
    "max_length": ("--generation-max-length decides", None),
    "num_return_sequences": ("only the best answer is written", 1),
    "diversity_penalty": ("only groups of beams read it", 0.0),
    **{name: ("only sampling reads it", value) for name, value in _SAMPLING.items()},
    **{name: ("only assisted generation reads it", value) for name, value in _ASSISTED.items()},
}
"""Settings without effect on a search: the reason, and transformers' default, which is not reported."""

_MODES = ("constraints", "force_words_ids", "dola_layers", "watermarking_config", "stop_strings", "max_time")
_MODES += ("prompt_lookup_num_tokens", "assistant_early_exit", "speculation_type", "custom_generate")
_ARGUMENTS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model")
_ARGUMENTS += ("streamer", "negative_prompt_ids", "negative_prompt_attention_mask")

REFUSED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("do_sample", "token_healing", "use_mtp", "is_assistant"), (False,)),
    **dict.fromkeys((*_MODES, *_ARGUMENTS), ()),
    "num_beam_groups": (0, 1),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
}
"""Settings that select another search, and their values (besides null) that do not."""

_COMPUTATION = ("low_memory", "use_cache", "cache_implementation", "cache_config", "max_cache_len")
_COMPUTATION += ("prefill_chunk_size", "compile_config", "disable_compile", "continuous_batching_config")
_RETURNED = ("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "output_logits")
_OTHERS = ("transformers_version", "_from_model_config", "_commit_hash", "bos_token_id", "pad_token_id")

TECHNICAL = frozenset((*_COMPUTATION, *_RETURNED, *_OTHERS))
"""Settings that change no answer: computation, additional outputs, and padding."""

GENERATION = KINDS.keys() | IGNORED.keys() | REFUSED.keys()
"""Names of generation settings, which old versions of transformers wrote into `config.json`."""


def check_values(values: Mapping[str, Any], path: Path, *, vocabulary: int) -> dict[str, Any]:
    """Settings that a search applies, converted. LampError for an invalid value, and for a setting that selects
    another search."""
    for name, harmless in REFUSED.items():
        if name in values and values[name] not in harmless:
            raise LampError(
                f"{path}: {name} is {short_repr(values[name])}, which neither beam nor greedy search can do; "
                "remove it there, or give --generation-config none to search without what the model's files ask for"
            )
    found = {}
    for name, kind in KINDS.items():
        if name in values:
            if not kind.fits(values[name], vocabulary):
                tokens = f"; the model's tokens are 0 to {vocabulary - 1}" if "token" in kind.expected else ""
                raise LampError(f"{path}: {name} is {short_repr(values[name])}, not {kind.expected}{tokens}")
            found[name] = kind.convert(values[name])
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        if name in found and {*_listed(values[name])} <= {*found.get("suppress_tokens", ())}:
            raise LampError(
                f"{path}: {name} {short_repr(values[name])} is in suppress_tokens too; remove it from one of them"
            )
    return found
