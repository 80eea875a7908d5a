"""ROPG: the public code's losses and gradients on the same tokens, rewards, and training runs.

`results.json` under goldens/ropg has an entry for each step (`kd`, `rl`; tokens in `batch_T_I.npz`, texts in
`batch_T_I.json`) and for each short training run (`kd_train`, `rl_train`; feedback in `scores_T.json`).
`questions_T.json` has the questions of the runs by number, where the files of `synth` are incomplete. Steps have
separate maximum lengths of query and document (`query_max`, `doc_max` of their texts); runs without them have the same
maximum length for both.
"""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lamp_jax.inputs.batches import pad_rows
from lamp_jax.inputs.reader import TextReader
from lamp_jax.inputs.retriever import ScoredQuestion, make_candidates, read_scored_questions
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.losses import reinforce_loss
from lamp_jax.models.bert import NO_TOKEN
from lamp_jax.models.hf_names import bert_places
from lamp_jax.models.weights import hf_tensors, load_bert
from lamp_jax.options import REFERENCE, Encoding, TrainRetriever
from lamp_jax.steps.retriever import choose_objective, score_candidates
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.rewards import reward_of
from lamp_jax.training.retriever import choose_baselines, choose_form, find_start
from tests.goldens.cases import CASES, order_profile, read_json, read_outputs, read_questions, read_ranking

pytestmark = pytest.mark.golden

FOLDER = CASES / "goldens" / "ropg"
RESULTS = read_json("goldens/ropg/results.json") if (FOLDER / "results.json").exists() else []
STEPS = [entry for entry in RESULTS if entry["kind"] in ("kd", "rl")]
_UNUSED: Any = None
RUNS = [entry for entry in RESULTS if entry["kind"] in ("kd_train", "rl_train")]


def label(entry):
    named = (entry.get(key) for key in ("task", "batch", "kind", "temperature", "optim", "scheduler"))
    return "-".join(["ropg", *(str(name) for name in named if name is not None)])


def options_of(entry, **changes):
    temperature = entry.get("temperature", 1.0)
    return TrainRetriever(
        task=f"LaMP-{entry['task']}",
        questions="",
        feedback=(),
        output="",
        encoder=str(CASES / "tiny" / "bert"),
        method=entry["kind"][:2],
        score_temperature=temperature,
        reward_temperature=temperature,
        compatibility=REFERENCE,
        **changes,
    )


@functools.cache
def load():
    return load_bert(CASES / "tiny" / "bert")


@functools.cache
def load_its_tokenizer():
    return load_tokenizer(CASES / "tiny" / "bert")


@functools.cache
def read_batch(entry_task, entry_batch):
    """Texts, and tokens [B, 1 + N, S] with the query first."""
    texts = read_json(f"goldens/ropg/batch_{entry_task}_{entry_batch}.json")
    with np.load(FOLDER / f"batch_{entry_task}_{entry_batch}.npz") as arrays:
        query, documents = (
            np.where(arrays[f"{name}_attention_mask"] != 0, arrays[f"{name}_input_ids"], NO_TOKEN).astype(np.int32)
            for name in ("query", "documents")
        )
    length = max(query.shape[-1], documents.shape[-1])
    query = np.pad(query, ((0, 0), (0, length - query.shape[-1])), constant_values=NO_TOKEN)
    documents = np.pad(documents, ((0, 0), (0, 0), (0, length - documents.shape[-1])), constant_values=NO_TOKEN)
    return texts, np.concatenate([query[:, None], documents], axis=1)


@functools.cache
def scoring():
    """(parameters, tokens) -> scores; and (parameters, tokens, d loss / d scores) -> d loss / d parameters."""
    graph, _ = nnx.split(load())

    def score(params, tokens):
        return score_candidates(nnx.merge(graph, params), tokens)

    def pull(params, tokens, slopes):
        return jax.vjp(lambda params: score(params, tokens), params)[1](slopes)[0]

    return jax.jit(score), jax.jit(pull)


@functools.cache
def score(task, batch):
    with jax.default_matmul_precision("highest"):
        return jax.device_get(scoring()[0](nnx.state(load()), read_batch(task, batch)[1]))


