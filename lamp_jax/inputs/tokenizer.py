"""Tokenizers from a directory, from the Hugging Face hub, or trained on given texts."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lamp_jax.errors import LampError
from lamp_jax.inputs.byte_tokenizer import byte_backend
from lamp_jax.inputs.sentencepiece import make_from_sentencepiece
from lamp_jax.inputs.tokenizer_files import FILES, TokenizerFiles, check_files, check_tokenizer
from lamp_jax.runs.processes import on_first
from lamp_jax.tasks.prompts import without_surrogates

# Its advice, such as that PyTorch is not installed, is not addressed to users of this package.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("spiece.model", "vocab.txt", "vocab.json", "merges.txt", "chat_template.jinja"),
)
"""Names of all files that `keep_tokenizer` may write."""
_T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
EXTRA_IDS = 100  # T5's sentinels, at the end of the vocabulary


def load_tokenizer(name: str | Path) -> Any:
    """Fast tokenizer of a model directory or hub name. Raises LampError where there is no usable tokenizer."""
    path = Path(name)
    if not path.is_dir() and (path.is_absolute() or str(name).startswith(".")):
        raise LampError(f"{path}: no such directory")
    directory = path if path.is_dir() else _download(str(name))
    found = check_files(directory)
    try:
        tokenizer = _load(directory, found)
        tokenizer(["a", "\U0010ffff"])  # some faults of a file appear only in use
    except LampError:
        raise
    except BaseException as error:
        # Damaged files cause errors of any class, among them panics of `tokenizers`, which are not of class Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        files = ", ".join(file for file in FILES if (directory / file).exists())
        raise LampError(
            f"{name}: its {files} cannot be read as a tokenizer ({type(error).__name__}: {error}); copy these "
            "files again"
        ) from error
    check_tokenizer(directory, found, tokenizer)
    return tokenizer


def _download(name: str) -> Path:
    """Directory of a tokenizer's files from the hub, downloaded once."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (OSError, HFValidationError) as error:
        raise LampError(f"{name}: neither a model directory nor a hub name that can be reached ({error})") from error


def _load(directory: Path, found: TokenizerFiles) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    settings, kind = found.settings, str(found.settings.get("tokenizer_class"))
    if (directory / "tokenizer.json").exists():
        # transformers 5 rebuilds the file's tokenizer for this class: its unknown piece always has the id 2, which is
        # </s> in MADLAD-400, and no model falls back to bytes.
        rebuilt = kind.removesuffix("Fast") == "T5Tokenizer"
        if rebuilt and (found.model.get("unk_id") != 2 or found.model.get("byte_fallback")):
            return PreTrainedTokenizerFast.from_pretrained(str(directory))
    elif kind == "ByT5Tokenizer":
        made = byte_backend(settings, directory / "tokenizer_config.json")
        return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **_T5_TOKENS)
    elif (directory / "spiece.model").exists():
        made = make_from_sentencepiece(directory / "spiece.model", settings)
        names: dict[str, Any] = {name: token for name, token in _T5_TOKENS.items() if not settings.get(name)}
        return PreTrainedTokenizerFast.from_pretrained(str(directory), tokenizer_object=made, **names)
    return AutoTokenizer.from_pretrained(str(directory))


def keep_tokenizer(directory: Path, make: Callable[[], Any]) -> Any:
    """Tokenizer of a directory; if it has none, that of `make`, which is saved there."""

    def write() -> dict[str, str]:
        if not (directory / "tokenizer.json").exists():
            make_files()
        return {file.name: file.read_text(encoding="utf-8") for file in directory.glob("*token*.json")}

    def make_files() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".tokenizer.", suffix=".unfinished") as unfinished:
            try:
                make().save_pretrained(unfinished)
            except Exception as error:  # as `tokenizers` raises errors of the disk
                if "os error" not in str(error):
                    raise
                raise LampError(
                    f"{directory}: the tokenizer cannot be written ({error}); free disk space, then run the same "
                    "command again"
                ) from None
            # tokenizer.json last: its presence implies that all files are complete.
            for file in sorted(Path(unfinished).iterdir(), key=lambda file: file.name == "tokenizer.json"):
                os.replace(file, directory / file.name)

    for name, text in on_first(write).items():  # other processes may have other disks
        path = directory / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # of an earlier run with other settings
            directory.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return load_tokenizer(directory)


