"""`lamp train`: a generator fine-tuned, or trained from scratch, on prompts; the best by the task's metric is kept."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from tqdm import tqdm

from lamp_jax.config import SCRATCH
from lamp_jax.data.files import check_unique
from lamp_jax.data.sources import QuestionSource, content_of, open_source
from lamp_jax.decoding.answers import Answerer
from lamp_jax.decoding.generation import GENERATION_CONFIG, NOTHING, Generation, keep_generation, open_generation
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import Example, TrainingBatches, choose_buckets
from lamp_jax.inputs.generator import (
    ExampleMaker,
    gold_of,
    load_examples,
    make_prompts,
    past_questions,
    prompt_examples,
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
from lamp_jax.options.generator import Train
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.runs.workers import available_cores
from lamp_jax.sharding import model_layout, open_mesh, own_rows
from lamp_jax.stages.generate import answer
from lamp_jax.steps.generator import generator_loss
from lamp_jax.tasks.catalog import Task, find_task
from lamp_jax.tasks.metrics import check_golds, main_metric, score
from lamp_jax.training.divergence import check_converging
from lamp_jax.training.loop import RUN_FILES, Progress, check_learning, fit

FILES = (*MODEL_FILES, GENERATION_CONFIG, *TOKENIZER_FILES, *RUN_FILES)
"""What the output directory holds."""

# Making this many examples takes longer than starting processes.
_WORTH_PROCESSES = 5000


@guard_outputs
def run(options: Train) -> None:
    task = find_task(options.task)
    inputs = [content_of(path, task) for path in (options.train, options.validation)]
    inputs += [options.model] * (options.model != SCRATCH)
    record = reserve(options.output, options, inputs=inputs, ignore=["workers"], directory=True, makes=FILES)
    if record.state == "done":
        return print(f"{options.output}: already trained")
    check_converging(record.place)
    mesh = open_mesh(options.devices)
    check_learning(options.learning, mesh)
    if options.workers < 0:
        raise LampError(f"--workers {options.workers}: must be 0 or more")
    patches = options.compatibility.patches
    questions = _open(options.train, task, patches)
    validation = _open(options.validation, task, patches, scored=True)
    if options.profile_targets:
        known = list(questions)
        questions = known + past_questions(known, task, newest=options.profile_targets)
    generation = NOTHING if options.model == SCRATCH else open_generation(options.model, options.answering)
    record.begin()
    place = record.redirect(options)
    with jax.set_mesh(mesh):
        progress = train_generator(place, task, questions, validation, generation)
    record.finish(**dataclasses.asdict(progress), generation=generation.facts)
    print(f"{options.output}: best {main_metric(task)} {progress.best:.4f} on validation, at step {progress.best_step}")


def _open(path: str, task: Task, patches: Iterable[str], *, scored: bool = False) -> QuestionSource:
    """Questions with golds, each of which is looked at once before any work begins; `scored`: also whether it can be
    scored."""
    source, seen = open_source(path, task, patches), set()
    for question in source:
        check_unique([question.id], seen, path)
        gold = gold_of(question, path)
        if scored:
            check_golds(task, {question.id: gold}, path=path)
    return source


def train_generator(
    options: Train, task: Task, questions: QuestionSource, validation: QuestionSource, generation: Generation
) -> Progress:
    """Trains on `questions`, resuming what stands in `options.output`; the best model is written there."""
    output = Path(options.output)
    tokenizer = keep_tokenizer(output, partial(_prepare_tokenizer, options, task, questions))
    if options.model != SCRATCH:
        check_generator_tokenizer(tokenizer, options.model)
        on_first(lambda: keep_generation(options.model, output))
    model = _prepare_model(options, len(tokenizer))
    graph, params = nnx.split(model)
    buckets = choose_buckets(options.prompting.max_length)
    examples = _examples(options, task, questions, tokenizer)
    size, seed = options.learning.batch_size, options.seed
    batches = TrainingBatches(examples, batch_size=size, buckets=buckets, seed=seed, own=own_rows)
    return fit(
        output,
        params,
        generator_loss(graph),
        batches,
        options.learning,
        seed=seed,
        rules=model.rules,
        evaluate=_evaluation(options, task, validation, tokenizer, graph, generation),
        higher_is_better=task.higher_is_better,
        keep_best=lambda params: save_generator(nnx.merge(graph, params), output),
    )


def _prepare_tokenizer(options: Train, task: Task, questions: QuestionSource) -> Any:
    """The model's tokenizer, or one trained on the questions."""
    if options.model == SCRATCH:
        return train_tokenizer(_texts(task, questions), vocab_size=options.scratch.vocab_size)
    return load_tokenizer(options.model)


def _texts(task: Task, questions: QuestionSource) -> list[str]:
    """Every distinct text that a prompt or an answer may hold."""
    texts, items = {}, {}
    for question in questions:
        texts |= dict.fromkeys((question.input, gold_of(question)))
        items |= dict.fromkeys(task.prompt.item.frame.format(**item) for item in question.profile)
    return list(texts | items)


def _prepare_model(options: Train, vocabulary: int) -> Generator:
    layout = model_layout(options.devices)
    if options.model != SCRATCH:
        return load_generator(options.model, **layout)
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
    return new_generator(config, seed=options.seed, **layout)


def _examples(options: Train, task: Task, questions: QuestionSource, tokenizer: Any) -> Iterator[Example]:
    """One example for each question and retriever."""
    for retriever in options.retrievers:
        make = ExampleMaker(
            task,
            tokenizer,
            options,
            retriever=retriever,
            longest_answer=options.answering.generation_max_length - 1,
            name=options.train,
        )
        examples = load_examples(questions, make, workers=_count_workers(options, len(questions)))
        yield from tqdm(examples, f"prompts ({retriever})", len(questions), disable=None)


def _count_workers(options: Train, questions: int) -> int:
    """Processes that make examples; none where threads are done before a process has started."""
    return options.workers or (available_cores() if questions > _WORTH_PROCESSES else 0)


def _evaluation(
    options: Train,
    task: Task,
    validation: QuestionSource,
    tokenizer: Any,
    graph: nnx.GraphDef,
    generation: Generation,
) -> Callable[[Any], dict[str, float]]:
    """The main metric on the validation questions, the mean over the retrievers."""
    answerer = Answerer(graph, tokenizer, task, options.answering, generation=generation)
    asked = [validation[place] for place in range(min(len(validation), options.validation_size or len(validation)))]
    golds = {question.id: gold_of(question, options.validation) for question in asked}
    sets = [
        prompt_examples(asked, make_prompts(asked, task, tokenizer, options, retriever=retriever))
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
            values.append(score(task, answers, golds, compatibility=options.compatibility).value)
        return {"validation": math.fsum(values) / len(values)}

    return evaluate
