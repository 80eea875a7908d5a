"""`lamp train-selector`: a Longformer trained on feedback to select a retriever."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from lamp_jax.artifacts.selector import CandidateSet, check_same_candidates, read_candidates
from lamp_jax.config import SCRATCH
from lamp_jax.encoding import candidate_scorer
from lamp_jax.errors import LampError
from lamp_jax.inputs.candidate_batches import CandidateBatches
from lamp_jax.inputs.selector import SETTINGS, CandidateReader, SelectorSettings, candidate_examples, write_settings
from lamp_jax.inputs.tokenizer import TOKENIZER_FILES, keep_tokenizer, load_tokenizer, train_text_tokenizer
from lamp_jax.models.bert import NO_TOKEN
from lamp_jax.models.longformer import Longformer, LongformerConfig
from lamp_jax.models.weights import MODEL_FILES, check_tokenizer, load_longformer, save_longformer
from lamp_jax.options.selector import TrainSelector
from lamp_jax.retrieval.encoders import check_length
from lamp_jax.retrieval.selector import choose_by_value, mean_reward
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.sharding import model_options, open_mesh, own_rows
from lamp_jax.steps.selector import selector_loss
from lamp_jax.training.divergence import check_converging
from lamp_jax.training.loop import RUN_FILES, Progress, check_learning, fit

FILES = (*MODEL_FILES, *TOKENIZER_FILES, *RUN_FILES, SETTINGS)
"""Patterns of the names of the output directory's files."""


@guard_outputs
def run(options: TrainSelector) -> None:
    inputs = [options.train, options.validation] + [options.model] * (options.model != SCRATCH)
    record = reserve(options.output, options, inputs=inputs, directory=True, makes=FILES)
    if record.state == "done":
        return print(f"{options.output}: already trained")
    check_converging(record.target)
    mesh = open_mesh(options.devices)
    check_learning(options.learning, mesh)
    if not options.temperature > 0:
        raise LampError(f"--temperature {options.temperature}: must be above 0")
    train, validation = read_candidates(options.train), read_candidates(options.validation)
    check_same_candidates(train, validation, options.train, options.validation)
    for data, path in ((train, options.train), (validation, options.validation)):
        if not data.rewarded:
            raise LampError(f"{path}: has candidates without rewards; make it with `lamp selector-data --golds`")
    record.begin()
    place = record.redirect(options)
    with jax.set_mesh(mesh):
        before, progress = train_selector(place, train, validation)
    record.finish(questions=len(train.questions), before=before, **dataclasses.asdict(progress))
    print(
        f"{options.output}: learned from {len(train.questions)} questions to choose among {', '.join(train.names)}; "
        f"mean reward of its choice on {len(validation.questions)} others: {before['validation']:.4f} before, "
        f"{progress.best:.4f} at step {progress.best_step}"
    )


def train_selector(
    options: TrainSelector, train: CandidateSet, validation: CandidateSet
) -> tuple[Mapping[str, float], Progress]:
    """Trains on `train` and writes the best model to `options.output`, from whose checkpoint it resumes.

    Returns the validation score before training and the progress of training.
    """
    output = Path(options.output)
    tokenizer = _prepare_tokenizer(options, [train, validation])
    if options.model != SCRATCH:
        check_tokenizer(tokenizer, options.model, LongformerConfig)
    settings = SelectorSettings(
        mode=options.mode,
        max_length=options.max_length or (512 if options.compatibility.selector_cut == "end" else 1024),
        pool=train.names,
        task=train.task.name,
        metric=train.metric,
        case=options.compatibility.selector_case,
        cut=options.compatibility.selector_cut,
        first_token=options.compatibility.selector_first_token,
    )
    model = _prepare_model(options, settings, tokenizer)
    check_length(model.config.longest, settings.max_length, options.model)
    graph, params = nnx.split(model)
    reader = CandidateReader(tokenizer, settings)
    batches = CandidateBatches(
        candidate_examples(train, reader),
        batch_size=options.learning.batch_size,
        max_length=settings.max_length,
        pad=NO_TOKEN,
        seed=options.seed,
        own=own_rows,
    )
    score = candidate_scorer(graph, reader)

    def evaluate(params: Any) -> dict[str, float]:
        values = score(params, validation)
        if not all(map(math.isfinite, values.values())):  # otherwise the first candidate is selected for every question
            return {"validation": math.nan}
        return {"validation": mean_reward(validation, choose_by_value(validation, values))}

    def keep_best(params: Any) -> None:
        save_longformer(nnx.merge(graph, params), output)
        on_first(lambda: write_settings(output, settings))

    before = evaluate(params)
    progress = fit(
        output,
        params,
        selector_loss(graph, temperature=options.temperature, compatibility=options.compatibility),
        batches,
        options.learning,
        seed=options.seed,
        rules=model.rules,
        evaluate=evaluate,
        higher_is_better=True,
        keep_best=keep_best,
    )
    return before, progress


def _prepare_tokenizer(options: TrainSelector, candidate_sets: Sequence[CandidateSet]) -> Any:
    """Tokenizer of the initial model, or a new tokenizer trained on the texts; saved in the output directory."""

    def make() -> Any:
        if options.model != SCRATCH:
            return load_tokenizer(options.model)
        candidates = [
            one for data in candidate_sets for question in data.questions for one in question.candidates.values()
        ]
        texts = dict.fromkeys(text for one in candidates for text in (one.prompt, one.output))
        return train_text_tokenizer(texts, vocab_size=options.scratch.vocab_size, cased=True)

    return keep_tokenizer(Path(options.output), make)


def _prepare_model(options: TrainSelector, settings: SelectorSettings, tokenizer: Any) -> Longformer:
    """Initial model, loaded or new."""
    model_kwargs, size = {**model_options(options.devices), "first_token": settings.first_token}, options.scratch
    if options.model != SCRATCH:
        return load_longformer(options.model, seed=options.seed, **model_kwargs)
    pad = tokenizer.pad_token_id
    config = LongformerConfig.for_scratch(
        size,
        len(tokenizer),
        max_position_embeddings=settings.max_length + pad + 1,
        attention_window=size.attention_window,
        initializer_range=size.hidden_size
        ** -0.5,  # BERT's 0.02 suits wide models; attention in narrow models is nearly uniform with it
        pad_token_id=pad,
    )
    model = Longformer(config, rngs=nnx.Rngs(options.seed), **model_kwargs)
    model.start_alike()
    return model
