"""Meshes and sharding rules: the same training and outputs for all; only the sharding of arrays differs."""

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from lamp_jax.decoding.answers import make_decoder
from lamp_jax.errors import LampError
from lamp_jax.models.bert import NO_TOKEN, Bert
from lamp_jax.models.longformer import Longformer, LongformerConfig
from lamp_jax.models.t5 import T5
from lamp_jax.options import CORRECT, Answering, Learning, TrainRetriever, TrainSelector
from lamp_jax.sharding import RULES, Rules, make_mesh, place_batch
from lamp_jax.steps.generator import generator_loss
from lamp_jax.steps.retriever import choose_objective, retriever_loss, score_candidates
from lamp_jax.steps.selector import score_texts, selector_loss
from lamp_jax.steps.update import make_optimizer, make_update, start
from tests.models.tiny import BERT, GATED, TIED, make_batch, place_values

ROWS, UPDATES = 16, 3


class Layout(NamedTuple):
    """A mesh and its sharding rules; attention is computed by rows on CPUs, for the complete batch on accelerators."""

    data: int
    model: int
    sharding: str
    attention: str

    def open(self):
        devices = jax.devices()[: self.data * self.model]
        return jax.set_mesh(make_mesh(self.data, self.model, devices=devices))


ALONE = Layout(1, 1, "data", "rows")
DATA = Layout(8, 1, "data", "rows")
FSDP = Layout(8, 1, "fsdp", "whole")
TENSOR, BOTH = Layout(4, 2, "tensor", "rows"), Layout(4, 2, "fsdp+tensor", "whole")
WIDE_TENSOR, WIDE_BOTH = Layout(2, 4, "tensor", "whole"), Layout(2, 4, "fsdp+tensor", "rows")
LAYOUTS = (ALONE, DATA, FSDP, TENSOR, BOTH, WIDE_TENSOR, WIDE_BOTH)
MODELS = ("generator", "kd", "rl", "selector")


def name(layout: Layout) -> str:
    return f"{layout.data}x{layout.model}-{layout.sharding}"


def pairs() -> list[Any]:
    """Every model on every mesh; all meshes except the one that shards most are marked `slow`."""

    def pair(kind: str, layout: Layout) -> Any:
        marks = () if layout == BOTH else pytest.mark.slow
        return pytest.param(kind, layout, id=f"{kind}-{name(layout)}", marks=marks)

    return [pair(kind, layout) for kind in MODELS for layout in LAYOUTS]


DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
T5_CONFIG = replace(TIED, num_layers=1, num_decoder_layers=1)
BERT_CONFIG = replace(BERT, num_hidden_layers=1)
LONGFORMER_CONFIG = LongformerConfig(
    **{**vars(BERT_CONFIG), "max_position_embeddings": 34, "pad_token_id": 1}, attention_window=8
)
CONFIGS: dict[str, Any] = {
    "generator": T5_CONFIG,
    "kd": BERT_CONFIG,
    "rl": replace(BERT_CONFIG, **DRY),
    "selector": LONGFORMER_CONFIG,
}
ACCUMULATION = {"generator": 1, "kd": 2, "rl": 1, "selector": 1}
RETRIEVER = TrainRetriever("LaMP-2", "questions", ("feedback",), "output", score_temperature=0.7)
SELECTOR = TrainSelector("train", "validation", "output", temperature=0.5)


def make_model(config: Any, **options: Any) -> Any:
    kind = {LongformerConfig: Longformer, type(BERT): Bert}.get(type(config), T5)
    return kind(config, rngs=nnx.Rngs(0), **options)


@cache
def values(config: Any) -> Any:
    """Parameters of seed 0, biases and norms random too, in host memory."""
    random = np.random.default_rng(0)
    drawn = jax.device_get(jax.jit(lambda: nnx.state(make_model(config)))())
    return jax.tree.map(lambda leaf: leaf + 0.1 * random.standard_normal(leaf.shape, np.float32), drawn)


def build(config: Any, **options: Any) -> Any:
    """The model on the current mesh."""
    return place_values(jax.eval_shape(lambda: make_model(config, **options)), values(config))


