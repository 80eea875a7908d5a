"""Invalid values of `config.json`: rejected on reading, for every kind of model."""

import json

import pytest

from lamp_jax.errors import LampError
from lamp_jax.models.bert import BertConfig
from lamp_jax.models.longformer import LongformerConfig
from lamp_jax.models.t5_config import T5Config

KINDS = {"t5": T5Config, "bert": BertConfig, "longformer": LongformerConfig}
SIZES = {
    "t5": (
        *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads"),
        *("relative_attention_num_buckets", "relative_attention_max_distance"),
    ),
    "bert": (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("max_position_embeddings", "type_vocab_size"),
    ),
}
SIZES["longformer"] = (*SIZES["bert"], "attention_window")
REALS = {
    "t5": ("dropout_rate", "layer_norm_epsilon", "initializer_factor"),
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps"),
}
REALS["longformer"] = REALS["bert"]
EACH_SIZE = [(kind, name) for kind, names in SIZES.items() for name in names]
EACH_REAL = [(kind, name) for kind, names in REALS.items() for name in names]


def _shown(value):
    return repr(value)[:8]


def refuse(kind, match, **values):
    with pytest.raises(LampError, match=rf"m/config\.json: {match}"):
        KINDS[kind].from_hf({**KINDS[kind]().to_hf(), **values}, source="m/config.json")


@pytest.mark.parametrize("value", ["8", None, True, 8.0, [], {}, 0, -1, 10**30], ids=_shown)
@pytest.mark.parametrize(("kind", "name"), EACH_SIZE)
def test_a_size_must_be_a_positive_integer_below_a_limit(kind, name, value):
    if (name, value) == ("num_decoder_layers", None):  # as HF writes "as many as the encoder"
        assert T5Config.from_hf({"model_type": "t5", "num_layers": 3, name: None}, source="").num_decoder_layers == 3
    else:
        refuse(kind, f"{name} ", **{name: value})


@pytest.mark.parametrize(
    "value", ["0.1", None, True, [], -0.5, float("nan"), float("inf"), 10**400], ids=lambda value: repr(value)[:8]
)
@pytest.mark.parametrize(("kind", "name"), EACH_REAL)
def test_a_rate_must_be_a_number_in_its_range(kind, name, value):
    refuse(kind, f"{name} is", **{name: value})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["pad_token_id", "eos_token_id", "bos_token_id", "sep_token_id", "cls_token_id"])
@pytest.mark.parametrize("value", ["0", True, -1, 1.0, 60000, [1, 60000]], ids=repr)
def test_a_special_token_must_have_an_embedding(kind, name, value):
    refuse(kind, f"{name} ", **{name: value})


def test_the_start_token_must_have_an_embedding():
    refuse(
        "t5", "decoder_start_token_id 32128 has no row in the embedding, which has 32128", decoder_start_token_id=32128
    )


@pytest.mark.parametrize(
    ("kind", "values", "match"),
    [
        ("t5", {"feed_forward_proj": 3}, "feed_forward_proj is 3"),
        ("t5", {"feed_forward_proj": None}, "feed_forward_proj is None"),
        ("t5", {"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', expected true or false"),
        ("t5", {"scale_decoder_outputs": 1}, "scale_decoder_outputs is 1, expected true or false"),
        ("t5", {"relative_attention_max_distance": 16}, "relative_attention_max_distance 16 is not above half"),
        ("t5", {"is_gated_act": "yes", "dense_act_fn": []}, "feed_forward_proj 'relu' .*not supported"),
        ("bert", {"num_attention_heads": 5}, "hidden_size 768 is not a multiple of num_attention_heads 5"),
        ("longformer", {"num_attention_heads": 5}, "hidden_size 768 is not a multiple of num_attention_heads 5"),
        ("bert", {"is_decoder": True}, "is_decoder is true"),
        ("bert", {"hidden_act": None}, "hidden_act None is not supported"),
        ("longformer", {"max_position_embeddings": 2}, "max_position_embeddings 2 leaves no position for a text"),
        ("longformer", {"attention_window": [8, "8"]}, "attention_window is '8'"),
        ("longformer", {"attention_window": [[8]]}, r"attention_window is \[8\]"),
        ("longformer", {"attention_window": [8] * 5}, "attention_window has 5 entries for 12 layers"),
    ],
)
def test_inconsistent_values_are_an_error(kind, values, match):
    refuse(kind, match, **values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_round_trips(kind):
    config = KINDS[kind]()
    assert KINDS[kind].from_hf(json.loads(json.dumps(config.to_hf())), source="") == config
