"""Where a tokenizer comes from: a directory, a hub name, or training on the texts at hand."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lamp_jax.errors import LampError

# Its advice, such as that PyTorch is not installed, is not meant for users of this package.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

EXTRA_IDS = 100  # T5's sentinels, at the end of the vocabulary


def load_tokenizer(name: str | Path) -> Any:
    """The fast tokenizer of a model directory or hub name. Raises LampError where there is none."""
    from transformers import AutoTokenizer

    path = Path(name)
    if path.is_dir() and not any((path / file).exists() for file in ("tokenizer.json", "spiece.model")):
        raise LampError(
            f"{path}: holds no tokenizer (tokenizer.json or spiece.model); copy the model's whole directory"
        )
    if not path.is_dir() and (path.is_absolute() or str(name).startswith(".")):
        raise LampError(f"{path}: no such directory")
    try:
        return AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError) as error:
        raise LampError(f"{name}: neither a model directory nor a hub name that can be reached ({error})") from error


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Any:
    """A tokenizer with T5's normalisation, special tokens and ids: <pad> 0, </s> 1, <unk> 2, the 100 sentinels last.

    The vocabulary has `vocab_size` pieces at most, the sentinels not counted. Pieces are merged by frequency (BPE):
    the unigram trainer of `tokenizers` only knows pieces that several words share, so that a template's words, which
    stand in every prompt, would fall apart.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue] (untyped setter)
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    _check_special_ids(tokenizer, special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=[f"<extra_id_{i}>" for i in range(EXTRA_IDS)],
        clean_up_tokenization_spaces=False,
    )


def _check_special_ids(tokenizer: Any, special: list[str]) -> None:
    found = [tokenizer.token_to_id(token) for token in special]
    if found != [0, 1, 2]:
        vocabulary = len(json.loads(tokenizer.to_str())["model"]["vocab"])
        raise LampError(f"the trained tokenizer gave {special} the ids {found} of {vocabulary}, not T5's 0, 1, 2")
