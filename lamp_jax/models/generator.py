"""The protocol of a generator: all that decoding, scoring, training, LoRA and `lamp compile` use of one.

A generator continues a source with an answer. What is computed of a source alone, once, is shared by all its answers:
an encoder-decoder's keys and values for cross-attention, or a decoder-only model's keys and values of the prompt.
What answers add, token by token, is the cache. `models/families.py` has the table of families, and reads and writes
their directories.
"""

from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from lamp_jax.models.layers import LayerLoop
from lamp_jax.sharding import Rules, sharded_by_rows

Source = Any
"""A tree of arrays: what is computed of sources alone."""
Cache = Any
"""A tree of arrays [L, B, ...]: what is computed of answers so far. A beam search has one of them for each beam."""


class GeneratorConfig(Protocol):
    """What is read of a generator's configuration, which is a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    model_type: ClassVar[str]
    """The name of the family in `config.json`."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def pad_token_id(self) -> int:
        """Fills sources and answers; no token of an answer."""
        ...

    @property
    def eos_token_id(self) -> int | tuple[int, ...]:
        """Ends an answer; any of several does."""
        ...

    @property
    def decoder_start_token_id(self) -> int | None:
        """The token before each answer; None where an answer follows the last token of its source."""
        ...


class EncoderDecoderConfig(GeneratorConfig, Protocol):
    """The same of an encoder-decoder, whose decoder has a token to start with."""

    @property
    def decoder_start_token_id(self) -> int: ...


class Generator(Protocol):
    """A model that continues sources with answers; an `nnx.Module`, parameters in float32, logits in float32.

    Its matrices are stacked over layers and multiplied by `layers.project`, so that LoRA can add to them. Tokens are
    int32; sources [B, S] and answers [B, T] are padded at their end with NO_TOKEN or the configuration's padding id.
    """

    loop: LayerLoop

    @property
    def config(self) -> GeneratorConfig: ...

    @property
    def rules(self) -> Rules: ...

    @property
    def depth(self) -> int:
        """The number of layers, of all stacks together."""
        ...

    def source_mask(self, tokens: jax.Array) -> jax.Array:
        """True at every token that is not padding, [B, S]."""
        ...

    def target_logits(self, tokens: jax.Array, target: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Sources [B, S] and answers [B, T] -> the logits of each answer's tokens, given those before, [B, T, V].

        For training and likelihoods. A key drops out; it is split in two at most, because LoRA takes the third part.
        """
        ...

    def read_source(self, tokens: jax.Array) -> Source:
        """Encodes sources [B, S], or prefills with all tokens of prompts but the last."""
        ...

    def read_target(self, target: jax.Array, source: Source) -> jax.Array:
        """Answers [B, T] -> the hidden states [B, T, D] that `logits` takes to the logits of `target_logits`."""
        ...

    def logits(self, x: jax.Array) -> jax.Array:
        """The last hidden states [..., D] -> [..., V], float32."""
        ...

    def answer_context(self, tokens: jax.Array) -> jax.Array:
        """The tokens [B, C] before each answer that generation settings such as a repetition penalty count.

        The start token of an encoder-decoder, C = 1; the prompt of a decoder-only model, behind negative padding.
        """
        ...

    def start(self, source: Source, *, max_length: int) -> tuple[jax.Array, Cache]:
        """The token [B] that `step` reads first, and an empty cache with room for answers of `max_length` tokens."""
        ...

    def step(self, token: jax.Array, position: jax.Array, cache: Cache, source: Source) -> tuple[jax.Array, Cache]:
        """Reads the token [B] before the answers' token number `position` (a scalar, from 0) -> its logits [B, V]."""
        ...


def end_tokens(config: GeneratorConfig) -> tuple[int, ...]:
    """The tokens of which each ends an answer."""
    return config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)


def is_end(tokens: jax.Array, config: GeneratorConfig) -> jax.Array:
    """True at tokens that end an answer; a config may have several."""
    return jnp.isin(tokens, jnp.array(end_tokens(config)))


def decoder_inputs(labels: jax.Array, config: EncoderDecoderConfig) -> jax.Array:
    """Labels [B, T] shifted right behind the start token: what a decoder reads to predict them, beside a source.

    Labels that are no token (negative) become padding.
    """
    labels = jnp.where(labels < 0, config.pad_token_id, labels)
    start = jnp.full_like(sharded_by_rows(labels[:, :1], labels), config.decoder_start_token_id)
    return jnp.concatenate([start, sharded_by_rows(labels[:, :-1], labels)], axis=1)