def loss_of(entry, gold, sample):
    """Scores [B, N] -> the mean loss; `gold` is the matrix of rewards, or the gains of the sampled items."""
    if entry["kind"].startswith("kd"):
        objective = choose_objective(options_of(entry), compatibility=options_of(entry).compatibility)
        return lambda scores: jnp.mean(objective(scores, gold, jnp.ones_like(gold, bool), _UNUSED, _UNUSED))
    items = jnp.array(sample)

    def loss(scores):
        rewards = jnp.zeros_like(scores).at[jnp.arange(len(items))[:, None], items].set(gold)
        return jnp.mean(reinforce_loss(scores, rewards, jnp.ones_like(scores, bool), jnp.zeros(len(items)), items))

    return loss


@pytest.mark.parametrize("entry", STEPS, ids=label)
def test_policy_loss_and_gradients_equal_the_public_codes(entry):
    scores = jnp.asarray(score(entry["task"], entry["batch"]))
    np.testing.assert_allclose(jax.nn.softmax(scores), entry["probs"], rtol=1e-4, atol=1e-5)
    loss, slopes = jax.value_and_grad(loss_of(entry, jnp.array(entry["gold"]), entry["sample_idx"]))(scores)
    assert float(loss) == pytest.approx(entry["loss"], rel=1e-5, abs=1e-5)
    with jax.default_matmul_precision("highest"):
        gradients = scoring()[1](nnx.state(load()), read_batch(entry["task"], entry["batch"])[1], slopes)
    total = float(optax.tree.norm(gradients))
    assert total == pytest.approx(entry["total_grad_norm"], rel=1e-3, abs=1e-6)
    tensors = hf_tensors(gradients, bert_places(load().config))
    assert tensors.keys() == entry["grad_norms"].keys()
    for name, norm in entry["grad_norms"].items():
        assert np.linalg.norm(tensors[name]) == pytest.approx(norm, rel=1e-3, abs=1e-6), name


def examples_of(entry, scored, **changes):
    """Examples as made by the stage, padded with empty documents."""
    options = options_of(entry, **changes)
    baselines = choose_baselines(options, scored, _UNUSED, _UNUSED)
    reader = TextReader(load_its_tokenizer(), choose_form(options, find_start(options.encoder)))
    return make_candidates(
        options, find_task(options.task), scored, reader, baselines, compatibility=options.compatibility
    )


def lengths_of(case):
    """The options for the longest query and document of a step's texts, or of a run."""
    both = case.get("max")
    return {"encoding": Encoding(query_length=case.get("query_max", both), document_length=case.get("doc_max", both))}


def test_the_two_lengths_are_those_of_the_case_or_the_public_codes_default():
    def lengths(**changes):
        options = options_of({"task": 1, "kind": "kd"}, **changes)
        settings = choose_form(options, find_start(options.encoder))
        return settings.query_length, settings.document_length

    assert lengths() == (512, 512)
    assert lengths(**lengths_of({"query_max": 64, "doc_max": 96})) == (64, 96)
    assert lengths(**lengths_of({"max": 128})) == (128, 128)


@pytest.mark.parametrize("entry", STEPS, ids=label)
def test_rewards_padding_and_tokens_equal_the_public_codes(entry):
    texts, tokens = read_batch(entry["task"], entry["batch"])
    scored = []
    for row, gold in enumerate(texts["target_txt"]):
        worth = [reward_of(find_task(f"LaMP-{entry['task']}"), one, gold) for one in texts["scores_gold"][row]]
        documents = tuple(texts["documents"][row][: len(worth)])
        scored.append(ScoredQuestion(str(row), texts["queries"][row], documents, np.array(worth, np.float32), gold))
    for row, example in enumerate(examples_of(entry, scored, profile_size=texts["ctx"], **lengths_of(texts))):
        gains = example.rewards - example.baseline
        lengths = gains if entry["sample_idx"] is None else gains[entry["sample_idx"][row]]
        np.testing.assert_allclose(lengths, entry["gold"][row], atol=1e-6)
        assert len(example.documents) == texts["ctx"]
        for text, expected in zip((example.query, *example.documents), tokens[row], strict=True):
            assert text.tolist() == expected[expected != NO_TOKEN].tolist()


