"""RSPG selectors: inputs, scores and training of the public code, in its compatibility mode, on all goldens/rspg*."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lamp_jax.artifacts.selector import Candidate, CandidateSet, QuestionCandidates
from lamp_jax.inputs.batches import pad_rows
from lamp_jax.inputs.selector import CandidateReader, SelectorSettings, candidate_examples
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.bert import NO_TOKEN
from lamp_jax.models.hf_names import longformer_places
from lamp_jax.models.weights import hf_tensors, load_longformer
from lamp_jax.options import REFERENCE, TrainSelector
from lamp_jax.steps.selector import score_texts, selector_loss
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.metrics import main_metric
from lamp_jax.tasks.rewards import reward_of
from tests.goldens.cases import CASES

pytestmark = pytest.mark.golden

FOLDERS = {"rspg": "longformer", "rspg_w512": "longformer_w512"}
"""Folders of cases, and the models whose tokenizers made them."""
PLACES = {"body": "model.", "pooler": "model.pooler.dense", "head": "classifier"}


@functools.cache
def read_results(folder):
    path = CASES / "goldens" / folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


SINGLE = [(f, n) for f in FOLDERS for n, one in enumerate(read_results(f)) if "steps" not in one]
TRAINED = [(f, n) for f in FOLDERS for n, one in enumerate(read_results(f)) if "steps" in one]


def title(value):
    return f"rspg-{value}"


@functools.cache
def read_candidates(folder, task):
    """The questions of `data_T.json`, in which candidates have no names."""
    records = json.loads((CASES / "goldens" / folder / f"data_{task}.json").read_text(encoding="utf-8"))
    task, questions = find_task(f"LaMP-{task}"), []
    for record in records:
        # LaMP-3's labels are absolute errors in the file, and rewards in the public code's batches.
        labels = [reward_of(task, {main_metric(task): label}, record["gold"]) for label in record["labels"]]
        rows = zip(record["inputs"], record["outputs"], labels, strict=True)
        candidates = {str(number): Candidate(*row) for number, row in enumerate(rows)}
        questions.append(QuestionCandidates(record["id"], record["input"], record["gold"], candidates))
    return CandidateSet(task, "", tuple(map(str, range(6))), questions)


@functools.cache
def read_model(folder):
    return nnx.split(load_longformer(CASES / "goldens" / folder / "model", first_token="local"))


@functools.cache
def reader(folder, mode, max_length):
    settings = SelectorSettings("", "", (), mode, max_length, case="lower", cut="end", first_token="local")
    return CandidateReader(load_tokenizer(CASES / "tiny" / FOLDERS[folder]), settings)


def options(**changes):
    return TrainSelector("", "", "", compatibility=REFERENCE, **changes)


def examples(folder, entry):
    """The entry's questions as token ids."""
    mode = entry["type"].removesuffix("_train").lower()
    found = candidate_examples(read_candidates(folder, entry["task"]), reader(folder, mode, entry["max_length"]))
    return found


def batch(chosen, length):
    tokens = np.stack([pad_rows(one.documents, 6, length, pad=NO_TOKEN) for one in chosen])
    rewards = np.stack([one.rewards for one in chosen])
    return tokens, rewards, np.ones(rewards.shape, bool), np.zeros(len(chosen), np.float32)


@functools.cache
def programs(folder, temperature):
    graph, params = read_model(folder)
    loss = selector_loss(graph, temperature=temperature, compatibility=options().compatibility)

    def mean(params, rows):
        total, count = loss(params, rows, None)
        return total / count

    return params, jax.jit(jax.value_and_grad(mean)), jax.jit(lambda p, t: score_texts(nnx.merge(graph, p), t))


@pytest.mark.parametrize(("folder", "number"), SINGLE, ids=title)
def test_tokens_logits_loss_and_gradients_equal_the_public_codes(folder, number):
    entry = read_results(folder)[number]
    chosen = [examples(folder, entry)[index] for index in entry["indices"]]
    name = f"batch_{entry['task']}_{entry['type']}_{entry['max_length']}_{entry['batch']}.npz"
    with np.load(CASES / "goldens" / folder / name) as golden:
        expected = [
            ids[mask == 1].tolist() for ids, mask in zip(golden["input_ids"], golden["attention_mask"], strict=True)
        ]
        labels = golden["labels"]
    assert [row.tolist() for one in chosen for row in one.documents] == expected
    rows = batch(chosen, entry["max_length"])
    np.testing.assert_allclose(rows[1], np.reshape(labels, rows[1].shape), rtol=1e-6)
    params, differentiate, score = programs(folder, entry["temperature"])
    with jax.default_matmul_precision("highest"):
        found, gradients = differentiate(params, rows)
        logits = np.asarray(score(params, rows[0]))
    np.testing.assert_allclose(logits, entry["logits"], atol=1e-4)
    np.testing.assert_allclose(found, entry["loss"], rtol=1e-5, atol=1e-6)
    places = longformer_places(nnx.merge(*read_model(folder)).config, **PLACES)
    norms = {key: np.linalg.norm(one) for key, one in hf_tensors(gradients, places).items()}
    for key, norm in entry["grad_norms"].items():
        np.testing.assert_allclose(norms[key], norm, rtol=1e-3, atol=1e-6, err_msg=key)
    total = np.sqrt(sum(norm**2 for norm in norms.values()))
    np.testing.assert_allclose(total, entry["total_grad_norm"], rtol=1e-3)


@pytest.mark.parametrize(("folder", "number"), TRAINED, ids=title)
def test_a_short_training_equals_the_public_codes(folder, number):
    entry = read_results(folder)[number]
    rates = jnp.array([step["lr"] for step in entry["steps"]])
    optimizer = optax.chain(
        optax.clip_by_global_norm(entry["clip"]),
        optax.scale_by_adam(),
        optax.add_decayed_weights(entry["optim"]["weight_decay"]),
        optax.scale_by_learning_rate(lambda step: rates[step]),
    )
    params, differentiate, score = programs(folder, 1.0)
    state, change = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
    with jax.default_matmul_precision("highest"):
        for turn, expected in enumerate(entry["steps"]):
            chosen = [examples(folder, entry)[index] for index in entry["batches"][turn % len(entry["batches"])]]
            rows = batch(chosen, entry["max_length"])
            # Without their mean: Adam makes full steps of the head's bias, whose gradient is only rounding error.
            found, wanted = (
                one - np.mean(one, axis=1, keepdims=True) for one in (score(params, rows[0]), expected["logits"])
            )
            np.testing.assert_allclose(found, wanted, atol=1e-4)
            loss, gradient = differentiate(params, rows)
            assert float(loss) == pytest.approx(expected["loss"], rel=1e-4, abs=1e-4)
            assert float(optax.tree.norm(gradient)) == pytest.approx(expected["grad_norm"], rel=1e-2, abs=1e-5)
            updates, state = change(gradient, state, params)
            params = optax.apply_updates(params, updates)
