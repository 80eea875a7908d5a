"""T5 weights in Hugging Face's files: selection of the tensors to read, without redundant copies."""

from dataclasses import replace
from pathlib import Path

from lamp_jax.errors import LampError
from lamp_jax.models.hf_names import Place, t5_places
from lamp_jax.models.t5_config import T5Config
from lamp_jax.models.tensors import Checkpoint, has_weights, open_checkpoint
from lamp_jax.models.weights import read_config

# Names of the embedding, of which the first in the file is read; then tensors that are no parameters here.
_TABLE, _HEAD = "shared.weight", "lm_head.weight"
_COPIES = ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight")
_UNREAD = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"}

NO_PROJECTIONS = (
    *("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"),
    *(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias" for stack in ("encoder", "decoder")),
)
"""Modules other than layer projections which peft can adapt."""


def read_t5_config(directory: Path) -> T5Config:
    """Configuration of a T5; whether its embeddings are tied is read from the weights if they exist."""
    config: T5Config = read_config(directory, T5Config)
    return open_t5(directory)[0] if config.tie_word_embeddings and has_weights(directory) else config


def open_t5(directory: Path) -> tuple[T5Config, Checkpoint, dict[str, Place]]:
    """Configuration of a T5, its tensors to read, and their places in the model.

    transformers 5 writes that every T5 is tied; it is, unless the file has two different matrices. Of equal matrices,
    only the first is read.
    """
    config, checkpoint = read_config(directory, T5Config), open_checkpoint(directory)
    files = checkpoint.files
    names = [_TABLE, *_COPIES, *([_HEAD] if config.tie_word_embeddings else [])]
    table, *copies = [name for name in names if name in files] or [_TABLE]
    others = [name for name in copies if not checkpoint.equal(table, name)]
    if _HEAD in others:
        others.remove(_HEAD)
        config = replace(config, tie_word_embeddings=False, scale_decoder_outputs=config.scales_outputs)
    if others:
        raise LampError(
            f"{files[others[0]]}: {', '.join(others)} should be equal to {table}, and is not; "
            "a T5 has one embedding: copy or download the model again"
        )
    places = t5_places(config)
    places[table] = places.pop(_TABLE)
    redundant = {*copies, *_UNREAD}
    used = {name: file for name, file in files.items() if name in places or name not in redundant}
    return config, replace(checkpoint, files=used), places
