"""Generator of another family, a recurrent decoder-only model: decoding, scoring, training and adapters.

The oracle is the same model written as a loop in numpy.
"""

import itertools
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lamp_jax.config import Answering, Lora
from lamp_jax.decoding.answers import make_decoder
from lamp_jax.decoding.beam import beam_search
from lamp_jax.decoding.generation import Generation, read_generation
from lamp_jax.decoding.greedy import greedy_search
from lamp_jax.decoding.labels import mean_log_probability, score_labels
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import NO_TOKEN, pad_rows
from lamp_jax.models.families import (
    FAMILIES,
    Family,
    check_generator_tokenizer,
    fingerprint_generator,
    load_generator,
    new_generator,
    published_configs,
    read_generator_config,
    save_generator,
)
from lamp_jax.models.generator import Generator
from lamp_jax.models.hf_names import Place
from lamp_jax.models.layers import LayerLoop, look_up, normal, project, scan_layers
from lamp_jax.models.lora import adapter_shapes, attach
from lamp_jax.models.peft import read_form, read_peft, write_peft
from lamp_jax.models.tensors import open_checkpoint
from lamp_jax.models.weights import read_config
from lamp_jax.sharding import DATA_PARALLEL, Rules
from lamp_jax.steps.generator import generator_loss

PAD, END = 3, 1
PROMPTS = [[2, 0, 2], [0], [2, 2, 0, 0, 2], [0, 2]]
SOURCES = pad_rows(PROMPTS, 4, 5)
LABELS = [[2, 0, END], [END], [0, 0, 2, END]]


@dataclass(frozen=True)
class ToyConfig:
    """A config in which padding is the last token id and a prompt's last token starts its answer."""

    vocab_size: int = 4
    width: int = 6
    layers: int = 2
    pad_token_id: int = PAD
    eos_token_id: int = END

    model_type: ClassVar[str] = "toy"
    decoder_start_token_id: ClassVar[None] = None

    @classmethod
    def from_hf(cls, values, *, source):
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def to_hf(self):
        return asdict(self) | {"model_type": self.model_type}


class Cells(nnx.Module):
    """Of every layer: state -> tanh(x + state W)."""

    def __init__(self, config: ToyConfig, *, rngs: nnx.Rngs, rules: Rules):
        shape = (config.layers, config.width, config.width)
        self.mix = normal(rngs, shape, deviation=0.7, rules=rules, axes=(None, "embed", None))
        self.rules = rules

    def __call__(self, x: jax.Array, state: jax.Array) -> jax.Array:
        return jnp.tanh(x + project("btd,df->btf", state[:, None], self.mix, self.rules)[:, 0])


