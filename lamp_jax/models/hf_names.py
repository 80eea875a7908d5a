"""Hugging Face's name of every parameter, and its place in our models."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from lamp_jax.models.bert import BertConfig
from lamp_jax.models.longformer import LongformerConfig
from lamp_jax.models.t5_config import T5Config


class Place(NamedTuple):
    """Place of one HF tensor in a model."""

    path: tuple[str, ...]
    """Attribute names from the model to the parameter."""
    layer: int | None = None
    """Index of the slice in a stacked parameter [L, ...]; None where the parameter is not stacked."""
    inputs: int | None = None
    """Number of leading axes of the slice that are a matrix's input, which HF stores last, with one axis for inputs and
    one for outputs (0: a bias, with one axis); None: stored unchanged."""

    def hf_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """HF's shape of a slice of this shape."""
        if self.inputs is None:
            return shape
        outputs = math.prod(shape[self.inputs :])
        return (outputs, math.prod(shape[: self.inputs])) if self.inputs else (outputs,)

    def from_hf(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Slice of this shape, from HF's tensor."""
        return tensor if self.inputs is None else tensor.T.reshape(shape)

    def to_hf(self, values: np.ndarray) -> np.ndarray:
        """HF's tensor, from a slice."""
        return values if self.inputs is None else values.reshape(self.hf_shape(values.shape)[::-1]).T


def t5_places(config: T5Config) -> dict[str, Place]:
    """Place in `T5` of every parameter, by HF's name."""
    places = {"shared.weight": Place(("embedding",))}
    for stack, layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        places[bias] = Place((f"{stack}_positions", "table"))
        places[f"{stack}.final_layer_norm.weight"] = Place((f"{stack}_norm", "scale"))
        for layer in range(layers):
            for name, place in _t5_layer(stack, layer, config):
                places[f"{stack}.block.{layer}.layer.{name}.weight"] = place
    if not config.tie_word_embeddings:
        places["lm_head.weight"] = Place(("head",))
    return places


def _t5_layer(stack: str, layer: int, config: T5Config) -> Iterable[tuple[str, Place]]:
    attentions = [("SelfAttention", "attention"), ("EncDecAttention", "cross")][: 2 if stack == "decoder" else 1]
    for number, (name, ours) in enumerate(attentions):
        yield f"{number}.layer_norm", Place((stack, f"{ours}_norm", "scale"), layer)
        for letter, matrix, inputs in (("q", "query", 1), ("k", "key", 1), ("v", "value", 1), ("o", "output", 2)):
            yield f"{number}.{name}.{letter}", Place((stack, ours, matrix), layer, inputs)
    number = len(attentions)
    gated = config.feed_forward_proj == "gated-gelu"
    matrices = {"wi_0": "gate", "wi_1": "inner", "wo": "outer"} if gated else {"wi": "inner", "wo": "outer"}
    yield f"{number}.layer_norm", Place((stack, "mlp_norm", "scale"), layer)
    for name, matrix in matrices.items():
        yield f"{number}.DenseReluDense.{name}", Place((stack, "mlp", matrix), layer, 1)


def bert_places(config: BertConfig) -> dict[str, Place]:
    """Place in `Bert` of every parameter, by HF's name."""
    tables = {"word_embeddings": "words", "position_embeddings": "positions", "token_type_embeddings": "types"}
    places = {f"embeddings.{name}.weight": Place((ours,)) for name, ours in tables.items()}
    places["embeddings.LayerNorm.weight"] = Place(("first_norm", "scale"))
    places["embeddings.LayerNorm.bias"] = Place(("first_norm", "bias"))
    for layer in range(config.num_hidden_layers):
        for name, ours, inputs in _BERT_MATRICES:
            prefix = f"encoder.layer.{layer}.{name}"
            places[f"{prefix}.weight"] = Place(("layers", ours), layer, inputs)
            places[f"{prefix}.bias"] = Place(("layers", f"{ours}_bias"), layer, 0)
        for name, ours in (("attention.output", "attention_norm"), ("output", "mlp_norm")):
            for letter, part in (("weight", "scale"), ("bias", "bias")):
                places[f"encoder.layer.{layer}.{name}.LayerNorm.{letter}"] = Place(("layers", ours, part), layer)
    return places


_BERT_MATRICES = (
    ("attention.self.query", "query", 1),
    ("attention.self.key", "key", 1),
    ("attention.self.value", "value", 1),
    ("attention.output.dense", "output", 2),
    ("intermediate.dense", "inner", 1),
    ("output.dense", "outer", 1),
)


def longformer_places(config: LongformerConfig, *, body: str, pooler: str, head: str) -> dict[str, Place]:
    """Place in `Longformer` of every parameter, by HF's name.

    HF's names depend on the model that contains the Longformer: `body` is the prefix of the encoder's names, `pooler`
    and `head` are those of the pooler and the head.
    """

    places = {f"{body}{name}": place for name, place in bert_places(config).items()}
    for layer in range(config.num_hidden_layers):
        for name in ("query", "key", "value"):
            prefix = f"{body}encoder.layer.{layer}.attention.self.{name}_global"
            places[f"{prefix}.weight"] = Place(("layers", f"{name}_first"), layer, 1)
            places[f"{prefix}.bias"] = Place(("layers", f"{name}_first_bias"), layer, 0)
    for name, ours in ((pooler, "pooler"), (head, "head")):
        places[f"{name}.weight"] = Place((ours,), inputs=1)
        places[f"{name}.bias"] = Place((f"{ours}_bias",), inputs=0)
    return places
