"""`lamp train-retriever`: a dual encoder that learns from a generator's feedback which items to rank first."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lamp_jax.config import SCRATCH
from lamp_jax.encoding import Encoder, TextEncoders, open_reader
from lamp_jax.errors import LampError
from lamp_jax.inputs.candidate_batches import CandidateBatches
from lamp_jax.inputs.reader import TextReader
from lamp_jax.inputs.retriever import (
    ScoredQuestion,
    distinct_documents,
    distinct_queries,
    distinct_texts,
    hold_out,
    make_candidates,
    read_scored_questions,
)
from lamp_jax.inputs.tokenizer import TOKENIZER_FILES, keep_tokenizer, load_tokenizer, train_text_tokenizer
from lamp_jax.models.bert import NO_TOKEN, Bert, BertConfig
from lamp_jax.models.weights import MODEL_FILES, check_tokenizer, find_model, load_bert, save_bert
from lamp_jax.options.retriever import TrainRetriever
from lamp_jax.retrieval.dense import embed_all, similarities
from lamp_jax.retrieval.encoders import FILES as ENCODER_FILES
from lamp_jax.retrieval.encoders import (
    LONGEST,
    EncoderSettings,
    FoundEncoder,
    choose_settings,
    find_encoder,
    write_settings,
)
from lamp_jax.retrieval.scored import best_first
from lamp_jax.runs.processes import is_first
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.sharding import model_layout, open_mesh, own_rows
from lamp_jax.steps.retriever import choose_objective, retriever_loss
from lamp_jax.tasks.catalog import Task, find_task
from lamp_jax.training.divergence import check_converging
from lamp_jax.training.loop import RUN_FILES, Progress, check_learning, fit

FILES = (*MODEL_FILES, *TOKENIZER_FILES, *RUN_FILES, *ENCODER_FILES)
"""What the output directory holds."""
_SPREADS, _COLLAPSED = ("query_spread", "document_spread"), 0.05  # of the spread before training


@guard_outputs
def run(options: TrainRetriever) -> None:
    task = find_task(options.task)
    _check(options)
    files = [options.questions, options.validation, *options.feedback, *options.validation_feedback]
    inputs = [name for name in files if name] + [options.encoder] * (options.encoder != SCRATCH)
    record = reserve(options.output, options, inputs=inputs, directory=True, makes=FILES)
    if record.state == "done":
        return print(f"{options.output}: already trained")
    check_converging(record.place)
    mesh = open_mesh(options.devices)
    check_learning(options.learning, mesh)
    read = partial(read_scored_questions, options, task, compatibility=options.compatibility)
    scored = read(options.questions, options.feedback)
    if options.validation:
        train, validation = scored, read(options.validation, options.validation_feedback)
    else:
        train, validation = hold_out(scored, options.held_out, seed=options.seed)
    telling = [one for one in train if np.ptp(one.rewards) > 0] if options.compatibility.ropg == "masked" else train
    if not telling:
        raise LampError(f"{options.questions}: for every question all rewards are equal; nothing can be learned")
    start = find_start(options)
    settings = choose_form(options, start)
    record.begin()
    place = record.redirect(options)
    with jax.set_mesh(mesh):
        before, progress = train_retriever(place, task, telling, validation, start, settings)
    facts = {"questions": len(telling), "skipped_equal_rewards": len(train) - len(telling), "before": before}
    facts["encoder"] = dataclasses.asdict(settings)
    record.finish(**facts, **dataclasses.asdict(progress))
    print(
        f"{options.output}: learned from {len(telling)} questions ({len(train) - len(telling)} with equal rewards for "
        f"all items were skipped); mean reward of the first {options.reward_at} items on {len(validation)} held-out "
        f"questions: {before:.4f} before, {progress.best:.4f} at step {progress.best_step}"
    )


def train_retriever(
    options: TrainRetriever,
    task: Task,
    train: Sequence[ScoredQuestion],
    validation: Sequence[ScoredQuestion],
    start: FoundEncoder,
    settings: EncoderSettings,
) -> tuple[float, Progress]:
    """Trains on `train`, resuming what stands in `options.output`; the best encoder is written there.

    Returns the validation score before training and how the training went.
    """
    output = Path(options.output)
    tokenizer = prepare_tokenizer(options, start, [*train, *validation])
    if options.encoder != SCRATCH:
        check_tokenizer(tokenizer, options.encoder, BertConfig)
    reader = TextReader(tokenizer, settings)
    model = prepare_model(options, start, settings, len(tokenizer))
    graph, params = nnx.split(model)
    encoders = TextEncoders(graph, reader)
    before = _evaluate(options, validation, encoders, params)
    examples = make_candidates(
        options,
        task,
        train,
        reader,
        choose_baselines(options, train, encoders, params),
        compatibility=options.compatibility,
    )
    batches = CandidateBatches(
        examples,
        batch_size=options.learning.batch_size,
        max_length=settings.longest,
        pad=NO_TOKEN,
        seed=options.seed,
        own=own_rows,
    )

    def evaluate(params: Any) -> dict[str, float]:
        now = _evaluate(options, validation, encoders, params)
        for name in _SPREADS:
            if now[name] < _COLLAPSED * before[name]:
                warning = f"{output}: {name} fell from {before[name]:.3g} to {now[name]:.3g}: the vectors are all alike"
                print(f"{warning}; give a lower --learning-rate", file=sys.stderr)
        return now

    def keep_best(params: Any) -> None:
        if is_first():
            write_settings(output, settings, width=model.config.hidden_size)  # before the weights: never these alone
        save_bert(nnx.merge(graph, params), output)

    progress = fit(
        output,
        params,
        retriever_loss(graph, choose_objective(options, compatibility=options.compatibility), settings, reader.skips),
        batches,
        options.learning,
        seed=options.seed,
        rules=model.rules,
        evaluate=evaluate,
        higher_is_better=True,
        keep_best=keep_best,
    )
    return before["validation"], progress


def _check(options: TrainRetriever) -> None:
    if options.validation and not options.validation_feedback:
        raise LampError("--validation: give its feedback too, --validation-feedback")
    for name in ("score_temperature", "reward_temperature"):
        if not getattr(options, name) > 0:
            raise LampError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be above 0")
    if min(options.sampled_items, options.reward_at, options.profile_size) < 1:
        raise LampError("--sampled-items, --reward-at and --profile-size: must be 1 or more")
    if options.compatibility.ropg == "padded" and options.reward_temperature != options.score_temperature:
        raise LampError("--ropg padded has one temperature: give --score-temperature and --reward-temperature the same")


def find_start(options: TrainRetriever) -> FoundEncoder:
    """The encoder to start from; of a new one no file says anything. LampError as `find_encoder`."""
    if options.encoder == SCRATCH:
        return FoundEncoder(SCRATCH, {})
    return find_encoder(options.encoder, find_model(options.encoder))


def choose_form(options: TrainRetriever, start: FoundEncoder) -> EncoderSettings:
    """The settings of the encoder that is trained. LampError for those that it, or its tokenizer, does not allow."""
    length = options.max_length
    if options.compatibility.ropg == "padded" and length is None:
        length = LONGEST
    if options.encoder == SCRATCH:
        settings = choose_settings(start, options.encoding, max_length=length, longest=LONGEST, positions=sys.maxsize)
    else:
        settings = open_reader(start, options.encoding, max_length=length).settings
    return dataclasses.replace(settings, use_date=options.use_date)


def prepare_tokenizer(options: TrainRetriever, start: FoundEncoder, scored: Sequence[ScoredQuestion]) -> Any:
    """The encoder's tokenizer, or one trained on the texts; beside the encoder that is written, in both cases."""

    def make() -> Any:
        if options.encoder == SCRATCH:
            return train_text_tokenizer(distinct_texts(scored), vocab_size=options.scratch.vocab_size)
        return load_tokenizer(start.source)

    return keep_tokenizer(Path(options.output), make)


