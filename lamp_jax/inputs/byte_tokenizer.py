"""ByT5's tokenizer: one token per byte of a text's UTF-8, without a vocabulary file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamp_jax.errors import LampError

_SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0 to 2; bytes follow, then the sentinels


def byte_backend(settings: Mapping[str, Any], source: Path) -> Any:
    """`tokenizers.Tokenizer` of ByT5. LampError where the settings, read from `source`, are not those of a ByT5.

    Ids are those of transformers' ByT5Tokenizer, with one difference, which T5's tokenizers share: a text that ends in
    the characters `</s>` gets a second `</s>`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    for role, token in zip(("pad", "eos", "unk"), _SPECIAL, strict=True):
        found = settings.get(f"{role}_token", token)
        found = found.get("content") if isinstance(found, dict) else found
        if found != token:
            raise LampError(f"{source}: {role}_token is {found!r}, but {token!r} in a ByT5; copy the tokenizer again")
    extra = settings.get("extra_ids", 125)
    if isinstance(extra, bool) or not isinstance(extra, int) or extra < 0:
        raise LampError(f"{source}: extra_ids {extra!r} is not an integer of at least 0; copy the tokenizer again")
    pieces = [*_SPECIAL, *_byte_characters()]
    tokenizer: Any = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # Bytes that are not UTF-8, such as those of a generated text that ends inside a character, are dropped.
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\ufffd", "")])
    tokenizer.add_special_tokens([AddedToken(name, lstrip=True, rstrip=True, normalized=False) for name in _SPECIAL])
    tokenizer.add_special_tokens([AddedToken(f"<extra_id_{n}>", normalized=False) for n in range(extra)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    return tokenizer


def _byte_characters() -> list[str]:
    """Characters by which `tokenizers` represents the bytes 0 to 255: printable ones represent themselves."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in seen]
    return [chr(byte if byte in seen else 256 + others.index(byte)) for byte in range(256)]
