"""T5's tokenizer from a sentencepiece model (`spiece.model`), without the sentencepiece package.

The result has the form of T5's published tokenizer.json, and the same ids: T5 v1.1, its LM-adapted version and T0 were
published with only `spiece.model`.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamp_jax.errors import LampError

_UNIGRAM = 1
_KINDS = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}
_CONTROL, _USER_DEFINED = 3, 4  # kinds of piece
_SPACE = "▁"


@dataclass(frozen=True, slots=True)
class PieceModel:
    """Fields of a sentencepiece model that a tokenizer needs: pieces in the order of their ids, normalization."""

    pieces: tuple[tuple[str, float], ...]
    added: tuple[tuple[str, bool], ...]
    """Pieces that are matched in a text before all others, and whether they are control symbols."""
    unknown: int
    byte_fallback: bool
    characters: bytes
    """Compiled table of characters and their replacements; empty for no replacement."""
    space_before: bool
    """Whether a space is added before the first word of a text."""
    single_spaces: bool
    """Whether several spaces become one, and surrounding spaces are removed."""


def read_pieces(path: Path) -> PieceModel:
    """Sentencepiece model of a file. LampError if it is truncated, or of a kind that no T5 has."""
    message = _Message(path.read_bytes(), path)
    trainer, normalizer = message.message(2), message.message(3)
    pieces = message.messages(1)
    # The pieces come first in the file: if the fields after them are complete, so are the pieces.
    if not pieces or trainer is None or normalizer is None:
        raise LampError(f"{path}: not a complete sentencepiece model; copy it again")
    kind = trainer.number(3, 1)
    if kind != _UNIGRAM:
        name = _KINDS.get(kind, f"number {kind}")
        raise LampError(f"{path}: a sentencepiece model of kind {name}; only unigram models, as T5's are, can be read")
    if trainer.number(24, 0) or not normalizer.number(5, 1):
        raise LampError(
            f"{path}: its representation of spaces differs from T5's and is not supported; give a T5 model's file"
        )
    texts = [(piece.text(1), piece.score(2)) for piece in pieces]
    kinds = [piece.number(3, 1) for piece in pieces]
    unknown = trainer.number(40, 0)
    if not 0 <= unknown < len(texts):
        raise LampError(
            f"{path}: its unknown piece has the id {unknown}, but there are {len(texts)} pieces; copy it again"
        )
    return PieceModel(
        tuple(texts),
        tuple(
            (text, kind == _CONTROL)
            for (text, _), kind in zip(texts, kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ),
        unknown,
        bool(trainer.number(35, 0)),
        normalizer.data(2),
        bool(normalizer.number(3, 1)),
        bool(normalizer.number(4, 1)),
    )


def make_backend(model: PieceModel, *, extra_ids: int, end: str, legacy: bool) -> Any:
    """`tokenizers.Tokenizer` of a model: a text ends in the piece `end`, and the last ids are T5's sentinels.

    `legacy` as in T5's tokenizer_config.json: the word after a special token inside a text gets a space before it.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    sentinels = [f"<extra_id_{number}>" for number in reversed(range(extra_ids))]
    pieces = [*model.pieces, *((sentinel, 0.0) for sentinel in sentinels)]
    tokenizer: Any = Tokenizer(models.Unigram(pieces, unk_id=model.unknown, byte_fallback=model.byte_fallback))
    clean: list[Any] = [normalizers.Precompiled(model.characters)] if model.characters else []
    scheme = ("always" if legacy else "first") if model.space_before else "never"
    # A space begins a piece, so text can be split before it; unless the vocabulary has a piece with a space inside.
    split = not any(_SPACE in text[1:] for text, _ in model.pieces)
    words: Any = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=split)
    if model.single_spaces and clean and scheme == "always" and split:
        # T5's own form. It differs from that below for characters that are white space but no spaces after cleaning.
        words = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    elif model.single_spaces:
        # A space at the beginning of a text serves as the space before the first word.
        clean += [_replace(" +$" if model.space_before else "^ +| +$", ""), _replace(" {2,}", " ")]
    if clean:
        tokenizer.normalizer = clean[0] if len(clean) == 1 else normalizers.Sequence(clean)
    tokenizer.pre_tokenizer = words
    back: Any = decoders.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=split)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), back]) if model.byte_fallback else back
    marked = [(model.pieces[model.unknown][0], True), *model.added, *((sentinel, True) for sentinel in sentinels)]
    for text, special in marked:
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([AddedToken(text, normalized=False, special=special)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", end, "$B", end], special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    return tokenizer


def make_from_sentencepiece(path: Path, settings: Mapping[str, Any]) -> Any:
    """`tokenizers.Tokenizer` of a `spiece.model`, with the settings of a tokenizer_config.json.

    LampError where the settings are not those of a T5 tokenizer.
    """
    source = path.parent / "tokenizer_config.json"
    name = settings.get("tokenizer_class") or "T5Tokenizer"
    if str(name).removesuffix("Fast") not in (
        "T5Tokenizer",
        "MT5Tokenizer",
        "TokenizersBackend",
        "PreTrainedTokenizer",
    ):
        raise LampError(f"{source}: {path.name} of a {name} is not supported; give that of a T5Tokenizer")
    model = read_pieces(path)
    end = settings.get("eos_token", "</s>")
    end = end.get("content") if isinstance(end, dict) else end
    if end not in [text for text, _ in model.pieces]:
        raise LampError(f"{source}: eos_token {end!r} is not a piece of {path.name}; copy the tokenizer again")
    legacy = settings.get("legacy", True)
    if legacy is not None and not isinstance(legacy, bool):
        raise LampError(f"{source}: legacy {legacy!r} is neither true nor false; copy the tokenizer again")
    try:
        return make_backend(
            model, extra_ids=_count_extra_ids(settings, source), end=str(end), legacy=legacy is not False
        )
    except LampError:
        raise
    except Exception as error:  # `tokenizers` has no exception class for an unusable table or vocabulary
        raise LampError(f"{path}: cannot be used as a tokenizer ({error}); copy it again") from error


def _count_extra_ids(settings: Mapping[str, Any], source: Path) -> int:
    """Number of sentinels that T5's tokenizer has besides its pieces: 100 unless the settings have another number."""
    listed = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or ()
    named = len({str(token) for token in listed if "<extra_id_" in str(token)})
    count = settings.get("extra_ids", named or 100)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise LampError(f"{source}: extra_ids {count!r} is not an integer of at least 0; copy the tokenizer again")
    if count and named not in (0, count):
        raise LampError(
            f"{source}: extra_ids is {count}, but {named} of them are among its special tokens; copy the "
            "tokenizer again"
        )
    return count


def _replace(pattern: str, by: str) -> Any:
    from tokenizers import Regex, normalizers

    return normalizers.Replace(Regex(pattern), by)


class _Message:
    """Fields of a protocol buffers message. LampError if it is truncated or not a message."""

    def __init__(self, data: bytes, path: Path):
        self._path = path
        self._fields: dict[int, list[Any]] = {}
        try:
            for number, value in _fields(data):
                self._fields.setdefault(number, []).append(value)
        except (IndexError, ValueError, struct.error):
            raise self._damaged() from None

    def messages(self, number: int) -> list["_Message"]:
        return [_Message(self._typed(value, bytes), self._path) for value in self._fields.get(number, ())]

    def message(self, number: int) -> "_Message | None":
        found = self.messages(number)
        return found[-1] if found else None

    def number(self, number: int, default: int) -> int:
        value = self._typed(self._fields.get(number, [default])[-1], int)
        return value - (1 << 64) if value >> 63 else value

    def score(self, number: int) -> float:
        return self._typed(self._fields.get(number, [0.0])[-1], float)

    def data(self, number: int) -> bytes:
        return self._typed(self._fields.get(number, [b""])[-1], bytes)

    def text(self, number: int) -> str:
        try:
            return self.data(number).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged() from None

    def _typed(self, value: Any, kind: type) -> Any:
        if not isinstance(value, kind):
            raise self._damaged()
        return value

    def _damaged(self) -> LampError:
        return LampError(
            f"{self._path}: not a complete sentencepiece model (it is cut off or another file); copy it again"
        )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, a float or bytes, by the field's wire type."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 5:
            (value,) = struct.unpack_from("<f", data, at)
            at += 4
        elif wire in (1, 2):
            size, at = (8, at) if wire == 1 else _varint(data, at)
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise ValueError("cut off")
        else:
            raise ValueError(f"wire type {wire}")
        if not number:
            raise ValueError("field 0")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Varint at a position, seven bits per byte, lowest first, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
