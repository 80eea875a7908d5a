"""Protocol of a generator: its interface to decoding, scoring, training, LoRA and `lamp compile`.

A generator continues a source with an answer. The `Source` is computed from a source once and shared by all its
answers: an encoder-decoder's keys and values for cross-attention, or a decoder-only model's keys and values of the
prompt. The `Cache` has the keys and values of the answer's tokens. `models/families.py` has the table of families, and
reads and writes their directories.
"""

from typing import Any, ClassVar, Protocol, Self

import jax
import jax.numpy as jnp

from lamp_jax.models.layers import LayerLoop
from lamp_jax.sharding import Rules, sharded_by_rows

Source = Any
"""Tree of arrays computed from sources alone."""
Cache = Any
"""Tree of arrays computed from the hypotheses of each source so far."""


class GeneratorConfig(Protocol):
    """Interface of a generator's configuration, a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    model_type: ClassVar[str]
    """Name of the family in `config.json`."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def pad_token_id(self) -> int:
        """Padding token of sources and answers; never a token of an answer."""
        ...

    @property
    def eos_token_id(self) -> int | tuple[int, ...]:
        """End tokens: any of them ends an answer."""
        ...

    @property
    def decoder_start_token_id(self) -> int | None:
        """Token before each answer; None where an answer follows the last token of its source."""
        ...


class EncoderDecoderConfig(GeneratorConfig, Protocol):
    """Interface of an encoder-decoder's configuration, whose decoder has a start token."""

    @property
    def decoder_start_token_id(self) -> int: ...


class Generator(Protocol):
    """Model that continues sources with answers: an `nnx.Module`, parameters in float32, logits in float32.

    Its matrices are stacked over layers and multiplied by `layers.project`, so that LoRA can adapt them. Tokens are
    int32; sources [B, S] and answers [B, T] are padded at the end with NO_TOKEN or the configuration's padding id.
    """

    loop: LayerLoop

    @property
    def config(self) -> GeneratorConfig: ...

    @property
    def rules(self) -> Rules: ...

    @property
    def depth(self) -> int:
        """Number of layers of all stacks together."""
        ...

    def source_mask(self, tokens: jax.Array) -> jax.Array:
        """Padding mask [B, S]: True at every token that is not padding."""
        ...

    def target_logits(self, tokens: jax.Array, target: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Logits of each answer's tokens given the preceding ones: sources [B, S], answers [B, T] -> [B, T, V].

        For training and likelihoods. With a key, dropout is applied; the key is split into two at most, because LoRA
        uses the third.
        """
        ...

    def read_source(self, tokens: jax.Array) -> Source:
        """Encodes sources [B, S], or prefills all tokens of the prompts except the last."""
        ...

    def read_target(self, target: jax.Array, source: Source) -> jax.Array:
        """Hidden states [B, T, D] of answers [B, T], which `logits` maps to the logits of `target_logits`."""
        ...

    def logits(self, x: jax.Array) -> jax.Array:
        """Logits of the last hidden states, [..., D] -> [..., V], float32."""
        ...

    def answer_context(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, C] before each answer that generation settings such as a repetition penalty count.

        The start token of an encoder-decoder, C = 1; the prompt of a decoder-only model, after negative padding.
        """
        ...

    def for_steps(self) -> Self:
        """This model with its weights arranged for `step`: called once before the loop over the steps."""
        ...

    def start(self, source: Source, *, hypotheses: int, max_length: int) -> tuple[jax.Array, Cache]:
        """First input tokens [B, N] of `step`, and an empty cache for N hypotheses of up to `max_length` tokens."""
        ...

    def step(self, tokens: jax.Array, position: jax.Array, cache: Cache, source: Source) -> tuple[jax.Array, Cache]:
        """Logits [B, N, V] of token number `position` (a scalar, from 0) of every hypothesis, given the tokens [B, N]
        before it, and the updated cache."""
        ...

    def choose(self, cache: Cache, parents: jax.Array) -> Cache:
        """Cache in which hypothesis n of a source continues its former hypothesis `parents[b, n]`, [B, N]."""
        ...


def end_tokens(config: GeneratorConfig) -> tuple[int, ...]:
    """End tokens of a configuration; any of them ends an answer."""
    return config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)


def is_end(tokens: jax.Array, config: GeneratorConfig) -> jax.Array:
    """True at tokens that end an answer; a configuration may have several."""
    return jnp.isin(tokens, jnp.array(end_tokens(config)))


def decoder_inputs(labels: jax.Array, config: EncoderDecoderConfig) -> jax.Array:
    """Decoder inputs for labels [B, T]: the labels shifted right after the start token.

    Labels that are no token (negative) become padding.
    """
    labels = jnp.where(labels < 0, config.pad_token_id, labels)
    start = jnp.full_like(sharded_by_rows(labels[:, :1], labels), config.decoder_start_token_id)
    return jnp.concatenate([start, sharded_by_rows(labels[:, :-1], labels)], axis=1)
