"""Longformer, the selector's model: one score per long text (RSPG, arXiv 2404.05970, section 4.2).

Beltagy et al. 2020 (arXiv 2004.05150): a BERT with sliding-window attention, whose first token has global attention
with separate projections.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx

from lamp_jax.errors import LampError
from lamp_jax.models.bert import Bert, BertConfig, BertLayers
from lamp_jax.models.config_values import check_integer
from lamp_jax.models.dropout import dropout
from lamp_jax.models.kernels import AttentionOrder, attend_nearby
from lamp_jax.models.layers import normal, project, read, zeros
from lamp_jax.sharding import Rules

FirstToken = Literal["global", "local"]
"""Attention of the first token: global (it attends to all tokens and all attend to it), or local like all others."""


@dataclass(frozen=True)
class LongformerConfig(BertConfig):
    """Sizes of a Longformer; names as in Hugging Face's `config.json`. The defaults are those of the base model."""

    vocab_size: int = 50265
    max_position_embeddings: int = 4098
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    attention_window: int = 512
    """Size of the attention window in tokens: half of them on either side."""

    model_type: ClassVar[str] = "longformer"
    example: ClassVar[str] = "a model such as allenai/longformer-base-4096"

    @property
    def first_position(self) -> int:
        """Row of the first token's position embedding, as in RoBERTa: the one after the padding id."""
        return self.pad_token_id + 1

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], *, source: str) -> Self:
        """Configuration in a parsed `config.json`, as BertConfig.from_hf. LampError also for windows that are odd or
        differ between the layers."""
        found = values.get("attention_window", cls.attention_window)
        windows = found if isinstance(found, list) else [found]
        distinct = {check_integer("attention_window", window, source) for window in windows}
        if len(distinct) != 1 or any(window < 2 or window % 2 for window in distinct):
            raise LampError(f"{source}: attention_window {found} is not supported; all layers need one even window")
        name = "num_hidden_layers"
        layers = check_integer(name, values.get(name, cls.num_hidden_layers), source)
        if isinstance(found, list) and len(found) != layers:
            raise LampError(f"{source}: attention_window has {len(found)} entries for {layers} layers ({name})")
        return super().from_hf({**values, "attention_window": distinct.pop()}, source=source)

    def to_hf(self) -> dict[str, Any]:
        """Content of `config.json` for `transformers.LongformerForSequenceClassification`, with one label."""
        return asdict(self) | {
            "architectures": ["LongformerForSequenceClassification"],
            "attention_window": [self.attention_window] * self.num_hidden_layers,
            "dtype": "float32",
            "hidden_act": "gelu",
            "id2label": {"0": "score"},
            "label2id": {"score": 0},
            "model_type": self.model_type,
        }