def round_up_vocabulary(pieces: int) -> int:
    """Rows of an embedding for this many pieces: a multiple of 64, so that it divides over a mesh."""
    return -(-pieces // 64) * 64


def tokenize(texts: Sequence[str], tokenizer: Any, *, max_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut to `max_length`."""
    clean = [without_surrogates(text) for text in texts]
    found: list[list[int]] = []
    # A tokenizer keeps about 200 bytes of each token, also of those that are cut off, until its call has ended.
    for start in range(0, len(clean), _TEXTS_AT_ONCE):
        some = clean[start : start + _TEXTS_AT_ONCE]
        found += tokenizer(some, truncation=True, max_length=max_length).input_ids
    return found


_TEXTS_AT_ONCE = 512


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Any:
    """Trained tokenizer with T5's normalization, special tokens and ids: <pad> 0, </s> 1, <unk> 2, 100 sentinels last.

    The vocabulary has at most `vocab_size` pieces, sentinels not counted. Pieces are merged by frequency (BPE): the
    unigram trainer of `tokenizers` keeps only pieces that several words share, so the words of a template, which are in
    every prompt, would be split.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers

    normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    extra = [f"<extra_id_{i}>" for i in range(EXTRA_IDS)]
    words = pre_tokenizers.Metaspace()
    return _train_bpe(texts, vocab_size, normalizer, words, _T5_TOKENS, form=["$A", "</s>"], extra_special_tokens=extra)


def train_text_tokenizer(texts: Iterable[str], *, vocab_size: int, cased: bool = False) -> Any:
    """Trained tokenizer, uncased by default, with BERT's normalization and special tokens, [PAD] 0 to [MASK] 4.

    As in BERT, punctuation is split off: a word is the same with and without quotation marks. BPE, not BERT's
    WordPiece, whose trainer in `tokenizers` gives another vocabulary in each run.
    """
    from tokenizers import normalizers, pre_tokenizers

    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    form = ["[CLS]", "$A", "[SEP]"]
    normalizer = normalizers.BertNormalizer(lowercase=not cased)
    words = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace()])
    return _train_bpe(texts, vocab_size, normalizer, words, names, form=form)


def _train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    normalizer: Any,
    words: Any,
    names: dict[str, str],
    *,
    form: list[str],
    **further: Any,
) -> Any:
    """BPE tokenizer. `words` splits a text into units that no piece crosses; `names` are the special tokens by role,
    which get the ids from 0 on; `form` is a text, $A, with its special tokens.
    """
    import tokenizers
    from tokenizers import decoders, models, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = list(names.values())
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=names["unk_token"], fuse_unk=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = words  # pyright: ignore[reportAttributeAccessIssue] (untyped setter)
    tokenizer.decoder = decoders.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    used = [(token, special.index(token)) for token in form if token in special]
    pair = form + [token.replace("$A", "$B") for token in form if token != "[CLS]"]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=form, pair=pair, special_tokens=used
    )
    _check_special_ids(tokenizer, special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names, **further)


def _check_special_ids(tokenizer: Any, special: list[str]) -> None:
    found, wanted = [tokenizer.token_to_id(token) for token in special], list(range(len(special)))
    if found != wanted:
        vocabulary = len(json.loads(tokenizer.to_str())["model"]["vocab"])
        raise LampError(f"the trained tokenizer gave {special} the ids {found} of {vocabulary}, not {wanted}")
