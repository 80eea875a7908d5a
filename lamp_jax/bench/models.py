"""Models and texts of benchmarks: random weights whose answers several libraries can be compared by."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lamp_jax.bench.workers import Workers

SEED = 0
SHARPNESS = 6.0
"""Standard deviation of the logits. Random weights of the usual size give nearly equal probabilities, and rounding
decides which of two tokens is better; with these, the best token has most of the probability, as in a trained model."""
_EMBEDDING = 0.05  # small beside the layers' outputs: tied logits would repeat the last token otherwise
_UNKNOWN = 2
FIRST_WORD = 3  # after padding, </s> and <unk>


def make_generator(directory: str, config: Any, *, ends: float = 0.0, seed: int = SEED) -> None:
    """Writes a generator with random weights, and a tokenizer that has a word `w3`, `w4`, ... for each token.

    `ends` is how likely answers end: the size of the head's row of `</s>`, relative to those of other tokens. 0: no
    answer ends before its maximum length.
    """
    from safetensors.numpy import load_file, save_file

    from lamp_jax.models.families import new_generator, save_generator

    save_generator(new_generator(config, seed=seed), directory)
    path = Path(directory, "model.safetensors")
    tensors: dict[str, Any] = load_file(path)
    embedding, norm = tensors["shared.weight"], tensors["decoder.final_layer_norm.weight"]
    embedding *= _EMBEDDING / embedding.std()
    head = tensors.get("lm_head.weight", embedding)
    norm *= SHARPNESS / head.std() / (1 if config.scales_outputs else config.d_model**0.5)
    head[[config.pad_token_id, _UNKNOWN]] = 0  # never the best token
    head[config.eos_token_id] *= ends
    save_file(tensors, path, metadata={"format": "pt"})
    make_tokenizer(config.vocab_size).save_pretrained(directory)


def made_generator(workers: Workers, directory: Path, config: Any, *, ends: float = 0.0) -> str:
    """Directory of a generator, which lamp's process makes unless it exists."""
    if not directory.exists():
        workers.of("lamp").call(partial(make_generator, str(directory), config, ends=ends))
    return str(directory)


def make_tokenizer(pieces: int) -> Any:
    """Tokenizer whose pieces are `<pad>`, `</s>`, `<unk>` and words `w3`, `w4`, ..., each with the id of its number."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = {token: place for place, token in enumerate(special.values())}
    vocabulary |= {word(number): number for number in range(FIRST_WORD, pieces)}
    made: Any = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **special)


def word(token: int) -> str:
    return f"w{token}"


def words_of(tokens: Sequence[int]) -> list[str]:
    """Pieces of token ids, as CTranslate2 takes them."""
    return [("<pad>", "</s>", "<unk>")[token] if token < FIRST_WORD else word(token) for token in tokens]


def tokens_of(text: str) -> list[int]:
    """Token ids of an answer's words."""
    return [int(one[1:]) for one in text.split()]


def draw_tokens(rng: np.random.Generator, length: int, vocabulary: int) -> list[int]:
    """`length` token ids, the last of them `</s>`."""
    return [*rng.integers(FIRST_WORD, vocabulary, length - 1).tolist(), 1]


_TINY: dict[str, Any] = {
    "vocab_size": 512,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
}
"""Changes to a published size that make a model for smoke tests."""


def published(name: str, *, tiny: bool = False) -> Any:
    """Config of a published size, such as `t5-small`, or of a tiny model of its form."""
    from lamp_jax.models.families import published_configs

    config: Any = published_configs()[name]
    return replace(config, **_TINY) if tiny else config
