"""`lamp train-retriever`: a dual encoder that learns from a generator's feedback which items to rank first."""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lamp_jax.config import TrainRetriever
from lamp_jax.data.feedback import first_pairs, read_feedback
from lamp_jax.data.files import Question, read_questions
from lamp_jax.data.records import claim
from lamp_jax.encoding import Encoder, check_length, tokenize
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import read_ahead
from lamp_jax.inputs.candidates import CandidateBatch, CandidateBatches, Candidates
from lamp_jax.inputs.examples import gold_of
from lamp_jax.inputs.tokenizer import load_tokenizer, train_text_tokenizer
from lamp_jax.loop import Progress, fit
from lamp_jax.models.bert import NO_TOKEN, Bert, BertConfig
from lamp_jax.models.weights import load_bert, save_bert
from lamp_jax.retrieval.dense import RetrieverSettings, embed_all, write_settings
from lamp_jax.retrieval.sampling import permutation
from lamp_jax.retrieval.scored import best_first
from lamp_jax.retrieval.texts import documents_of, query_of
from lamp_jax.sharding import make_mesh, model_layout, place_batch
from lamp_jax.steps.retriever import choose_objective, retriever_loss
from lamp_jax.steps.update import TrainState, make_optimizer, make_update, start
from lamp_jax.tasks.catalog import Task, find_task
from lamp_jax.tasks.rewards import reward_of, worst_error

SCRATCH = "scratch"
_VOCABULARY_MULTIPLE = 64  # so that it divides over a mesh
_COLLAPSED = 0.05  # of the spread before training


@dataclasses.dataclass(frozen=True)
class Judged:
    """A question's texts as a retriever reads them, and the reward of each document."""

    id: str
    query: str
    documents: tuple[str, ...]
    rewards: np.ndarray
    gold: str


def run(options: TrainRetriever) -> None:
    task = find_task(options.task)
    _check(options)
    files = [options.questions, options.validation, *options.feedback, *options.validation_feedback]
    inputs = [name for name in files if name] + [options.encoder] * (options.encoder != SCRATCH)
    record = claim(options.output, options, inputs=inputs, directory=True)
    if record.state == "done":
        return print(f"{options.output}: already trained")
    judged = read_judged(options, task, options.questions, options.feedback)
    if options.validation:
        train, validation = judged, read_judged(options, task, options.validation, options.validation_feedback)
    else:
        train, validation = hold_out(judged, options.held_out, seed=options.seed)
    telling = [one for one in train if np.ptp(one.rewards) > 0] if options.compatibility.ropg == "masked" else train
    if not telling:
        raise LampError(f"{options.questions}: for every question all rewards are equal; nothing can be learned")
    record.begin()
    with jax.set_mesh(make_mesh(options.devices.data_parallel, options.devices.model_parallel)):
        before, progress = train_retriever(options, task, telling, validation)
    facts = {"questions": len(telling), "skipped_equal_rewards": len(train) - len(telling), "before": before}
    record.finish(**facts, **dataclasses.asdict(progress))
    print(
        f"{options.output}: learned from {len(telling)} questions ({len(train) - len(telling)} with equal rewards for "
        f"all items were skipped); mean reward of the first {options.reward_at} items on {len(validation)} held-out "
        f"questions: {before:.4f} before, {progress.best:.4f} at step {progress.best_step}"
    )


def read_judged(options: TrainRetriever, task: Task, path: str, feedback: Sequence[str]) -> list[Judged]:
    """The questions of a file with the rewards of their first items. LampError for what is missing or no number."""
    questions = read_questions(path, task=task)
    metrics = read_feedback(feedback, task, questions, profile_size=options.profile_size)
    return [_judge(options, task, question, metrics[question.id], path) for question in questions if question.profile]


def _judge(options: TrainRetriever, task: Task, question: Question, metrics: Sequence[Any], path: str) -> Judged:
    gold = gold_of(question, path)
    try:
        rewards = [reward_of(task, one, gold, kind=options.reward) for one in metrics]
        documents = documents_of(question, task, use_date=options.use_date)
        query = query_of(question, task, compatibility=options.compatibility)
    except LampError as error:
        remedy = "; train without dates: --no-use-date" if "'date'" in str(error) else ""
        raise LampError(f"{path}, question {question.id!r}: {error}{remedy}") from error
    first = tuple(documents[pair.rank] for pair in first_pairs([question], options.profile_size))
    return Judged(question.id, query, first, np.array(rewards, np.float32), gold)