def candidates(queries: int, length: int) -> tuple[np.ndarray, ...]:
    """A batch of questions with 0 to 4 candidates each; some devices have only padding rows."""
    random = np.random.default_rng(1)
    tokens = np.full((ROWS, queries + 4, length), NO_TOKEN, np.int32)
    rewards, mask = np.zeros((ROWS, 4), np.float32), np.zeros((ROWS, 4), bool)
    for row, count in enumerate([*random.integers(1, 5, ROWS - 3), 0, 0, 0]):
        rewards[row, :count], mask[row, :count] = random.uniform(size=count), True
        for place in range((queries + count) * bool(count)):
            size = random.integers(2, length + 1)
            tokens[row, place, :size] = random.integers(0, 48, size)
    return tokens, rewards, mask, random.uniform(size=ROWS).astype(np.float32)


def batch_of(kind: str) -> tuple[np.ndarray, ...]:
    if kind == "generator":
        return make_batch(ROWS)
    return candidates(0, 20) if kind == "selector" else candidates(1, 6)


def loss_of(kind: str, graph: nnx.GraphDef) -> Any:
    if kind == "generator":
        return generator_loss(graph)
    if kind == "selector":
        return selector_loss(graph, temperature=SELECTOR.temperature)
    return retriever_loss(
        graph, choose_objective(replace(RETRIEVER, method=kind, sampled_items=2), compatibility=CORRECT)
    )


class Learned(NamedTuple):
    losses: list[float]
    norms: list[float]
    state: Any


def learn(kind: str, sharding: str = "data", attention: str = "whole") -> Learned:
    """Three updates on the current mesh, if any, as in the training loop."""
    rules = RULES[sharding]
    graph, params = nnx.split(build(CONFIGS[kind], rules=rules, attention=attention))
    optimizer = make_optimizer(Learning(learning_rate=0.01, warmup_ratio=0.0), 2 * UPDATES)
    update = jax.jit(make_update(loss_of(kind, graph), optimizer, seed=0, accumulation=ACCUMULATION[kind], rules=rules))
    state, found = start(params, optimizer), []
    for _ in range(UPDATES):
        state, metrics = update(state, place_batch(batch_of(kind), rules=rules))
        found.append(metrics)
    return Learned(*([float(one[name]) for one in found] for name in ("loss", "gradient_norm")), state)


@cache
def learned(kind: str, layout: Layout | None) -> Learned:
    if layout is None:
        return learn(kind)
    with layout.open():
        return learn(kind, layout.sharding, layout.attention)


@pytest.mark.parametrize(("kind", "layout"), pairs())
def test_losses_agree_on_all_meshes(kind, layout):
    found, expected = learned(kind, layout), learned(kind, None)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_each_compared_update_changes_the_loss(kind):
    """Each update changes the loss by far more than the tolerance between meshes."""
    assert np.abs(np.diff(learned(kind, None).losses)).min() > 1e-3


# Mesh axis of each logical axis, by the names of the sharding options; other axes are replicated.
SPLIT = {
    "data": {"batch": "data"},
    "fsdp": {"batch": "data", "embed": "data"},
    "tensor": {"batch": "data", "heads": "model", "mlp": "model", "vocab": "model"},
    "fsdp+tensor": {"batch": "data", "embed": "data", "heads": "model", "mlp": "model", "vocab": "model"},
}
HEADS_IN, HEADS_OUT = (None, "embed", "heads", None), (None, "heads", None, "embed")
MLP_IN, MLP_OUT = (None, "embed", "mlp"), (None, "mlp", "embed")
T5_AXES = {
    "embedding": ("vocab", "embed"),
    "head": ("vocab", "embed"),
    **dict.fromkeys(("encoder_positions.table", "decoder_positions.table"), (None, "heads")),
    **{
        f"{part}.{one}": HEADS_OUT if one == "output" else HEADS_IN
        for part in ("encoder.attention", "decoder.attention", "decoder.cross")
        for one in ("query", "key", "value", "output")
    },
    **{f"{part}.mlp.{one}": MLP_IN for part in ("encoder", "decoder") for one in ("inner", "gate")},
    **{f"{part}.mlp.outer": MLP_OUT for part in ("encoder", "decoder")},
}
BERT_AXES = {
    "words": ("vocab", "embed"),
    "positions": (None, "embed"),
    "types": (None, "embed"),
    **{f"layers.{one}": HEADS_IN for one in ("query", "key", "value")},
    **{f"layers.{one}_bias": (None, "heads", None) for one in ("query", "key", "value")},
    "layers.output": HEADS_OUT,
    "layers.inner": MLP_IN,
    "layers.inner_bias": (None, "mlp"),
    "layers.outer": MLP_OUT,
}
LONGFORMER_AXES = {
    **BERT_AXES,
    **{f"layers.{one}_first": HEADS_IN for one in ("query", "key", "value")},
    **{f"layers.{one}_first_bias": (None, "heads", None) for one in ("query", "key", "value")},
    "pooler": ("embed", None),
    "head": ("embed", None),
}
AXES = {"generator": T5_AXES, "kd": BERT_AXES, "rl": BERT_AXES, "selector": LONGFORMER_AXES}
"""Logical axes of the parameters that can be sharded; norms and biases of the hidden axis are replicated."""


