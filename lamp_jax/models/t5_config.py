"""T5 configurations: published sizes, reading and writing of Hugging Face's `config.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from lamp_jax.errors import LampError
from lamp_jax.inputs.tokenizer import round_up_vocabulary
from lamp_jax.models.config_values import check_tokens, read_flag, read_numbers
from lamp_jax.models.layers import FeedForwardKind

_TOKENS = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
_ACTIVATIONS = {"relu": "relu", "gated-gelu": "gelu_new"}


@dataclass(frozen=True)
class T5Config:
    """Sizes of a T5; names as in Hugging Face's `config.json`. The defaults are those of T5 v1.0 small."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: FeedForwardKind = "relu"
    tie_word_embeddings: bool = True
    """Whether logits use the input embedding, as in T5 v1.0, and not a separate matrix."""
    scale_decoder_outputs: bool | None = None
    """Whether the decoder's output is scaled by d_model^-0.5 before the logits. None: only with tied embeddings, as in
    T5 v1.0 and v1.1; transformers 5 also makes the other two combinations."""
    pad_token_id: int = 0
    eos_token_id: int | tuple[int, ...] = 1
    """End tokens: any of them ends an answer."""
    decoder_start_token_id: int = 0

    model_type: ClassVar[str] = "t5"

    def __post_init__(self):
        if self.scale_decoder_outputs == self.tie_word_embeddings:  # None, so that equal configurations compare equal
            object.__setattr__(self, "scale_decoder_outputs", None)

    @property
    def scales_outputs(self) -> bool:
        """Whether the decoder's output is scaled by d_model^-0.5 before the logits."""
        return self.tie_word_embeddings if self.scale_decoder_outputs is None else self.scale_decoder_outputs

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], *, source: str) -> "T5Config":
        """Configuration in a parsed `config.json`; absent values have HF's default. LampError names `source`.

        transformers 5 writes `tie_word_embeddings` true for every T5; only the weights show whether they are tied.
        """
        if values.get("model_type") != cls.model_type:
            raise LampError(
                f"{source}: model_type is {values.get('model_type')!r}, not 't5'; give a T5 or FLAN-T5 model"
            )
        tied, scaled = (read_flag(name, values, source) for name in ("tie_word_embeddings", "scale_decoder_outputs"))
        if values.get("num_decoder_layers") is None:
            values = {**values, "num_decoder_layers": values.get("num_layers", cls.num_layers)}
        known = read_numbers(cls.__dataclass_fields__, values, source)
        known |= {name: _tokens(values[name], name, source) for name in _TOKENS if values.get(name) is not None}
        check_tokens(values, rows=known.get("vocab_size", cls.vocab_size), source=source)
        config = cls(
            **known,
            feed_forward_proj=_feed_forward_kind(values, source),
            tie_word_embeddings=tied is not False,
            scale_decoder_outputs=tied is not False if scaled is None else scaled,
        )
        if config.relative_attention_max_distance <= config.relative_attention_num_buckets // 2:
            raise LampError(
                f"{source}: relative_attention_max_distance {config.relative_attention_max_distance} is not above half "
                f"of relative_attention_num_buckets ({config.relative_attention_num_buckets}); "
                "use the config.json that the model was saved with"
            )
        return config

    @classmethod
    def for_scratch(
        cls,
        vocabulary: int,
        *,
        d_model: int,
        d_ff: int,
        num_layers: int,
        num_decoder_layers: int,
        num_heads: int,
        dropout: float,
    ) -> "T5Config":
        """Configuration of a new model in FLAN-T5's architecture, for a tokenizer with `vocabulary` tokens."""
        return cls(
            vocab_size=round_up_vocabulary(vocabulary),
            d_model=d_model,
            d_kv=d_model // num_heads,
            d_ff=d_ff,
            num_layers=num_layers,
            num_decoder_layers=num_decoder_layers,
            num_heads=num_heads,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            dropout_rate=dropout,
        )

    def to_hf(self) -> dict[str, Any]:
        """Content of `config.json` for `transformers.T5ForConditionalGeneration`."""
        gated = self.feed_forward_proj == "gated-gelu"
        return asdict(self) | {
            "scale_decoder_outputs": self.scales_outputs,
            "architectures": ["T5ForConditionalGeneration"],
            "dense_act_fn": _ACTIVATIONS[self.feed_forward_proj],
            "dtype": "float32",
            "is_encoder_decoder": True,
            "is_gated_act": gated,
            "model_type": self.model_type,
            "use_cache": True,
        }


