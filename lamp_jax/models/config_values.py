"""Checks of values in Hugging Face's `config.json`: types and ranges of sizes, and ids of special tokens."""

import math
from collections.abc import Mapping
from typing import Any

from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import short_repr

_LAYERS, _HEADS, _HEAD_SIZE, _WIDTH, _ROWS = 1000, 2**12, 2**14, 2**20, 2**24

_INTEGERS = {
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "type_vocab_size"), (1, _ROWS)),
    **dict.fromkeys(("d_model", "d_ff", "hidden_size", "intermediate_size"), (1, _WIDTH)),
    **dict.fromkeys(("num_layers", "num_decoder_layers", "num_hidden_layers"), (1, _LAYERS)),
    **dict.fromkeys(("num_heads", "num_attention_heads"), (1, _HEADS)),
    "d_kv": (1, _HEAD_SIZE),
    "relative_attention_num_buckets": (4, _HEADS),
    "relative_attention_max_distance": (1, _ROWS),
    "attention_window": (0, _ROWS),
}
"""Least and greatest value of integers by name. The upper limits are far beyond any model, to reject damaged files."""

_RATES = ("dropout_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
_POSITIVE = ("layer_norm_epsilon", "layer_norm_eps", "initializer_factor", "initializer_range")

_TOKENS = (
    *("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"),
    "decoder_start_token_id",
)


def read_numbers(names: Mapping[str, Any], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Sizes and rates among `names` in a parsed `config.json`. LampError for text, null or a value out of range.

    Values with which no model can be built are rejected here, so that later code need not check them.
    """
    known = {}
    for name in names:
        if name not in values:
            continue
        if name in _INTEGERS:
            known[name] = check_integer(name, values[name], source)
        elif name in _RATES:
            known[name] = _check_real(name, values[name], source, 0 <= _real(values[name]) < 1, "from 0 to below 1")
        elif name in _POSITIVE:
            known[name] = _check_real(name, values[name], source, 0 < _real(values[name]) <= 1e6, "above 0, up to 1e6")
    return known


def check_integer(name: str, value: Any, source: str) -> int:
    """Value, if it is an integer in the range of its name. LampError otherwise."""
    least, most = _INTEGERS[name]
    if type(value) is not int or not least <= value <= most:
        raise _unexpected(name, value, source, f"an integer from {least} to {most}")
    return value


def _real(value: Any) -> float:
    """Value if it is a number, else NaN, which is in no range."""
    return value if type(value) in (int, float) else math.nan


def _check_real(name: str, value: Any, source: str, fits: bool, wanted: str) -> float:
    if not fits:
        raise _unexpected(name, value, source, f"a number {wanted}")
    return value


def read_flag(name: str, values: Mapping[str, Any], source: str) -> bool | None:
    """True, false, or None where the value is absent or null. LampError for any other value."""
    value = values.get(name)
    if value is not None and type(value) is not bool:
        raise _unexpected(name, value, source, "true or false")
    return value


def check_tokens(values: Mapping[str, Any], *, rows: int, source: str) -> None:
    """Checks the ids of special tokens. LampError for an invalid id, or one outside an embedding of `rows` rows.

    A look-up beyond an embedding is no error in jax: it reads the last row.
    """
    for name in _TOKENS:
        value = values.get(name)
        for token in value if isinstance(value, list | tuple) else [value] * (value is not None):
            if type(token) is not int or token < 0:
                raise _unexpected(name, value, source, "a token id, 0 or more")
            if token >= rows:
                raise LampError(
                    f"{source}: {name} {token} has no row in the embedding, which has {rows} (vocab_size); "
                    f"use the config.json that the model was saved with"
                )


def _unexpected(name: str, value: Any, source: str, wanted: str) -> LampError:
    shown = "null" if value is None else short_repr(value)
    return LampError(
        f"{source}: {name} is {shown}, expected {wanted}; use the config.json that the model was saved with"
    )
