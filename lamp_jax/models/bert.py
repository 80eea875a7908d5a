"""BERT, the encoder of dense retrieval: hidden states of tokens, or one vector per text.

Devlin et al. 2018 (arXiv 1810.04805); mean pooling, the default, as in Contriever (Izacard et al. 2021, arXiv
2112.09118). The layers are one scan over stacked parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from lamp_jax.config import PoolingMode, ScratchEncoder
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import NO_TOKEN
from lamp_jax.inputs.tokenizer import round_up_vocabulary
from lamp_jax.models.attention import drop_values, hide_padding
from lamp_jax.models.config_values import check_tokens, read_flag, read_numbers
from lamp_jax.models.dropout import dropout, layer_keys, split_key
from lamp_jax.models.kernels import NO_BIAS, AttentionOrder, attend_in_order, gelu
from lamp_jax.models.layers import (
    LayerNorm,
    Remat,
    attention_result,
    look_up,
    normal,
    project,
    scan_layers,
    zeros,
)
from lamp_jax.models.pooling import pool, unit
from lamp_jax.sharding import DATA_PARALLEL, Rules, check_divides, gathered


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT; names as in Hugging Face's `config.json`. The defaults are those of BERT base, uncased."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    model_type: ClassVar[str] = "bert"
    example: ClassVar[str] = "an encoder such as Contriever"

    @property
    def first_position(self) -> int:
        """Row of the position embeddings for the first token of a text."""
        return 0

    @property
    def longest(self) -> int:
        """Number of tokens of the longest text for which there are position embeddings."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], *, source: str) -> Self:
        """Configuration in a parsed `config.json`; absent values have HF's default. LampError names `source`."""
        if values.get("model_type") != cls.model_type:
            raise LampError(
                f"{source}: model_type is {values.get('model_type')!r}, not {cls.model_type!r}; give {cls.example}"
            )
        for name, only in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if values.get(name, only) != only:
                raise LampError(f"{source}: {name} {values[name]!r} is not supported; BERT's is {only!r}")
        if read_flag("is_decoder", values, source):
            raise LampError(
                f"{source}: is_decoder is true, but the tokens of an encoder attend to all others; give an encoder"
            )
        known = read_numbers(cls.__dataclass_fields__, values, source)
        check_tokens(values, rows=known.get("vocab_size", cls.vocab_size), source=source)
        if values.get("pad_token_id") is not None:
            known["pad_token_id"] = values["pad_token_id"]
        config = cls(**known)
        if config.hidden_size % config.num_attention_heads:
            raise LampError(
                f"{source}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
                f"{config.num_attention_heads}; use the config.json that the model was saved with"
            )
        if config.longest < 1:
            raise LampError(
                f"{source}: max_position_embeddings {config.max_position_embeddings} leaves no position for a text, "
                f"whose first is {config.first_position}; use the config.json that the model was saved with"
            )
        return config

    @classmethod
    def for_scratch(cls, size: ScratchEncoder, vocabulary: int, **further: Any) -> Self:
        """Configuration of a new model of this size, for a tokenizer with `vocabulary` tokens."""
        return cls(
            vocab_size=round_up_vocabulary(vocabulary),
            hidden_size=size.hidden_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            intermediate_size=size.intermediate_size,
            hidden_dropout_prob=size.dropout,
            attention_probs_dropout_prob=size.dropout,
            **further,
        )

    def to_hf(self) -> dict[str, Any]:
        """Content of `config.json` for `transformers.BertModel`."""
        return asdict(self) | {
            "architectures": ["BertModel"],
            "dtype": "float32",
            "hidden_act": "gelu",
            "model_type": self.model_type,
            "position_embedding_type": "absolute",
        }


