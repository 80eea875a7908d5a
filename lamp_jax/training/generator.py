"""Training of a generator on prompts and answers, from a model's files or from scratch."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from flax import nnx
from tqdm.auto import tqdm

from lamp_jax.config import SCRATCH, Devices
from lamp_jax.data.files import check_unique
from lamp_jax.data.sources import QuestionSource
from lamp_jax.decoding.answering import answer
from lamp_jax.decoding.answers import Answerer
from lamp_jax.decoding.generation import GENERATION_CONFIG, Generation, keep_generation
from lamp_jax.inputs.batches import Example, TrainingBatches
from lamp_jax.inputs.generator import (
    ExampleMaker,
    load_examples,
    make_prompts,
    past_questions,
    prompt_examples,
    reference_of,
)
from lamp_jax.inputs.tokenizer import (
    TOKENIZER_FILES,
    keep_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from lamp_jax.models.families import (
    check_generator_tokenizer,
    load_generator,
    new_generator,
    save_generator,
    scratch_config,
)
from lamp_jax.models.generator import Generator
from lamp_jax.models.weights import MODEL_FILES
from lamp_jax.runs.processes import on_first
from lamp_jax.settings import GeneratorTraining
from lamp_jax.sharding import model_options, own_rows
from lamp_jax.steps.generator import generator_loss
from lamp_jax.tasks.catalog import Task
from lamp_jax.tasks.metrics import check_references, score
from lamp_jax.training.loop import RUN_FILES, Progress, fit

FILES = (*MODEL_FILES, GENERATION_CONFIG, *TOKENIZER_FILES, *RUN_FILES)
"""Patterns of the files that a training writes to its directory."""


def check_questions(source: QuestionSource, task: Task, name: str, *, scored: bool = False) -> None:
    """Checks all questions before training. LampError, with `name`, for a duplicate id and for a question without
    reference; with `scored` also for a reference that cannot be scored."""
    seen: set[str] = set()
    for question in source:
        check_unique([question.id], seen, name)
        reference = reference_of(question, name)
        if scored:
            check_references(task, {question.id: reference}, path=name)


def add_profile_targets(questions: QuestionSource, task: Task, *, newest: int) -> QuestionSource:
    """Questions, and unless `newest` is 0 the newest profile items of each as further ones (see past_questions)."""
    if not newest:
        return questions
    known = list(questions)
    return known + past_questions(known, task, newest=newest)


def train_generator(
    options: GeneratorTraining,
    task: Task,
    questions: QuestionSource,
    validation: QuestionSource,
    generation: Generation,
    *,
    model: str,
    output: Path,
    devices: Devices,
    names: tuple[str, str] = ("the train questions", "the validation questions"),
    workers: int = 0,
) -> Progress:
    """Trains `model`, or a new one (`scratch`), on the current mesh; resumes a run in `output`.

    The best model by its score on `validation` is written there. `generation` has the generation settings of the start
    model's files. `names` are those of both lists of questions, for errors; `workers` processes make the examples (0:
    threads of this one).
    """
    tokenizer = keep_tokenizer(output, partial(_prepare_tokenizer, options, model, task, questions))
    if model != SCRATCH:
        check_generator_tokenizer(tokenizer, model)
        on_first(lambda: keep_generation(model, output))
    start = _prepare_model(options, model, len(tokenizer), devices)
    graph, params = nnx.split(start)
    examples = _examples(options, task, questions, tokenizer, name=names[0], workers=workers)
    size, seed, longest = options.learning.batch_size, options.seed, options.prompting.max_length
    batches = TrainingBatches(examples, batch_size=size, max_length=longest, seed=seed, own=own_rows)
    return fit(
        output,
        params,
        generator_loss(graph),
        batches,
        options.learning,
        seed=seed,
        rules=start.rules,
        evaluate=_evaluation(options, task, validation, tokenizer, graph, generation, name=names[1], workers=workers),
        higher_is_better=task.higher_is_better,
        keep_best=lambda params: save_generator(nnx.merge(graph, params), output),
    )


def _prepare_tokenizer(options: GeneratorTraining, model: str, task: Task, questions: QuestionSource) -> Any:
    """Tokenizer of the model, or one trained on the questions."""
    if model == SCRATCH:
        return train_tokenizer(_texts(task, questions), vocab_size=options.scratch.vocab_size)
    return load_tokenizer(model)


def _texts(task: Task, questions: QuestionSource) -> list[str]:
    """Distinct texts that a prompt or an answer may contain."""
    texts, items = {}, {}
    for question in questions:
        texts |= dict.fromkeys((question.input, reference_of(question)))
        items |= dict.fromkeys(task.prompt.item.template.format(**item) for item in question.profile)
    return list(texts | items)


def _prepare_model(options: GeneratorTraining, model: str, vocabulary: int, devices: Devices) -> Generator:
    model_kwargs = model_options(devices)
    if model != SCRATCH:
        return load_generator(model, **model_kwargs)
    size = options.scratch
    config = scratch_config(
        vocabulary,
        d_model=size.d_model,
        d_ff=size.d_ff,
        num_layers=size.num_layers,
        num_decoder_layers=size.num_decoder_layers,
        num_heads=size.num_heads,
        dropout=size.dropout,
    )
    return new_generator(config, seed=options.seed, **model_kwargs)


def _examples(
    options: GeneratorTraining, task: Task, questions: QuestionSource, tokenizer: Any, *, name: str, workers: int
) -> Iterator[Example]:
    """Examples of all questions for each retriever."""
    for retriever in options.retrievers:
        make = ExampleMaker(
            task,
            tokenizer,
            options,
            retriever=retriever,
            longest_answer=options.answering.generation_max_length - 1,
            name=name,
        )
        examples = load_examples(questions, make, workers=workers)
        yield from tqdm(examples, f"prompts ({retriever})", len(questions), disable=None)


def _evaluation(
    options: GeneratorTraining,
    task: Task,
    validation: QuestionSource,
    tokenizer: Any,
    graph: nnx.GraphDef,
    generation: Generation,
    *,
    name: str,
    workers: int,
) -> Callable[[Any], dict[str, float]]:
    """Evaluation function: the main metric on the validation questions, averaged over the retrievers."""
    answerer = Answerer(graph, tokenizer, task, options.answering, generation=generation)
    asked = [validation[place] for place in range(min(len(validation), options.validation_size or len(validation)))]
    references = {question.id: reference_of(question, name) for question in asked}
    sets = [
        prompt_examples(
            asked, make_prompts(asked, task, tokenizer, options, retriever=retriever, workers=max(workers, 1))
        )
        for retriever in options.retrievers
    ]

    def evaluate(params: Any) -> dict[str, float]:
        values = []
        for examples in sets:
            answers = answer(
                examples,
                answerer,
                params,
                batch_size=options.learning.batch_size,
                max_length=options.prompting.max_length,
            )
            values.append(score(task, answers, references, compatibility=options.compatibility).value)
        return {"validation": math.fsum(values) / len(values)}

    return evaluate
