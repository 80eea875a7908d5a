"""Feedback of a generator: prompts are answered and scored in batches, sorted by length within windows."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from lamp_jax.config import Answering, Compatibility, Prompting
from lamp_jax.data.files import Question
from lamp_jax.decoding.answers import Answerer
from lamp_jax.decoding.labels import mean_log_probability
from lamp_jax.distributed import read
from lamp_jax.inputs.batches import fit_buckets, pad_rows, prediction_batches
from lamp_jax.inputs.generator import make_prompts, prompt_examples, reference_of
from lamp_jax.settings import PromptSettings
from lamp_jax.sharding import own_rows, place_batch
from lamp_jax.tasks.catalog import Task
from lamp_jax.tasks.metrics import score
from lamp_jax.tasks.prompts import Prompt
from lamp_jax.tasks.rewards import LIKELIHOOD

# Number of batches whose prompts are built and sorted by length together: a resumed run rebuilds at most these.
_WINDOW = 256

RatedAnswer = tuple[str | None, dict[str, float]]
"""Generated text (None if nothing was generated), and its metrics."""
Rate = Callable[[Sequence[Question], np.ndarray], list[RatedAnswer]]
"""Function: questions of a batch, this process's rows of their prompts [B, S] with padding rows -> rated answers."""


class Trial(NamedTuple):
    """Question whose profile is the content of its prompt, and the names that identify its record."""

    question: Question
    names: dict[str, Any]


class RatedBatch(NamedTuple):
    """Trials of one batch, with their prompts and rated answers."""

    first: int
    """Number of trials in the preceding batches."""
    trials: list[Trial]
    prompts: list[Prompt]
    answers: list[RatedAnswer]


def rate_trials(
    trials: Sequence[Trial],
    rate: Rate,
    task: Task,
    tokenizer: Any,
    *,
    prompting: Prompting,
    batch_size: int,
    compatibility: Compatibility,
    done: int = 0,
    advance: Callable[[int], Any] = lambda count: None,
) -> Iterator[RatedBatch]:
    """Rated batches of the trials, each trial once; batches within the first `done` trials are skipped.

    The batches are a function of the list of trials only, so that a killed run resumes after its last complete batch.
    `advance` is called with the number of trials of every batch.
    """
    settings = PromptSettings(prompting=prompting, compatibility=compatibility)
    window, seen = _WINDOW * batch_size, 0
    for start in range(0, len(trials), window):
        chosen = trials[start : start + window]
        if seen + len(chosen) <= done:
            seen += len(chosen)
            advance(len(chosen))
            continue
        questions = [trial.question for trial in chosen]
        prompts = list(make_prompts(questions, task, tokenizer, settings, retriever="file"))
        examples = prompt_examples(questions, prompts)
        lengths = fit_buckets((len(example.source) for example in examples), prompting.max_length)
        for places, batch in prediction_batches(examples, rows=dict.fromkeys(lengths, batch_size), own=own_rows):
            if seen + len(places) > done:
                answers = rate([questions[place] for place in places], batch.source)
                yield RatedBatch(
                    seen, [chosen[place] for place in places], [prompts[place] for place in places], answers
                )
            seen += len(places)
            advance(len(places))


def metric_rater(answerer: Answerer, params: Any, task: Task, *, compatibility: Compatibility) -> Rate:
    """Function that generates an answer to each prompt, and scores it with the task's metrics if a reference exists."""

    def rate(questions: Sequence[Question], source: np.ndarray) -> list[RatedAnswer]:
        texts = answerer(params, place_batch(source))[: len(questions)]
        references = {str(number): one.output for number, one in enumerate(questions) if one.output is not None}
        answers = {key: texts[int(key)] for key in references}
        metrics = score(task, answers, references, compatibility=compatibility).per_sample if references else {}
        return [
            (text, {name: values[str(number)] for name, values in metrics.items() if str(number) in values})
            for number, text in enumerate(texts)
        ]

    return rate


def likelihood_rater(
    graph: nnx.GraphDef,
    params: Any,
    tokenizer: Any,
    trials: Sequence[Trial],
    *,
    answering: Answering,
    batch_size: int,
) -> Rate:
    """Function that measures the mean log-probability of the reference's tokens after each prompt, without
    generation."""
    references = {trial.question.id: reference_of(trial.question) for trial in trials}
    longest = answering.generation_max_length - 1
    tokens = tokenizer(list(references.values()), truncation=True, max_length=longest).input_ids if references else []
    rows = dict(zip(references, tokens, strict=True))
    # One target length for all batches, so that a program is compiled per length of prompts only.
    length = -(-max(map(len, tokens), default=0) // 16) * 16

    def rate(questions: Sequence[Question], source: np.ndarray) -> list[RatedAnswer]:
        target = pad_rows([rows[one.id] for one in questions], batch_size, length)
        target = target[own_rows(batch_size)]
        values = read(_measure(graph, params, *place_batch((source, target))))
        return [(None, {LIKELIHOOD: float(value)}) for value in values[: len(questions)]]

    return rate


@partial(jax.jit, static_argnums=0)  # of the module: several calls of one model compile a program once
def _measure(graph: nnx.GraphDef, params: Any, source: jax.Array, target: jax.Array) -> jax.Array:
    return mean_log_probability(nnx.merge(graph, params), source, target)
