"""Training of a dual encoder on a generator's feedback (ROPG, arXiv 2404.05970), from an encoder's files or scratch."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from lamp_jax.config import SCRATCH, Devices
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
)
from lamp_jax.inputs.tokenizer import TOKENIZER_FILES, keep_tokenizer, load_tokenizer, train_text_tokenizer
from lamp_jax.models.bert import NO_TOKEN, Bert, BertConfig
from lamp_jax.models.weights import MODEL_FILES, check_tokenizer, find_model, load_bert, save_bert
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
from lamp_jax.settings import RetrieverTraining
from lamp_jax.sharding import model_options, own_rows
from lamp_jax.steps.retriever import choose_objective, retriever_loss
from lamp_jax.tasks.catalog import Task
from lamp_jax.training.loop import RUN_FILES, Progress, fit

FILES = (*MODEL_FILES, *TOKENIZER_FILES, *RUN_FILES, *ENCODER_FILES)
"""Patterns of the files that a training writes to its directory."""
_SPREADS, _COLLAPSED = ("query_spread", "document_spread"), 0.05  # of the spread before training


def check_retriever_training(options: RetrieverTraining) -> None:
    """LampError for invalid values."""
    for name in ("score_temperature", "reward_temperature"):
        if not getattr(options, name) > 0:
            raise LampError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be above 0")
    if min(options.sampled_items, options.reward_at, options.profile_size) < 1:
        raise LampError("--sampled-items, --reward-at and --profile-size: must be 1 or more")
    if options.compatibility.ropg == "padded" and options.reward_temperature != options.score_temperature:
        raise LampError("--ropg padded has one temperature: give --score-temperature and --reward-temperature the same")


@dataclasses.dataclass(frozen=True)
class Divided:
    """Scored questions for training, and those for the choice of the best checkpoint."""

    train: Sequence[ScoredQuestion]
    validation: Sequence[ScoredQuestion]
    skipped: int
    """Number of train questions that are skipped because all rewards of their items are equal."""


def divide(
    options: RetrieverTraining, scored: Sequence[ScoredQuestion], validation: Sequence[ScoredQuestion], *, name: str
) -> Divided:
    """Training and validation questions; without `validation` questions a share of `scored` is held out.

    LampError, with `name`, where all rewards of every question are equal.
    """
    train, held = (scored, validation) if validation else hold_out(scored, options.held_out, seed=options.seed)
    informative = [one for one in train if np.ptp(one.rewards) > 0] if options.compatibility.ropg == "masked" else train
    if not informative:
        raise LampError(
            f"{name}: for every question all rewards are equal; nothing can be learned: collect other feedback"
        )
    return Divided(informative, held, len(train) - len(informative))


def train_retriever(
    options: RetrieverTraining,
    task: Task,
    train: Sequence[ScoredQuestion],
    validation: Sequence[ScoredQuestion],
    start: FoundEncoder,
    settings: EncoderSettings,
    *,
    output: Path,
    devices: Devices,
) -> tuple[float, Progress]:
    """Trains on `train` on the current mesh; resumes a run in `output`, where the best encoder is written.

    Returns the validation score before training, and the progress.
    """
    tokenizer = prepare_tokenizer(options, start, [*train, *validation], output)
    if start.source != SCRATCH:
        check_tokenizer(tokenizer, start.source, BertConfig)
    reader = TextReader(tokenizer, settings)
    model = prepare_model(options, start, settings, len(tokenizer), devices)
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
                warning = (
                    f"{output}: {name} fell from {before[name]:.3g} to {now[name]:.3g}: the vectors are nearly equal"
                )
                print(f"{warning}; give a lower --learning-rate", file=sys.stderr)
        return now

    def keep_best(params: Any) -> None:
        if is_first():
            write_settings(output, settings, width=model.config.hidden_size)  # before the weights, which need them
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


def find_start(encoder: str) -> FoundEncoder:
    """Encoder to start from; without files for `scratch`. LampError as `find_encoder`."""
    if encoder == SCRATCH:
        return FoundEncoder(SCRATCH, {})
    return find_encoder(encoder, find_model(encoder))


def choose_form(options: RetrieverTraining, start: FoundEncoder) -> EncoderSettings:
    """Settings of the trained encoder. LampError for settings that the start encoder or its tokenizer excludes."""
    length = options.max_length
    if options.compatibility.ropg == "padded" and length is None:
        length = LONGEST
    if start.source == SCRATCH:
        settings = choose_settings(start, options.encoding, max_length=length, longest=LONGEST, positions=sys.maxsize)
    else:
        settings = open_reader(start, options.encoding, max_length=length).settings
    return dataclasses.replace(settings, use_date=options.use_date)


def prepare_tokenizer(
    options: RetrieverTraining, start: FoundEncoder, scored: Sequence[ScoredQuestion], output: Path
) -> Any:
    """Tokenizer of the encoder, or one trained on the texts; written to `output` in both cases."""

    def make() -> Any:
        if start.source == SCRATCH:
            return train_text_tokenizer(distinct_texts(scored), vocab_size=options.scratch.vocab_size)
        return load_tokenizer(start.source)

    return keep_tokenizer(output, make)


def prepare_model(
    options: RetrieverTraining, start: FoundEncoder, settings: EncoderSettings, vocabulary: int, devices: Devices
) -> Bert:
    """Encoder to start from, loaded or new."""
    model_kwargs, size = model_options(devices), options.scratch
    if start.source != SCRATCH:
        return load_bert(start.source, **model_kwargs)
    config = BertConfig.for_scratch(size, vocabulary, max_position_embeddings=max(LONGEST, settings.longest))
    return Bert(config, rngs=nnx.Rngs(options.seed), **model_kwargs)


def choose_baselines(
    options: RetrieverTraining, scored: Sequence[ScoredQuestion], encoders: TextEncoders, params: Any
) -> Sequence[float]:
    """Baselines of sampled items: the mean reward of the items that the untrained retriever ranks first, Eq. 2."""
    if options.method != "rl":
        return [0.0] * len(scored)
    if options.compatibility.ropg == "padded":
        return [float(one.rewards[0]) for one in scored]
    return _first_rewards(scored, *_embed(scored, encoders, params), encoders.settings, count=options.sampled_items)


def _evaluate(
    options: RetrieverTraining, validation: Sequence[ScoredQuestion], encoders: TextEncoders, params: Any
) -> dict[str, float]:
    """Mean reward of the first items, and spread of the vectors: their standard deviation, averaged over the axes."""
    of_queries, of_documents = _embed(validation, encoders, params)
    if not all(np.isfinite(vector).all() for found in (of_queries, of_documents) for vector in found.values()):
        return dict.fromkeys(("validation", *_SPREADS), math.nan)  # the order of items would be arbitrary
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
    """Vectors of the queries and of the documents, by text."""

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
    """Mean reward of each question's first `count` documents by these vectors."""
    means = []
    for one in scored:
        vectors = np.stack([documents[text] for text in one.documents])
        order = best_first(similarities(queries[one.query], vectors, settings.similarity))
        means.append(float(one.rewards[order[:count]].mean()))
    return means
