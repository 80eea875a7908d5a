"""Padding, start and end tokens: those of the model's config, with any ids."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lamp_jax.config import Answering, Lora
from lamp_jax.decoding.answers import make_decoder, without_padding
from lamp_jax.decoding.beam import beam_search
from lamp_jax.decoding.greedy import greedy_search
from lamp_jax.decoding.labels import mean_log_probability, score_labels
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import NO_TOKEN, pad_rows
from lamp_jax.models.lora import adapter_shapes
from lamp_jax.models.t5 import T5
from lamp_jax.models.t5_config import T5Config
from lamp_jax.steps.adapters import _row_losses
from lamp_jax.steps.generator import generator_loss
from tests.models.tiny import GATED, TIED, build, place_values

MADLAD = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
ELSEWHERE = {"pad_token_id": 31, "eos_token_id": 0, "decoder_start_token_id": 47}


def permuted(config: T5Config, ids: dict[str, int], seed: int = 0) -> tuple[T5, T5, np.ndarray]:
    """A model, the same model with a permuted vocabulary, and the new id of each token."""
    config = replace(config, dropout_rate=0.0)
    model = build(config)
    rest = np.random.default_rng(seed).permutation([one for one in range(config.vocab_size) if one not in ids.values()])
    start = config.pad_token_id if ids["pad_token_id"] == ids["decoder_start_token_id"] else 3
    config = replace(config, decoder_start_token_id=start)
    model = place_values(build(config), nnx.state(model))
    new = np.full(config.vocab_size, -1)
    for name, number in ids.items():
        new[getattr(config, name)] = number
    new[new < 0] = rest
    other = build(replace(config, **ids))
    flat = nnx.to_flat_state(nnx.state(model))
    order = np.argsort(new)
    values = {}
    for path, leaf in flat:
        rows = leaf[...] if path[-1] != "embedding" else leaf[...][order]
        values[path] = leaf.replace(rows[..., order] if path[-1] == "head" and rows.shape[-1] == len(new) else rows)
        if path[-1] == "head" and rows.shape[0] == len(new):
            values[path] = leaf.replace(rows[order])
    return model, place_values(other, nnx.from_flat_state(values)), new


def renumbered(tokens: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.where(tokens < 0, tokens, new[tokens])


@pytest.fixture(scope="module", params=[(TIED, MADLAD), (GATED, ELSEWHERE)], ids=["as MADLAD-400", "elsewhere"])
def models(request):
    return permuted(*request.param)


def drawn(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    sources = [[*rng.integers(4, 48, size), 1] for size in rng.integers(1, 11, 6)]
    targets = [[*rng.integers(4, 48, size), 1] for size in rng.integers(1, 4, 6)]
    return pad_rows(sources, 7, 12), pad_rows(targets, 7, 5)  # the last row is batch padding


def test_answers_and_labels_are_the_same(models):
    model, other, new = models
    source, targets = drawn()
    for search in (
        functools.partial(greedy_search, max_new_tokens=6),
        lambda model, tokens: beam_search(model, tokens, num_beams=3, max_new_tokens=6).tokens[:, 0],
    ):
        run = jax.jit(lambda model, tokens, search=search: without_padding(search(model, tokens), model.config))
        found = np.asarray(run(other, jnp.asarray(renumbered(source, new))))
        np.testing.assert_array_equal(found, renumbered(np.asarray(run(model, jnp.asarray(source))), new))
    labels = targets[:4]
    for measure, rows in ((score_labels, labels), (mean_log_probability, targets)):
        measure = jax.jit(measure)
        ours = measure(model, jnp.asarray(source), jnp.asarray(rows))
        theirs = measure(other, jnp.asarray(renumbered(source, new)), jnp.asarray(renumbered(rows, new)))
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5)


def test_losses_and_gradients_are_the_same(models):
    model, other, new = models
    batch = drawn(2)
    renamed = tuple(renumbered(rows, new) for rows in batch)

    def measure(model, batch):
        graph, params = nnx.split(model)
        loss = generator_loss(graph)

        def mean(params):
            total, count = loss(params, tuple(map(jnp.asarray, batch)), jax.random.key(0))
            return total / count, count

        (value, count), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
        return value, count, optax.tree.norm(gradient)

    ours, theirs = measure(model, batch), measure(other, renamed)
    assert ours[1] == theirs[1] == (batch[1] != NO_TOKEN).sum()
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)


def test_losses_of_adapters_are_the_same(models):
    model, other, new = models
    source, target = drawn(3)
    lora = Lora(rank=2, targets=("q", "v"), dropout=0.0)
    rng = np.random.default_rng(4)
    shapes = adapter_shapes(model, lora)
    rows = {name: jnp.asarray(rng.normal(size=(7, *shape)), jnp.float32) for name, shape in shapes.items()}

    class Microbatch:
        pass

    @jax.jit
    def losses(model, source, target):
        part = Microbatch()
        part.source, part.target = source, target
        return _row_losses(model, rows, lora, part, jax.random.key(0))

    ours = losses(model, source, target)
    assert ours[-1] == 0
    np.testing.assert_allclose(losses(other, renumbered(source, new), renumbered(target, new)), ours, rtol=1e-5)


def test_any_of_several_end_tokens_ends_an_answer():
    model = build(replace(GATED, dropout_rate=0.0))
    source = jnp.asarray(drawn(5)[0][:6])
    graph, params = nnx.split(model)
    plain = np.asarray(make_decoder(graph, Answering(decode="greedy", generation_max_length=9), None)(params, source))
    second = int(plain[0, 2])  # the third token of the first answer is also an end token
    several = build(replace(model.config, eos_token_id=(1, second)))
    graph, _ = nnx.split(several)
    found = np.asarray(make_decoder(graph, Answering(decode="greedy", generation_max_length=9), None)(params, source))
    for before, now in zip(plain, found, strict=True):
        ends = np.flatnonzero(np.isin(before, (1, second)))
        kept = before[: ends[0] + 1] if len(ends) else before
        assert now[now != NO_TOKEN].tolist() == kept[kept != NO_TOKEN].tolist()
    assert (found[0] != NO_TOKEN).sum() <= 3


def test_token_ids_are_numbers_or_lists_of_one_number_except_end_tokens():
    def read(**values):
        return T5Config.from_hf({"model_type": "t5", **values}, source="config.json")

    assert read(decoder_start_token_id=[3]).decoder_start_token_id == 3
    assert read(eos_token_id=[4, 5]).eos_token_id == (4, 5)
    assert read(eos_token_id=[4]).eos_token_id == 4
    for values in ({"pad_token_id": [1, 2]}, {"decoder_start_token_id": [0, 1]}, {"eos_token_id": []}):
        with pytest.raises(LampError, match=next(iter(values))):
            read(**values)
    for wrong in ("1", True, -1, 1.0, [None]):
        with pytest.raises(LampError, match=r"config\.json: pad_token_id is .*; expected a token id"):
            read(pad_token_id=wrong)