class Toy(nnx.Module):
    """Reads tokens one by one into a state [L, B, D], from whose last layer the next token is predicted."""

    def __init__(
        self,
        config: ToyConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        remat: str = "none",
        attention: str = "whole",
        rules: Rules = DATA_PARALLEL,
    ):
        self.config, self.rules, self.dtype = config, rules, jnp.dtype(dtype)
        self.loop: LayerLoop = "scanned"
        shape, axes = (config.vocab_size, config.width), ("vocab", "embed")
        self.embedding = normal(rngs, shape, deviation=1.0, rules=rules, axes=axes)
        self.cells = Cells(config, rngs=rngs, rules=rules)
        self.head = normal(rngs, shape, deviation=1.5, rules=rules, axes=axes)

    @property
    def depth(self) -> int:
        return self.config.layers

    def source_mask(self, tokens: jax.Array) -> jax.Array:
        return (tokens != self.config.pad_token_id) & (tokens >= 0)

    def target_logits(self, tokens: jax.Array, target: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return self.logits(self.read_target(target, self.read_source(tokens)))

    def read_source(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The state after all tokens of a prompt except the last, and the last token."""
        before = jnp.sum(self.source_mask(tokens), axis=1, keepdims=True) - 1
        nothing = jnp.zeros((self.config.layers, len(tokens), self.config.width))
        state, _ = self._read(tokens, jnp.arange(tokens.shape[1]) < before, nothing)
        return state, jnp.take_along_axis(tokens, before, axis=1)[:, 0]

    def read_target(self, target: jax.Array, source: tuple[jax.Array, jax.Array]) -> jax.Array:
        state, last = source
        read = jnp.concatenate([last[:, None], target[:, :-1]], axis=1)
        return self._read(read, jnp.ones_like(read, bool), state)[1]

    def logits(self, x: jax.Array) -> jax.Array:
        return jnp.einsum("...d,vd->...v", x, self.head[...], precision="highest")

    def answer_context(self, tokens: jax.Array) -> jax.Array:
        mask = self.source_mask(tokens)
        order = jnp.argsort(mask, axis=1, stable=True)
        return jnp.take_along_axis(jnp.where(mask, tokens, NO_TOKEN), order, axis=1)

    def for_steps(self) -> "Toy":
        return self

    def start(
        self, source: tuple[jax.Array, jax.Array], *, hypotheses: int, max_length: int
    ) -> tuple[jax.Array, jax.Array]:
        state, last = source
        return jnp.repeat(last[:, None], hypotheses, axis=1), jnp.repeat(state[None], hypotheses, axis=0)

    def step(
        self, tokens: jax.Array, position: jax.Array, cache: jax.Array, source: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Of every hypothesis, whose states are [N, L, B, D]."""
        return jax.vmap(self._step, in_axes=(1, 0), out_axes=(1, 0))(tokens, cache)

    def choose(self, cache: jax.Array, parents: jax.Array) -> jax.Array:
        return jax.vmap(lambda row, chosen: row[chosen], in_axes=(2, 0), out_axes=2)(cache, parents)

    def _step(self, token: jax.Array, cache: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = look_up(self.embedding, token[:, None], self.rules, dtype=self.dtype)[:, 0]

        def layer(x, xs):
            cell, state = xs
            state = cell(x, state)
            return state, state

        x, cache = scan_layers(layer, x, (self.cells, cache), remat="none", loop=self.loop)
        return self.logits(x), cache

    def _read(self, tokens: jax.Array, counts: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The state after the unmasked tokens [B, T], and the last layer's state after each token [B, T, D]."""

        def read(state, xs):
            token, counts = xs
            _, new = self._step(jnp.maximum(token, 0), state)
            state = jnp.where(counts[:, None], new, state)
            return state, state[-1]

        state, hidden = jax.lax.scan(read, state, (tokens.T, counts.T))
        return state, jnp.swapaxes(hidden, 0, 1)


def toy_places(config: ToyConfig) -> dict[str, Place]:
    layers = {f"layers.{layer}.mix.weight": Place(("cells", "mix"), layer, 1) for layer in range(config.layers)}
    return {"embed.weight": Place(("embedding",)), "head.weight": Place(("head",)), **layers}


def open_toy(directory: Path):
    config = read_config(directory, ToyConfig)
    return config, open_checkpoint(directory), toy_places(config)


@pytest.fixture(autouse=True)
def family(monkeypatch):
    toy = Family(
        config=ToyConfig,
        model=Toy,
        places=toy_places,
        read_config=lambda directory: read_config(directory, ToyConfig),
        open=open_toy,
        peft_task="CAUSAL_LM",
        no_projections=("embed", "head"),
        sizes={"toy-large": ToyConfig(width=60)},
    )
    monkeypatch.setitem(FAMILIES, "toy", toy)


@pytest.fixture
def model() -> Generator:
    return new_generator(ToyConfig(), seed=0)


class Oracle:
    """The model with these parameters, evaluated one token at a time in numpy."""

    def __init__(self, model: Any, addition: Any = 0.0):
        self.embedding, self.head = np.asarray(model.embedding[...]), np.asarray(model.head[...])
        self.mix = np.asarray(model.cells.mix[...]) + addition

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Logits [V] of the token after these."""
        states = np.zeros(self.mix.shape[:2])
        for token in tokens:
            x = self.embedding[token]
            for layer, matrix in enumerate(self.mix):
                x = states[layer] = np.tanh(x + states[layer] @ matrix)
        return self.head @ states[-1]

    def log_p(self, tokens: list[int]) -> np.ndarray:
        scores = self.logits(tokens)
        return scores - np.log(np.exp(scores).sum())

    def score(self, prompt: list[int], answer: list[int]) -> float:
        return sum(self.log_p([*prompt, *answer[:place]])[token] for place, token in enumerate(answer))

    def search(self, prompt: list[int], length: int, change=lambda scores, tokens: scores) -> list[int]:
        answer: list[int] = []
        while len(answer) < length and END not in answer:
            tokens = [*prompt, *answer]
            answer.append(int(np.argmax(change(self.logits(tokens), tokens))))
        return answer


def trimmed(row: np.ndarray) -> list[int]:
    tokens = row.tolist()
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


def test_greedy_search_takes_the_most_probable_token(model):
    found = np.asarray(jax.jit(lambda model: greedy_search(model, SOURCES, max_new_tokens=6))(model))
    oracle = Oracle(model)
    assert [trimmed(row) for row in found] == [oracle.search(prompt, 6) for prompt in PROMPTS]
    assert len({tuple(row) for row in found.tolist()}) > 1  # answers depend on the prompt


def test_a_wide_beam_search_is_exhaustive(model):
    beams = jax.jit(lambda model: beam_search(model, SOURCES, num_beams=27, max_new_tokens=3, length_penalty=0.0))(
        model
    )
    others = [token for token in range(4) if token != END]
    answers = [[*body, END] for size in range(3) for body in itertools.product(others, repeat=size)]
    answers += [list(body) for body in itertools.product(others, repeat=3)]
    oracle = Oracle(model)
    for row, prompt in enumerate(PROMPTS):
        known = {tuple(answer): oracle.score(prompt, answer) for answer in answers}
        found = [tuple(trimmed(tokens)) for tokens in np.asarray(beams.tokens)[row]]
        assert len(set(found)) == 27
        np.testing.assert_allclose(beams.scores[row], [known[answer] for answer in found], rtol=1e-4)
        np.testing.assert_allclose(beams.scores[row], sorted(known.values())[:-28:-1], rtol=1e-4)


def test_labels_have_their_log_probabilities(model):
    labels, oracle = pad_rows(LABELS, 3, 5), Oracle(model)
    expected = [[oracle.score(prompt, label) for label in LABELS] for prompt in PROMPTS]
    found = jax.jit(lambda model: score_labels(model, SOURCES, jnp.asarray(labels)))(model)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    means = jax.jit(lambda model: mean_log_probability(model, SOURCES[:3], jnp.asarray(labels)))(model)
    np.testing.assert_allclose(means, [expected[one][one] / len(LABELS[one]) for one in range(3)], rtol=1e-4)


def change_scores(scores: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Scores as changed by transformers with a repetition penalty of 2 and no repeated n-gram of 2 tokens."""
    scores = np.where(np.isin(np.arange(4), tokens), np.where(scores < 0, scores * 2, scores / 2), scores)
    followed = [after for before, after in itertools.pairwise(tokens) if before == tokens[-1]]
    return np.where(np.isin(np.arange(4), followed), -np.inf, scores)


def test_generation_settings_count_the_prompt(model):
    generation = Generation(repetition_penalty=2.0, no_repeat_ngram_size=2)
    graph, params = nnx.split(model)
    decode = make_decoder(graph, Answering("greedy", generation_max_length=6), None, generation=generation)
    found = np.asarray(decode(params, jnp.asarray(SOURCES)))
    oracle = Oracle(model)
    expected = [oracle.search(prompt, 5, change_scores) for prompt in PROMPTS]
    assert [trimmed(row[row != NO_TOKEN]) for row in found] == expected
    assert expected != [oracle.search(prompt, 5) for prompt in PROMPTS]


def test_training_sums_the_cross_entropy_of_answers(model):
    graph, params = nnx.split(model)
    batch = (jnp.asarray(SOURCES[:3]), jnp.asarray(pad_rows(LABELS, 3, 5)))

    def loss(params):
        return generator_loss(graph)(params, batch, jax.random.key(0))

    (total, count), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    oracle = Oracle(model)
    expected = -sum(oracle.score(prompt, label) for prompt, label in zip(PROMPTS, LABELS, strict=False))
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    assert count == sum(map(len, LABELS))
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_each_row_has_its_own_adapter(model, tmp_path):
    lora = Lora(rank=2, alpha=4.0, targets=("mix",), dropout=0.0)
    shapes = adapter_shapes(model, lora)
    assert shapes == {"cells.mix.down": (2, 6, 2), "cells.mix.up": (2, 2, 6)}
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(4, *shape)).astype(np.float32) for name, shape in shapes.items()}
    graph, params = nnx.split(model)

    @jax.jit
    def score(params, rows):
        return score_labels(attach(nnx.merge(graph, params), rows, lora), SOURCES, jnp.asarray(pad_rows(LABELS, 3, 5)))

    additions = 2 * rows["cells.mix.down"] @ rows["cells.mix.up"]
    expected = [
        [Oracle(model, additions[row]).score(prompt, label) for label in LABELS] for row, prompt in enumerate(PROMPTS)
    ]
    np.testing.assert_allclose(score(params, rows), expected, rtol=1e-3)

    one = {name: values[0] for name, values in rows.items()}
    write_peft(tmp_path, one, model.config, lora, base="toy")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert read_form(tmp_path, model.config) == lora
    jax.tree.map(np.testing.assert_array_equal, read_peft(tmp_path, model.config, shapes), one)


def test_directories_are_read_by_their_model_type(model, tmp_path):
    save_generator(model, tmp_path)
    found = load_generator(tmp_path)
    assert isinstance(found, Toy)
    assert found.config == read_generator_config(tmp_path) == model.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(found), nnx.state(model))
    save_generator(new_generator(model.config, seed=1), tmp_path / "other")
    assert fingerprint_generator(tmp_path) != fingerprint_generator(tmp_path / "other")
    assert published_configs().keys() > {"toy-large", "flan-t5-base"}

    class Tokenizer:
        def get_vocab(self):
            return {"a": 4}

    with pytest.raises(LampError, match="the tokenizer has 1 ids up to 4, and the embedding has 4 rows"):
        check_generator_tokenizer(Tokenizer(), tmp_path)


def test_a_start_token_in_the_files_of_a_decoder_only_model_is_ignored(model, tmp_path):
    save_generator(model, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"bos_token_id": 2, "repetition_penalty": 1.5}))
    assert read_generation(tmp_path, Answering("greedy")).applied == {"repetition_penalty": 1.5}


@pytest.mark.parametrize("kind", ["gpt2", None, ["t5"]])
def test_an_unknown_model_type_is_an_error_that_names_file_type_and_families(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    for read in (load_generator, read_generator_config, fingerprint_generator):
        with pytest.raises(LampError) as error:
            read(tmp_path)
        assert str(error.value) == (
            f"{tmp_path / 'config.json'}: model_type {kind!r} is not supported, only t5, toy; "
            "give such a model, for example google/flan-t5-base"
        )
