"""Files of a tokenizer in a model directory: required files, and checks for damaged ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import check_fetched

_JSON = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "config.json"),
)
FILES = (*_JSON, "spiece.model", "vocab.txt", "merges.txt")
"""Names of all files that describe a tokenizer."""

_SPARE_ROWS = 1000
"""Greatest number of embedding rows beyond the tokens: some embeddings are padded, to multiples of at most 512."""
_SPARE_PIECES = 300
"""Greatest number of byte-level pieces without a merge: special tokens and, in CodeT5, sentinels."""


class TokenizerFiles(NamedTuple):
    """Description of a tokenizer by the files of its directory."""

    settings: dict[str, Any]
    model: dict[str, Any]
    """Model in tokenizer.json; empty if there is no such file."""
    pieces: int
    """Number of pieces in vocab.txt or vocab.json, where one of them is read; else 0."""


def check_files(directory: Path) -> TokenizerFiles:
    """Description of the tokenizer in a directory. LampError if there is none, or a file is incomplete."""
    content = {}
    for name in FILES:
        path = directory / name
        if path.is_file():
            check_fetched(path)
            data = path.read_bytes()
            content[name] = _read_object(path, data) if name in _JSON else data
    settings = dict(content.get("tokenizer_config.json", {}))
    if not settings.get("tokenizer_class") and content.get("config.json", {}).get("tokenizer_class"):
        settings["tokenizer_class"] = content["config.json"]["tokenizer_class"]
    added = settings.get("added_tokens_decoder")
    if added is not None and not (isinstance(added, dict) and all(map(_is_added, added.items()))):
        path = directory / "tokenizer_config.json"
        raise LampError(f"{path}: added_tokens_decoder does not map ids to tokens; copy the file again")
    pieces = 0
    if "tokenizer.json" not in content and settings.get("tokenizer_class") != "ByT5Tokenizer":
        pieces = _check_vocabulary(directory, content)
    model = content.get("tokenizer.json", {}).get("model")
    return TokenizerFiles(settings, model if isinstance(model, dict) else {}, pieces)


def _is_added(entry: tuple[str, Any]) -> bool:
    number, token = entry
    return number.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str)


def _read_object(path: Path, data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise LampError(f"{path}: invalid JSON ({error}); copy or download it again") from error
    if not isinstance(values, dict):
        raise LampError(f"{path}: contains a {type(values).__name__}, not an object; copy or download it again")
    return values


def _check_vocabulary(directory: Path, content: Mapping[str, Any]) -> int:
    """Number of pieces in text files. LampError where these are missing or truncated, which no library reports."""
    if "spiece.model" in content:
        return 0
    if "vocab.json" in content and "merges.txt" in content:
        pieces = content["vocab.json"]
        used = "vocab.json"
        _check_merges(directory / "merges.txt", _lines(directory / "merges.txt", content["merges.txt"]), pieces)
        if sorted(pieces.values(), key=str) != sorted(range(len(pieces)), key=str):
            raise LampError(f"{directory / used}: its ids are not consecutive from 0; copy it again")
    elif "vocab.txt" in content:
        used = "vocab.txt"
        pieces = _lines(directory / used, content[used])
    elif "vocab.json" in content or "merges.txt" in content:
        there, missing = ("vocab.json", "merges.txt") if "vocab.json" in content else ("merges.txt", "vocab.json")
        raise LampError(f"{directory}: has {there} but no {missing}; copy the model's complete directory")
    else:
        raise LampError(
            f"{directory}: has no tokenizer (tokenizer.json, spiece.model, vocab.txt, or vocab.json and merges.txt); "
            "copy the model's complete directory"
        )
    rows = content.get("config.json", {}).get("vocab_size")
    if isinstance(rows, int) and rows > len(pieces) + _SPARE_ROWS:
        raise LampError(
            f"{directory / used}: has {len(pieces)} pieces, but config.json says vocab_size {rows}; "
            "it is truncated or of another model, copy it again"
        )
    return len(set(pieces))


def _lines(path: Path, data: bytes) -> list[str]:
    try:
        return data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise LampError(f"{path}: not UTF-8 ({error}); copy it again") from error


def _check_merges(path: Path, lines: list[str], pieces: Mapping[str, Any]) -> None:
    made = set()
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not set(parts) <= pieces.keys() or "".join(parts) not in pieces:
            raise LampError(f"{path}, line {number}: {line!r} does not join two pieces of vocab.json; copy both again")
        made.add("".join(parts))
    unmade = sum(len(piece) > 1 and piece not in made for piece in pieces)
    if unmade > _SPARE_PIECES:
        raise LampError(f"{path}: lacks the merges of {unmade} pieces of vocab.json; it is truncated, copy it again")


def check_tokenizer(directory: Path, found: TokenizerFiles, tokenizer: Any) -> None:
    """LampError where a token's id differs from the files', or a special token is not in the vocabulary."""
    wanted = {}
    added = directory / "added_tokens.json"
    if added.is_file():
        wanted |= json.loads(added.read_text(encoding="utf-8"))
    for number, token in (found.settings.get("added_tokens_decoder") or {}).items():
        wanted[token["content"]] = int(number)
    for token, number in wanted.items():
        own = tokenizer.convert_tokens_to_ids(token)
        if own != number:
            raise LampError(
                f"{directory}: the token {token!r} has the id {own} by the vocabulary, but {number} in "
                "added_tokens.json or tokenizer_config.json; these files are not of one tokenizer, copy them again"
            )
    # A special token that the vocabulary lacks would get a new id after the last, for which no embedding is trained.
    if not (directory / "tokenizer.json").exists() and not (directory / "spiece.model").exists():
        vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
        if len(vocabulary) < found.pieces:
            raise LampError(
                f"{directory / 'tokenizer_config.json'}: {type(tokenizer).__name__}, its tokenizer_class or that of "
                f"config.json's model_type, does not read the {found.pieces} pieces of the directory's vocabulary; "
                "copy its files again"
            )
        for role in ("unk", "cls", "sep", "pad", "bos", "eos"):
            token = getattr(tokenizer, f"{role}_token", None)
            if token is not None and token not in vocabulary and token not in wanted:
                raise LampError(f"{directory}: its vocabulary lacks {token!r}, the {role}_token; copy its files again")