def _feed_forward_kind(values: Mapping[str, Any], source: str) -> FeedForwardKind:
    """Kind of feed-forward; as in HF, `dense_act_fn` and `is_gated_act` in the file override `feed_forward_proj`."""
    named = values.get("feed_forward_proj", "relu")
    if not isinstance(named, str):
        raise LampError(f"{source}: feed_forward_proj is {named!r}; T5's are 'relu' and 'gated-gelu'")
    gated = values.get("is_gated_act", named.startswith("gated-"))
    activation = values.get("dense_act_fn", _ACTIVATIONS.get(named, named.removeprefix("gated-")))
    match gated, activation:
        case False, "relu":
            return "relu"
        case True, "gelu_new":
            return "gated-gelu"
    raise LampError(
        f"{source}: feed_forward_proj {named!r} (activation {activation!r}, {'gated' if gated else 'not gated'}) "
        f"is not supported; T5's are 'relu' and 'gated-gelu' (activation 'gelu_new')"
    )


def _tokens(value: Any, name: str, source: str) -> int | tuple[int, ...]:
    """Id of a special token, or several (for `eos_token_id` only); HF writes a number or a list."""
    listed = value if isinstance(value, list | tuple) else [value]
    if not listed or not all(type(one) is int and one >= 0 for one in listed):
        raise LampError(f"{source}: {name} is {value!r}; expected a token id, 0 or more")
    if len(listed) == 1:
        return listed[0]
    if name != "eos_token_id":
        raise LampError(f"{source}: {name} {value!r} has {len(listed)} tokens; keep one")
    return tuple(listed)


T5_SMALL = T5Config()
T5_BASE = replace(T5_SMALL, d_model=768, d_ff=3072, num_layers=12, num_decoder_layers=12, num_heads=12)
T5_LARGE = replace(T5_SMALL, d_model=1024, d_ff=4096, num_layers=24, num_decoder_layers=24, num_heads=16)
T5_3B = replace(T5_LARGE, d_kv=128, d_ff=16384, num_heads=32)
T5_11B = replace(T5_LARGE, d_kv=128, d_ff=65536, num_heads=128)

FLAN_T5_SMALL = replace(
    T5_SMALL,
    d_ff=1024,
    num_layers=8,
    num_decoder_layers=8,
    num_heads=6,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)
FLAN_T5_BASE = replace(FLAN_T5_SMALL, d_model=768, d_ff=2048, num_layers=12, num_decoder_layers=12, num_heads=12)
FLAN_T5_LARGE = replace(FLAN_T5_SMALL, d_model=1024, d_ff=2816, num_layers=24, num_decoder_layers=24, num_heads=16)
FLAN_T5_XL = replace(FLAN_T5_LARGE, d_model=2048, d_ff=5120, num_heads=32)
FLAN_T5_XXL = replace(FLAN_T5_LARGE, d_model=4096, d_ff=10240, num_heads=64)

SIZES: Mapping[str, T5Config] = {
    "t5-small": T5_SMALL,
    "t5-base": T5_BASE,
    "t5-large": T5_LARGE,
    "t5-3b": T5_3B,
    "t5-11b": T5_11B,
    "flan-t5-small": FLAN_T5_SMALL,
    "flan-t5-base": FLAN_T5_BASE,
    "flan-t5-large": FLAN_T5_LARGE,
    "flan-t5-xl": FLAN_T5_XL,
    "flan-t5-xxl": FLAN_T5_XXL,
}
"""Published sizes by name; FLAN-T5 has those of T5 v1.1."""