class BertLayers(nnx.Module):
    """Stacked layers: self-attention, then feed-forward, each added to its input and then normalized."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs, rules: Rules):
        count, hidden, mlp, heads = (
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
        )
        size = hidden // heads

        def matrix(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param[jax.Array]:
            deviation = config.initializer_range
            return normal(rngs, (count, *shape), deviation=deviation, rules=rules, axes=(None, *axes))

        def bias(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param[jax.Array]:
            return zeros((count, *shape), rules=rules, axes=(None, *axes))

        self.query, self.key, self.value = (matrix((hidden, heads, size), ("embed", "heads", None)) for _ in range(3))
        self.query_bias, self.key_bias, self.value_bias = (bias((heads, size), ("heads", None)) for _ in range(3))
        self.output = matrix((heads, size, hidden), ("heads", None, "embed"))
        self.output_bias = bias((hidden,), (None,))
        self.attention_norm = LayerNorm((count, hidden), epsilon=config.layer_norm_eps, rules=rules)
        self.inner, self.inner_bias = matrix((hidden, mlp), ("embed", "mlp")), bias((mlp,), ("mlp",))
        self.outer, self.outer_bias = matrix((mlp, hidden), ("mlp", "embed")), bias((hidden,), (None,))
        self.mlp_norm = LayerNorm((count, hidden), epsilon=config.layer_norm_eps, rules=rules)
        self.config, self.rules = config, rules

    def __call__(self, x: jax.Array, padding: jax.Array, order: AttentionOrder, key: jax.Array | None) -> jax.Array:
        """Output of one layer, [B, S, D] -> [B, S, D]; `padding` [B, 1, 1, S] is added to the scores."""
        rate, rules = self.config.hidden_dropout_prob, self.rules
        key_values, key_scores, key_attention, key_mlp = split_key(key, 4)
        query, keys, values = (
            self.heads(x, weight, bias)
            for weight, bias in (
                (self.query, self.query_bias),
                (self.key, self.key_bias),
                (self.value, self.value_bias),
            )
        )
        query = query * query.shape[-1] ** -0.5
        values = drop_values(values, self.config.attention_probs_dropout_prob, key_values)
        heads = self.attend(x, query, keys, values, padding, order, key_scores)
        heads = attention_result(heads)
        mixed = project("bthk,hkd->btd", heads, self.output, rules, out=rules.out("batch", None, None))
        mixed = mixed + self.output_bias[...].astype(x.dtype)
        x = attention_result(self.attention_norm(x + dropout(mixed, rate, key_attention)))
        wide = project("btd,df->btf", x, self.inner, rules)
        wide = gelu(wide + self.inner_bias[...].astype(x.dtype))
        narrow = project("btf,fd->btd", wide, self.outer, rules, out=rules.out("batch", None, None))
        narrow = narrow + self.outer_bias[...].astype(x.dtype)
        return self.mlp_norm(x + dropout(narrow, rate, key_mlp))

    def attend(
        self,
        x: jax.Array,
        query: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        padding: jax.Array,
        order: AttentionOrder,
        key: jax.Array | None,
    ) -> jax.Array:
        """Attention output, three of [B, S, H, K] -> [B, S, H, K]; they are projections of x [B, S, D]."""
        return attend_in_order(query, keys, values, NO_BIAS, padding, order=order, rules=self.rules)

    def heads(self, x: jax.Array, weight: nnx.Param, bias: nnx.Param) -> jax.Array:
        """Projection with bias into heads, [B, S, D] -> [B, S, H, K]."""
        return project("bsd,dhk->bshk", x, weight, self.rules) + bias[...].astype(x.dtype)


class Bert(nnx.Module):
    """BERT without pooler and heads, parameters in float32; inputs are single texts, so the token type is always 0.

    `dtype` is the dtype of activations and matrix products; softmax, norms and pooled vectors are always float32.
    LampError if a size does not divide over the current mesh by the `rules`.
    """

    def __init__(
        self,
        config: BertConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        remat: Remat = "none",
        attention: AttentionOrder = "whole",
        rules: Rules = DATA_PARALLEL,
    ):
        check_divides("hidden_size", config.hidden_size, rules.embed)
        check_divides("num_attention_heads", config.num_attention_heads, rules.heads)
        check_divides("intermediate_size", config.intermediate_size, rules.mlp)
        check_divides("vocab_size", config.vocab_size, rules.vocab)
        self.config, self.dtype, self.rules = config, jnp.dtype(dtype), rules
        self.remat: Remat = remat
        self.attention: AttentionOrder = attention

        def table(rows: int, axes: tuple[str | None, str | None]) -> nnx.Param[jax.Array]:
            return normal(rngs, (rows, config.hidden_size), deviation=config.initializer_range, rules=rules, axes=axes)

        self.words = table(config.vocab_size, ("vocab", "embed"))
        self.positions = table(config.max_position_embeddings, (None, "embed"))
        self.types = table(config.type_vocab_size, (None, "embed"))
        self.first_norm = LayerNorm((config.hidden_size,), epsilon=config.layer_norm_eps, rules=rules)
        self.layers = self.make_layers(config, rngs=rngs, rules=rules)

    def make_layers(self, config: Any, *, rngs: nnx.Rngs, rules: Rules) -> BertLayers:
        return BertLayers(config, rngs=rngs, rules=rules)

    def __call__(self, tokens: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Last hidden states [B, S, D] of tokens [B, S], padded with NO_TOKEN. Without a key, no dropout."""
        config, rules = self.config, self.rules
        if tokens.shape[1] > config.longest:
            raise LampError(f"texts of {tokens.shape[1]} tokens: this model has positions for {config.longest}")
        key_first, key_layers = split_key(key, 2)
        padding = hide_padding(tokens != NO_TOKEN)
        x = look_up(self.words, jnp.maximum(tokens, 0), rules, dtype=jnp.dtype(jnp.float32))
        positions = gathered(self.positions[...], rules.spec(None, None))
        fixed = positions[config.first_position : config.first_position + tokens.shape[1]]
        fixed = fixed + gathered(self.types[...], rules.spec(None, None))[0]
        x = self.first_norm((x + fixed).astype(self.dtype))
        x = dropout(x, config.hidden_dropout_prob, key_first)

        def layer(x, xs):
            layers, key = xs
            return layers(x, padding, self.attention, key), None

        keys = layer_keys(key_layers, config.num_hidden_layers)
        return scan_layers(layer, x, (self.layers, keys), remat=self.remat)[0]

    def each_text(self, apply: Callable[[jax.Array], jax.Array], tokens: jax.Array) -> jax.Array:
        """`apply`, a function from [rows, S] to [rows, ...], on N texts of B questions: [B, N, S] -> [B, N, ...]."""
        questions, texts, length = tokens.shape
        rows = jnp.reshape(tokens, (questions * texts, length), out_sharding=self.rules.out("batch", None))
        found = apply(rows)
        sharding = self.rules.out("batch", *(None,) * found.ndim)
        return jnp.reshape(found, (questions, texts, *found.shape[1:]), out_sharding=sharding)

    def embed(
        self,
        tokens: jax.Array,
        *,
        pooling: Sequence[PoolingMode] = ("mean",),
        normalize: bool = False,
        skip: jax.Array | int = 0,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Text vectors pooled from hidden states: tokens [B, S], padded with NO_TOKEN -> [B, D per mode], float32.

        [CLS] and [SEP] are pooled; the first `skip` tokens (one number, or one per text [B]) are not. A row without
        tokens gives zeros.
        """
        counted = (tokens != NO_TOKEN) & (jnp.arange(tokens.shape[1]) >= jnp.asarray(skip)[..., None])
        vectors = pool(self(tokens, key=key), counted, pooling)
        return unit(vectors) if normalize else vectors