def questions_of(task, numbers):
    """Questions of the train file by their numbers, with golds, profiles in BM25's order."""
    if (FOLDER / f"questions_{task}.json").exists():
        questions = read_json(f"goldens/ropg/questions_{task}.json")
        return [questions[str(number)] for number in numbers]
    questions, golds = read_questions(task, "train"), read_outputs(task, "train")
    ranking = read_ranking(task, "train", "bm25")
    chosen = [questions[number] for number in numbers]
    return [{**one, "output": golds[one["id"]], "profile": order_profile(one, ranking[one["id"]])} for one in chosen]


def read_run(entry, folder):
    """The run's batches: tokens [B, 1 + N, S] and gains [B, N], made by the stage's own functions."""
    numbers = [number for batch in entry["batches"] for number in batch]
    path = folder / "merged.json"
    path.write_text(json.dumps(questions_of(str(entry["task"]), numbers)))
    task = find_task(f"LaMP-{entry['task']}")
    given = {"profile_size": entry["ctx"], **lengths_of(entry)}
    options, feedback = options_of(entry, **given), [str(FOLDER / f"scores_{entry['task']}.json")]
    scored = read_scored_questions(options, task, str(path), feedback, compatibility=options.compatibility)
    examples = iter(examples_of(entry, scored, **given))
    longest = max(entry.get(name, 0) for name in ("max", "query_max", "doc_max"))
    for batch in entry["batches"]:
        rows = [next(examples) for _ in batch]
        tokens = [pad_rows([row.query, *row.documents], 1 + entry["ctx"], longest, pad=NO_TOKEN) for row in rows]
        yield np.stack(tokens), np.stack([row.rewards - row.baseline for row in rows]).astype(np.float32)


def optimizer_of(entry):
    """The optimizer with PyTorch's defaults. The public code gives its weight decay to AdamW only."""
    rates = jnp.array([step["lr"] for step in entry["steps"]])
    decay = optax.add_decayed_weights(entry["weight_decay"]) if entry["optim"] == "adamw" else optax.identity()
    return optax.chain(
        optax.clip_by_global_norm(entry["clip"]),
        optax.scale_by_adam(),
        decay,
        optax.scale_by_learning_rate(lambda step: rates[step]),
    )


@functools.cache
def embedding():
    return jax.jit(lambda model, tokens: model.embed(tokens))


@pytest.mark.parametrize("entry", RUNS, ids=label)
def test_a_short_training_equals_the_public_codes(entry, tmp_path):
    batches = list(read_run(entry, tmp_path))
    params, optimizer = nnx.state(load()), optimizer_of(entry)
    state, change = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
    score_all, pull = scoring()
    with jax.default_matmul_precision("highest"):
        for number, step in enumerate(entry["steps"]):
            tokens, gains = batches[number % len(batches)]
            gold = jnp.asarray(gains)
            sample = entry["sample_idx"][number] if entry["kind"] == "rl_train" else None
            if sample is not None:
                gold = jnp.take_along_axis(gold, jnp.array(sample), axis=1)
            scores = score_all(params, tokens)
            np.testing.assert_allclose(jax.nn.softmax(scores), step["probs"], rtol=1e-3, atol=1e-4)
            loss, slopes = jax.value_and_grad(loss_of(entry, gold, sample))(scores)
            assert float(loss) == pytest.approx(step["loss"], rel=1e-4, abs=1e-4)
            gradient = pull(params, tokens, slopes)
            assert float(optax.tree.norm(gradient)) == pytest.approx(step["grad_norm"], rel=1e-2, abs=1e-5)
            updates, state = change(gradient, state, params)
            params = optax.apply_updates(params, updates)
        model = nnx.merge(nnx.graphdef(load()), params)
        queries = embedding()(model, batches[0][0][:, 0])
    # Compared as vectors: Adam makes full steps of gradients near rounding error, which differ along single axes.
    expected = np.array(entry["final_query_emb"])
    assert np.linalg.norm(queries - expected) < 1e-4 * np.linalg.norm(expected)