def split(axes: Any, sharding: str) -> P:
    return P(*(SPLIT[sharding].get(axis) for axis in axes))


def specs(tree: Any) -> dict[str, P]:
    """The partition of every array of parameters, or of one of their moments, by name."""
    return {".".join(path): jax.tree.leaves(leaf)[0].sharding.spec for path, leaf in nnx.to_flat_state(tree)}


def assert_sharded_by_the_rules(tree: Any, kind: str, sharding: str) -> None:
    found = specs(tree)
    complete = {one for one in found if one not in AXES[kind]}
    assert all("norm" in one or "bias" in one for one in complete)
    assert found == {one: split(AXES[kind].get(one, (None,) * len(spec)), sharding) for one, spec in found.items()}


def moments(state: Any) -> tuple[Any, Any]:
    (adam,) = (one for one in state.optimizer if hasattr(one, "mu"))
    return adam.mu, adam.nu


@pytest.mark.parametrize(("kind", "layout"), pairs())
def test_parameters_and_optimizer_state_are_sharded_by_the_rules(kind, layout):
    """Also after updates, which must not change the sharding of an array."""
    state = learned(kind, layout).state
    for tree in (state.params, *moments(state)):
        assert_sharded_by_the_rules(tree, kind, layout.sharding)


@pytest.mark.parametrize("sharding", SPLIT)
@pytest.mark.parametrize(("kind", "config"), [("generator", GATED), ("kd", BERT), ("selector", LONGFORMER_CONFIG)])
def test_a_new_model_is_sharded_by_the_rules(kind, config, sharding):
    """Each parameter of the table exists, including the gate and the untied head."""
    with jax.set_mesh(make_mesh(4, 2)):
        params = jax.eval_shape(lambda: nnx.state(make_model(config, rules=RULES[sharding])))
    assert AXES[kind].keys() <= specs(params).keys()
    assert_sharded_by_the_rules(params, kind, sharding)


def first_layer(stack: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], stack)


def t5_activations(model: T5, source: jax.Array, target: jax.Array) -> dict[str, jax.Array]:
    encoded, layer, cross = model.encode(source), first_layer(model.encoder), model.read_source(source)
    first, cache = model.start(cross, hypotheses=2, max_length=4)
    stepped, filled = model.step(first, jax.numpy.int32(0), cache, cross)
    return {
        "encoded": encoded,
        "heads": layer.attention.queries(encoded),
        "mixed": layer.attention.mix(layer.attention.queries(encoded)),
        "narrow": layer.mlp(encoded, rate=0.0, key=None),
        "logits": model.target_logits(source, target),
        "cached": filled.layers[0][0],
        "read": jax.numpy.stack([*cross.values]),
        "next": stepped,
    }


def bert_activations(model: Bert, tokens: jax.Array) -> dict[str, jax.Array]:
    rows = tokens.reshape(-1, tokens.shape[-1], out_sharding=P("data", None))
    encoded, layer = model(rows), first_layer(model.layers)
    scores = score_texts(model, tokens) if isinstance(model, Longformer) else score_candidates(model, tokens)
    return {"encoded": encoded, "heads": layer.heads(encoded, layer.query, layer.query_bias), "scores": scores}