def hold_out(judged: Sequence[Judged], share: float, *, seed: int) -> tuple[list[Judged], list[Judged]]:
    """The questions without a share of them, and these; which, is drawn from the seed."""
    count = round(share * len(judged))
    if not 0 < count < len(judged):
        raise LampError(f"--held-out {share} of {len(judged)} questions leaves none on one side; give --validation")
    order = permutation(len(judged), seed=seed, key="held out")
    held = set(order[:count])
    return [one for place, one in enumerate(judged) if place not in held], [judged[place] for place in sorted(held)]


def train_retriever(
    options: TrainRetriever, task: Task, train: Sequence[Judged], validation: Sequence[Judged]
) -> tuple[float, Progress]:
    """Trains on `train`, resuming what stands in `options.output`; the best encoder is written there.

    Returns the validation score before training and how the training went.
    """
    output = Path(options.output)
    tokenizer = prepare_tokenizer(options, [*train, *validation])
    model = prepare_model(options, len(tokenizer))
    check_length(model.config, options.max_length, options.encoder)
    graph, params = nnx.split(model)
    encoder = Encoder(graph, tokenizer, max_length=options.max_length, batch_size=options.batch_size)
    evaluate = _evaluation(options, validation, encoder)
    found = evaluate(params)
    before = found["validation"]
    examples = _examples(options, task, train, tokenizer, encoder, params)
    batches = CandidateBatches(
        examples, batch_size=options.batch_size, max_length=options.max_length, pad=NO_TOKEN, seed=options.seed
    )
    total_steps = math.ceil(options.epochs * len(batches))
    optimizer = make_optimizer(
        learning_rate=options.learning_rate,
        total_steps=total_steps,
        warmup_ratio=options.warmup_ratio,
        weight_decay=options.weight_decay,
        clip=options.clip,
        step_size=options.step_size,
    )
    loss, rules = retriever_loss(graph, choose_objective(options)), model.rules
    update = make_update(loss, optimizer, seed=options.seed, accumulation=options.accumulation, rules=rules)

    def update_on_devices(state: TrainState, batch: CandidateBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        return update(state, place_batch(tuple(batch), rules=rules))

    def keep_best(state: TrainState) -> None:
        save_bert(nnx.merge(graph, state.params), output)
        write_settings(output, RetrieverSettings(options.use_date))

    def watch(state: TrainState) -> dict[str, float]:
        now = evaluate(state.params)
        for name in ("query_spread", "document_spread"):
            if now[name] < _COLLAPSED * found[name]:
                print(f"{output}: {name} fell from {found[name]:.3g} to {now[name]:.3g}: the vectors are all alike; "
                      "give a lower --learning-rate", file=sys.stderr)  # fmt: skip
        return now

    _, progress = fit(
        output,
        start(params, optimizer),
        update=update_on_devices,
        batches=lambda done: read_ahead(batches, done, total_steps),
        total_steps=total_steps,
        evaluate_every=max(1, round(options.evaluate_every * len(batches))),
        evaluate=watch,
        higher_is_better=True,
        keep_best=keep_best,
        patience=options.patience,
    )
    return before, progress


def _check(options: TrainRetriever) -> None:
    if options.validation and not options.validation_feedback:
        raise LampError("--validation: give its feedback too, --validation-feedback")
    if options.accumulation < 1 or options.batch_size % options.accumulation:
        raise LampError(f"--batch-size {options.batch_size} does not divide into --accumulation {options.accumulation}")
    for name in ("score_temperature", "reward_temperature"):
        if not getattr(options, name) > 0:
            raise LampError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be above 0")
    if min(options.sampled_items, options.reward_at, options.profile_size) < 1:
        raise LampError("--sampled-items, --reward-at and --profile-size: must be 1 or more")
    if options.compatibility.ropg == "padded" and options.reward_temperature != options.score_temperature:
        raise LampError("--ropg padded has one temperature: give --score-temperature and --reward-temperature the same")


def prepare_tokenizer(options: TrainRetriever, judged: Sequence[Judged]) -> Any:
    """The encoder's tokenizer, or one trained on the texts; beside the encoder that is written, in both cases."""
    output = Path(options.output)
    if (output / "tokenizer.json").exists():
        return load_tokenizer(output)
    if options.encoder == SCRATCH:
        texts = dict.fromkeys(text for one in judged for text in (one.query, *one.documents))
        tokenizer = train_text_tokenizer(texts, vocab_size=options.scratch.vocab_size)
    else:
        tokenizer = load_tokenizer(options.encoder)
    tokenizer.save_pretrained(output)
    return tokenizer


def prepare_model(options: TrainRetriever, vocabulary: int) -> Bert:
    """The encoder to start from, loaded or new."""
    layout, size = model_layout(options.devices), options.scratch
    if options.encoder != SCRATCH:
        return load_bert(options.encoder, **layout)
    config = BertConfig(
        vocab_size=-(-vocabulary // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE,
        hidden_size=size.hidden_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        intermediate_size=size.intermediate_size,
        hidden_dropout_prob=size.dropout,
        attention_probs_dropout_prob=size.dropout,
        max_position_embeddings=max(512, options.max_length),
    )
    return Bert(config, rngs=nnx.Rngs(options.seed), **layout)


def _examples(
    options: TrainRetriever, task: Task, judged: Sequence[Judged], tokenizer: Any, encoder: Encoder, params: Any
) -> list[Candidates]:
    texts = list(dict.fromkeys(text for one in judged for text in (one.query, *one.documents, "")))
    rows = tokenize(texts, tokenizer, max_length=options.max_length)
    tokens = {text: np.array(row, np.int32) for text, row in zip(texts, rows, strict=True)}
    baselines = [0.0] * len(judged)
    if options.method == "rl" and options.compatibility.ropg == "padded":
        baselines = [float(one.rewards[0]) for one in judged]
    elif options.method == "rl":
        # What the un-tuned retriever puts first is the baseline, Eq. 2.
        ranked = _rank(judged, encoder, params)
        baselines = [
            float(one.rewards[order[: options.sampled_items]].mean()) for one, order in zip(judged, ranked, strict=True)
        ]
    examples = []
    for one, baseline in zip(judged, baselines, strict=True):
        documents, rewards = [tokens[text] for text in one.documents], one.rewards
        if options.compatibility.ropg == "padded":
            missing = options.profile_size - len(documents)
            worth = baseline + (worst_error(one.gold) if task.metric == "mae" else 0.0)
            documents = documents + [tokens[""]] * missing
            rewards = np.concatenate([rewards, np.full(missing, worth, np.float32)])
        examples.append(Candidates(one.id, tokens[one.query], documents, rewards, baseline))
    return examples


def _rank(judged: Sequence[Judged], encoder: Encoder, params: Any) -> list[np.ndarray]:
    """For each question the places of its documents, best first."""
    return [best_first(scores) for scores in _score(judged, _embed(judged, encoder, params))]


def _embed(judged: Sequence[Judged], encoder: Encoder, params: Any) -> dict[str, np.ndarray]:
    texts = list(dict.fromkeys(text for one in judged for text in (one.query, *one.documents)))
    return dict(zip(texts, embed_all(texts, lambda part: encoder(params, part)), strict=True))


def _score(judged: Sequence[Judged], vectors: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [np.stack([vectors[text] for text in one.documents]) @ vectors[one.query] for one in judged]


def _evaluation(
    options: TrainRetriever, validation: Sequence[Judged], encoder: Encoder
) -> Callable[[Any], dict[str, float]]:
    """Parameters -> the mean reward of the first items, and how far vectors lie apart (mean deviation of an axis)."""

    def evaluate(params: Any) -> dict[str, float]:
        vectors = _embed(validation, encoder, params)
        orders = [best_first(scores) for scores in _score(validation, vectors)]
        first = [
            float(one.rewards[order[: options.reward_at]].mean()) for one, order in zip(validation, orders, strict=True)
        ]
        queries = np.stack([vectors[one.query] for one in validation])
        documents = np.stack([vectors[text] for one in validation for text in one.documents])
        return {
            "validation": float(np.mean(first)),
            "query_spread": float(queries.std(axis=0).mean()),
            "document_spread": float(documents.std(axis=0).mean()),
        }

    return evaluate