class LongformerLayers(BertLayers):
    """BERT's layers with sliding-window attention, and a first token that may have global attention."""

    def __init__(self, config: LongformerConfig, *, first_token: FirstToken, rngs: nnx.Rngs, rules: Rules):
        super().__init__(config, rngs=rngs, rules=rules)
        self.first_token: FirstToken = first_token
        self.reach = config.attention_window // 2
        count, hidden, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
        shape, axes = (count, hidden, heads, hidden // heads), (None, "embed", "heads", None)
        self.query_first, self.key_first, self.value_first = (
            normal(rngs, shape, deviation=config.initializer_range, rules=rules, axes=axes) for _ in range(3)
        )
        self.query_first_bias, self.key_first_bias, self.value_first_bias = (
            zeros((count, *shape[2:]), rules=rules, axes=(None, *axes[2:])) for _ in range(3)
        )

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
        first = "seen by all" if self.first_token == "global" else "like others"
        found = attend_nearby(
            query, keys, values, padding, reach=self.reach, first=first, order=order, rules=self.rules
        )
        if self.first_token == "local":
            return found
        return jnp.concatenate([self._read_all(x, padding, key), found[:, 1:]], axis=1)

    def _read_all(self, x: jax.Array, padding: jax.Array, key: jax.Array | None) -> jax.Array:
        """Global attention output of the first token, with separate projections, [B, S, D] -> [B, 1, H, K].

        The query is multiplied with the projections first, so that no token's key or value is computed: q (W x) is
        (q W) x, and the mean of W x is W times the mean of x. The keys' bias adds the same to all scores and is left
        out.
        """
        query = self.heads(x[:, :1], self.query_first, self.query_first_bias)[:, 0] * self.key_first.shape[-1] ** -0.5
        key_matrix, value_matrix = (read(w, self.rules, dtype=x.dtype) for w in (self.key_first, self.value_first))
        asked = jnp.einsum("bhk,dhk->bhd", query, key_matrix)
        scores = jnp.einsum("bhd,bsd->bhs", asked, x, preferred_element_type=jnp.float32) + padding[:, 0]
        weights = jnp.swapaxes(jax.nn.softmax(scores), 1, 2)  # heads, which may be sharded, after tokens
        weights = dropout(weights, self.config.attention_probs_dropout_prob, key).astype(x.dtype)
        weights = jnp.swapaxes(weights, 1, 2)
        mixed = jnp.einsum("bhs,bsd->bhd", weights, x)
        value = jnp.einsum("bhd,dhk->bhk", mixed, value_matrix)
        total = jnp.sum(weights, axis=-1)[..., None]  # 1, except with dropout
        return (value + total * self.value_first_bias[...].astype(x.dtype))[:, None]


class Longformer(Bert):
    """Longformer with a pooler and a head of one output; parameters and dtypes as in Bert.

    Texts are padded at the end, so that RoBERTa's position ids, counted by the padding mask, equal the positions.
    """

    config: LongformerConfig

    def __init__(
        self, config: LongformerConfig, *, rngs: nnx.Rngs, first_token: FirstToken = "global", **model_kwargs: Any
    ):
        self.first_token: FirstToken = first_token
        super().__init__(config, rngs=rngs, **model_kwargs)
        hidden, deviation, rules = config.hidden_size, config.initializer_range, self.rules
        self.pooler = normal(rngs, (hidden, hidden), deviation=deviation, rules=rules, axes=("embed", None))
        self.pooler_bias = zeros((hidden,), rules=rules, axes=(None,))
        self.head = normal(rngs, (hidden, 1), deviation=deviation, rules=rules, axes=("embed", None))
        self.head_bias = zeros((1,), rules=rules, axes=(None,))

    def make_layers(self, config: LongformerConfig, *, rngs: nnx.Rngs, rules: Rules) -> LongformerLayers:
        return LongformerLayers(config, first_token=self.first_token, rngs=rngs, rules=rules)

    def start_alike(self) -> None:
        """Initializes the first layer so that each token attends to equal tokens at any position.

        For new models: repetitions within a text are then visible from the start. From random keys and queries, small
        models did not learn to detect repetition in thousands of texts. The factors fit an `initializer_range` of
        width^-0.5.
        """
        first = jnp.where(jnp.arange(self.config.num_hidden_layers) == 0, 4.0, 1.0)[:, None, None, None]
        self.layers.query[...] = self.layers.query[...] * first
        self.layers.key[...] = jnp.array(self.layers.query[...])  # a copy: every buffer is donated separately
        self.positions[...] = self.positions[...] * 0.1

    def pool(self, tokens: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Pooler output [B, D]: tanh of a projection of the first token's hidden state; tokens [B, S] as in `score`."""
        first = self(tokens, key=key)[:, 0].astype(jnp.float32)
        return jnp.tanh(project("bd,df->bf", first, self.pooler, self.rules) + self.pooler_bias[...])

    def score(self, tokens: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Score of each text [B], float32; tokens [B, S], padded with NO_TOKEN."""
        scores = project("bf,fo->bo", self.pool(tokens, key=key), self.head, self.rules) + self.head_bias[...]
        return jnp.squeeze(scores, axis=1)
