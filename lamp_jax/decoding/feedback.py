"""Feedback of a generator: prompts are answered and scored batch by batch, in an order of their own."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from lamp_jax.config import Answering, Compatibility, Prompting
from lamp_jax.data.files import Question
from lamp_jax.decoding.answers import Answerer
from lamp_jax.decoding.labels import mean_log_probability
from lamp_jax.distributed import read
from lamp_jax.inputs.batches import choose_buckets, pad_rows, prediction_batches
from lamp_jax.inputs.generator import gold_of, make_prompts, prompt_examples
from lamp_jax.settings import PromptSettings
from lamp_jax.sharding import own_rows, place_batch
from lamp_jax.tasks.catalog import Task
from lamp_jax.tasks.metrics import score
from lamp_jax.tasks.prompts import Prompt
from lamp_jax.tasks.rewards import LIKELIHOOD

# Batches whose prompts are built and sorted by length together: a resumed run builds no more than these again.
_WINDOW = 256

RatedAnswer = tuple[str | None, dict[str, float]]
"""What was generated (None where nothing was), and its metrics."""
Rate = Callable[[Sequence[Question], np.ndarray], list[RatedAnswer]]
"""A batch's questions and this process's rows of their prompts [B, S], of which some only fill it -> their answers."""


class Trial(NamedTuple):
    """A question whose profile is what its prompt shall hold, and what names its record."""

    question: Question
    names: dict[str, Any]


class RatedBatch(NamedTuple):
    """Trials that were answered together."""

    first: int
    """Trials that were answered before them."""
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
    """The trials, batch by batch, each once; batches that the first `done` trials fill are left out.

    The batches are a function of the list of trials alone, so that a run that was killed resumes after its last
    complete batch. `advance` is told of every batch how many trials it has.
    """
    told = PromptSettings(prompting=prompting, compatibility=compatibility)
    rows = dict.fromkeys(choose_buckets(prompting.max_length), batch_size)
    window, seen = _WINDOW * batch_size, 0
    for start in range(0, len(trials), window):
        part = trials[start : start + window]
        if seen + len(part) <= done:
            seen += len(part)
            advance(len(part))
            continue
        questions = [trial.question for trial in part]
        prompts = list(make_prompts(questions, task, tokenizer, told, retriever="file"))
        for places, batch in prediction_batches(prompt_examples(questions, prompts), rows=rows, own=own_rows):
            if seen + len(places) > done:
                answers = rate([questions[place] for place in places], batch.source)
                yield RatedBatch(seen, [part[place] for place in places], [prompts[place] for place in places], answers)
            seen += len(places)
            advance(len(places))


def metric_rater(answerer: Answerer, params: Any, task: Task, *, compatibility: Compatibility) -> Rate:
    """Generates an answer to each prompt, and scores it with the task's metrics where the gold is known."""

    def rate(questions: Sequence[Question], source: np.ndarray) -> list[RatedAnswer]:
        texts = answerer(params, place_batch(source))[: len(questions)]
        golds = {str(number): one.output for number, one in enumerate(questions) if one.output is not None}
        answers = {key: texts[int(key)] for key in golds}
        metrics = score(task, answers, golds, compatibility=compatibility).per_sample if golds else {}
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
    """Measures the mean log-probability of the gold's tokens after each prompt; nothing is generated."""
    golds = {trial.question.id: gold_of(trial.question) for trial in trials}
    longest = answering.generation_max_length - 1
    tokens = tokenizer(list(golds.values()), truncation=True, max_length=longest).input_ids if golds else []
    rows = dict(zip(golds, tokens, strict=True))
    # One length for all batches, so that a program is compiled for each length of prompts alone.
    length = -(-max(map(len, tokens), default=0) // 16) * 16
    measure = jax.jit(lambda params, source, target: mean_log_probability(nnx.merge(graph, params), source, target))

    def rate(questions: Sequence[Question], source: np.ndarray) -> list[RatedAnswer]:
        target = pad_rows([rows[one.id] for one in questions], batch_size, length)
        target = target[own_rows(batch_size)]
        values = read(measure(params, *place_batch((source, target))))
        return [(None, {LIKELIHOOD: float(value)}) for value in values[: len(questions)]]

    return rate