def prepare_model(options: TrainRetriever, start: FoundEncoder, settings: EncoderSettings, vocabulary: int) -> Bert:
    """The encoder to start from, loaded or new."""
    layout, size = model_layout(options.devices), options.scratch
    if options.encoder != SCRATCH:
        return load_bert(start.source, **layout)
    config = BertConfig.for_scratch(size, vocabulary, max_position_embeddings=max(LONGEST, settings.longest))
    return Bert(config, rngs=nnx.Rngs(options.seed), **layout)


def choose_baselines(
    options: TrainRetriever, scored: Sequence[ScoredQuestion], encoders: TextEncoders, params: Any
) -> Sequence[float]:
    """What sampled items are measured against: the reward of those that the un-tuned retriever puts first, Eq. 2."""
    if options.method != "rl":
        return [0.0] * len(scored)
    if options.compatibility.ropg == "padded":
        return [float(one.rewards[0]) for one in scored]
    return _first_rewards(scored, *_embed(scored, encoders, params), encoders.settings, count=options.sampled_items)


def _evaluate(
    options: TrainRetriever, validation: Sequence[ScoredQuestion], encoders: TextEncoders, params: Any
) -> dict[str, float]:
    """The mean reward of the first items, and how far vectors lie apart: the mean deviation of an axis."""
    of_queries, of_documents = _embed(validation, encoders, params)
    if not all(np.isfinite(vector).all() for found in (of_queries, of_documents) for vector in found.values()):
        return dict.fromkeys(("validation", *_SPREADS), math.nan)  # the order of items would be any
    queries = np.stack([of_queries[one.query] for one in validation])
    documents = np.stack([of_documents[text] for one in validation for text in one.documents])
    rewards = _first_rewards(validation, of_queries, of_documents, encoders.settings, count=options.reward_at)
    return {
        "validation": float(np.mean(rewards)),
        "query_spread": float(queries.std(axis=0).mean()),
        "document_spread": float(documents.std(axis=0).mean()),
    }


def _embed(
    scored: Sequence[ScoredQuestion], encoders: TextEncoders, params: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The vectors of the queries and of the documents, by their texts."""

    def by_text(texts: Sequence[str], encoder: Encoder) -> dict[str, np.ndarray]:
        return dict(zip(texts, embed_all(texts, partial(encoder, params)), strict=True))

    if encoders.queries is encoders.documents:
        both = by_text(distinct_texts(scored), encoders.documents)
        return both, both
    queries = by_text(distinct_queries(scored), encoders.queries)
    return queries, by_text(distinct_documents(scored), encoders.documents)


def _first_rewards(
    scored: Sequence[ScoredQuestion],
    queries: Mapping[str, np.ndarray],
    documents: Mapping[str, np.ndarray],
    settings: EncoderSettings,
    *,
    count: int,
) -> list[float]:
    """For each question the mean reward of the first `count` documents by these vectors."""
    means = []
    for one in scored:
        vectors = np.stack([documents[text] for text in one.documents])
        order = best_first(similarities(queries[one.query], vectors, settings.similarity))
        means.append(float(one.rewards[order[:count]].mean()))
    return means