ACTIVATIONS = {
    "encoded": ("batch", None, None),
    "heads": ("batch", None, "heads", None),
    "mixed": ("batch", None, None),
    "narrow": ("batch", None, None),
    "logits": ("batch", None, "vocab"),
    "cached": (None, "batch", "heads", None, None),
    "read": (None, "batch", "heads", None, None),
    "next": ("batch", None, "vocab"),
    "scores": ("batch", None),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
@pytest.mark.parametrize("kind", ["generator", "kd", "selector"])
def test_activations_are_sharded_by_the_rules(kind, layout):
    found = {}
    with layout.open():
        model = build(CONFIGS[kind], rules=RULES[layout.sharding], attention=layout.attention)
        batch = place_batch(batch_of(kind), rules=RULES[layout.sharding])

        def look(model, *batch):
            run = t5_activations if kind == "generator" else bert_activations
            found.update({one: jax.typeof(x).sharding.spec for one, x in run(model, *batch).items()})

        jax.jit(look).trace(model, *(batch if kind == "generator" else batch[:1]))
    assert {"encoded", "heads"} < found.keys()
    assert found == {one: split(ACTIVATIONS[one], layout.sharding) for one in found}


@pytest.mark.parametrize(
    ("config", "axis", "field"),
    [
        (GATED, "embed", "d_model"),
        (GATED, "heads", "num_heads"),
        (GATED, "mlp", "d_ff"),
        (GATED, "vocab", "vocab_size"),
        (LONGFORMER_CONFIG, "embed", "hidden_size"),
        (LONGFORMER_CONFIG, "heads", "num_attention_heads"),
        (LONGFORMER_CONFIG, "mlp", "intermediate_size"),
        (LONGFORMER_CONFIG, "vocab", "vocab_size"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_a_size_that_does_not_divide_is_an_error(config, axis, field):
    """It is never replicated instead. The tests of BERT check its sizes."""
    with (
        jax.set_mesh(make_mesh(1, 8)),
        pytest.raises(LampError, match=f"{field} 12 does not divide over 8 model shards; use 8 or 16, or another mesh"),
    ):
        make_model(replace(config, **{field: 12}), rules=Rules(**{axis: "model"}))


@pytest.mark.parametrize("kind", ["generator", "kd", "selector"])
def test_a_batch_that_does_not_divide_is_an_error(kind):
    rules = RULES["fsdp"]
    with (
        jax.set_mesh(make_mesh(8, 1)),
        pytest.raises(LampError, match="batch 12 does not divide over 8 data shards; use 8 or 16, or another mesh"),
    ):
        place_batch(tuple(array[:12] for array in batch_of(kind)), rules=rules)


def test_a_microbatch_that_does_not_divide_is_an_error():
    """A batch of 16 in four microbatches has four rows for eight devices."""
    rules = RULES["data"]
    with jax.set_mesh(make_mesh(8, 1)):
        graph, params = nnx.split(build(T5_CONFIG, rules=rules))
        optimizer = make_optimizer(Learning(), UPDATES)
        update = make_update(generator_loss(graph), optimizer, seed=0, accumulation=4, rules=rules)
        state, batch = jax.eval_shape(lambda: start(params, optimizer)), place_batch(batch_of("generator"))
        with pytest.raises(LampError, match=r"4 does not divide over 8 data shards; use"):
            update.trace(state, batch)


SPEAKER = replace(GATED, num_layers=1, num_decoder_layers=1)
LABELS = np.array([[5, 1, 0], [7, 8, 1], [9, 1, 0]], np.int32)
DECODERS = {
    "beam": Answering("beam", num_beams=2, generation_max_length=6),
    "greedy": Answering("greedy", generation_max_length=6),
    "labels": Answering("labels"),
}


@cache
def decoded(layout: Layout | None) -> dict[str, np.ndarray]:
    """Results of all ways of decoding for the batch's prompts, with this mesh and sharding."""
    if layout is None:
        return decode("data", "whole")
    with layout.open():
        return decode(layout.sharding, layout.attention)


def decode(sharding: str, attention: str) -> dict[str, np.ndarray]:
    rules = RULES[sharding]
    graph, params = nnx.split(build(SPEAKER, rules=rules, attention=attention))
    decoders = {
        one: make_decoder(graph, answering, LABELS if one == "labels" else None) for one, answering in DECODERS.items()
    }
    together = jax.jit(lambda params, source: {one: decoder(params, source) for one, decoder in decoders.items()})
    return jax.device_get(together(params, place_batch(make_batch(ROWS)[0], rules=rules)))


@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_answers_agree_on_all_meshes(layout):
    found, expected = decoded(layout), decoded(None)
    for one in ("beam", "greedy"):
        np.testing.assert_array_equal(found[one], expected[one])
    np.testing.assert_allclose(found["labels"], expected["labels"], atol=1e-4)
    np.testing.assert_array_equal(found["labels"].argmax(axis=1), expected["labels"].argmax(axis=1))


def test_the_prompts_have_different_answers():
    """Otherwise exchanged rows could not be detected."""
    found = decoded(None)
    assert min(len({tuple(row) for row in rows}) for rows in found.values()) > ROWS // 2
