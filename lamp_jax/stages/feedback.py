"""What both kinds of feedback share: a generator is asked and scored batch by batch, appended, resumed, in shards."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from lamp_jax.artifacts.feedback import Kind, feedback_record, shard_file
from lamp_jax.config import Prompting
from lamp_jax.data.files import Question
from lamp_jax.decoding.answers import Answerer
from lamp_jax.decoding.generation import open_generation
from lamp_jax.decoding.labels import mean_log_probability
from lamp_jax.distributed import read, stop_if_asked
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import choose_buckets, pad_rows, prediction_batches
from lamp_jax.inputs.generator import gold_of, make_prompts, prompt_examples
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.families import check_generator_tokenizer, load_generator
from lamp_jax.options.feedback import FeedbackItems, FeedbackRetrievers
from lamp_jax.options.retrieval import Prompts
from lamp_jax.runs.journals import Journal, read_journal
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.records import RunRecord
from lamp_jax.sharding import check_divides, model_layout, open_mesh, own_rows, place_batch
from lamp_jax.tasks.catalog import Task, find_task
from lamp_jax.tasks.metrics import score
from lamp_jax.tasks.rewards import LIKELIHOOD, Reward

# Batches whose prompts are built and sorted by length together: a resumed run builds no more than these again.
_WINDOW = 256

Answer = tuple[str | None, dict[str, float]]
"""What was generated (None where nothing was), and its metrics."""
Rate = Callable[[Sequence[Question], np.ndarray], list[Answer]]
"""A batch's questions and this process's rows of their prompts [B, S], of which some only fill it -> their answers."""
Options = FeedbackItems | FeedbackRetrievers


class Trial(NamedTuple):
    """A question whose profile is what its prompt shall hold, and what names its record."""

    question: Question
    names: dict[str, Any]


def check_shards(options: Options) -> None:
    """LampError for a shard that there is not, and where a start from anew would remove what others made."""
    if not 0 <= options.shard < options.shards:
        raise LampError(f"--shard {options.shard}: shards are numbered from 0 to {options.shards - 1}")
    if options.force and options.shards > 1:
        raise LampError(f"{options.output}: --force would remove the other shards' work too; remove it by hand")


def shard_part(options: Options) -> str:
    """The name of the shard's reservation of the directory that it fills with others."""
    return f"-{options.shard}" if options.shards > 1 else ""


def collect(
    options: Options,
    record: RunRecord,
    trials: Callable[[int], list[Trial]],
    *,
    kind: Kind,
    prompting: Prompting,
    reward: Reward = "metric",
) -> bool:
    """Makes this shard's feedback, on what `trials` gives for its number; True once that of all shards is there.

    Otherwise the user is told that others are missing.
    """
    if record.state == "done":
        return True

    def path(shard: int) -> Path:
        return record.place / shard_file(kind, shard, options.shards)

    task, tokenizer = find_task(options.task), load_tokenizer(options.model)
    check_generator_tokenizer(tokenizer, options.model)
    with jax.set_mesh(open_mesh(options.devices)):
        check_divides("--batch-size", options.batch_size, "data")
        graph, params = nnx.split(load_generator(options.model, **model_layout(options.devices)))
        mine = trials(options.shard)
        rate = (_likelihoods if reward == "likelihood" else _metrics)(options, task, tokenizer, graph, params, mine)
        record.begin()
        with closing(Journal(path(options.shard))) as journal:
            _rate_all(options, mine, rate, tokenizer, journal, kind=kind, prompting=prompting)

    def all_there() -> bool:
        return all(sum(1 for _ in read_journal(path(shard))) == len(trials(shard)) for shard in range(options.shards))

    if not on_first(all_there):
        print(f"{options.output}: shard {options.shard} of {options.shards} is done, others are not")
        return False
    return True


def _rate_all(
    options: Options,
    trials: Sequence[Trial],
    rate: Rate,
    tokenizer: Any,
    journal: Journal,
    *,
    kind: Kind,
    prompting: Prompting,
) -> None:
    """Appends a record for every trial, batch by batch; the batches are a function of the list of trials alone.

    So a run that was killed goes on behind its last whole batch and ends with the same bytes.
    """
    task = find_task(options.task)
    told = Prompts("", "", "", "", prompting=prompting, compatibility=options.compatibility)
    done, seen = len(journal.entries), 0
    rows = dict.fromkeys(choose_buckets(prompting.max_length), options.batch_size)
    window = _WINDOW * options.batch_size
    with tqdm(total=len(trials), desc="feedback", unit="prompt", disable=None) as bar:
        for start in range(0, len(trials), window):
            part = trials[start : start + window]
            if seen + len(part) <= done:
                seen += len(part)
                bar.update(len(part))
                continue
            questions = [trial.question for trial in part]
            prompts = list(make_prompts(questions, task, tokenizer, told, retriever="file"))
            for places, batch in prediction_batches(prompt_examples(questions, prompts), rows=rows, own=own_rows):
                if seen + len(places) > done:
                    if done > seen:
                        journal.keep(seen)  # a batch that was cut in the middle
                    answers = rate([questions[place] for place in places], batch.source)
                    journal.append(
                        feedback_record(kind, part[place].names, prompts[place].text, *answer)
                        for place, answer in zip(places, answers, strict=True)
                    )
                    stop_if_asked()
                seen += len(places)
                bar.update(len(places))


def _metrics(
    options: Options, task: Task, tokenizer: Any, graph: nnx.GraphDef, params: Any, trials: Sequence[Trial]
) -> Rate:
    generation = open_generation(options.model, options.answering)
    answerer = Answerer(graph, tokenizer, task, options.answering, generation=generation)

    def rate(questions: Sequence[Question], source: np.ndarray) -> list[Answer]:
        texts = answerer(params, place_batch(source))[: len(questions)]
        golds = {str(number): one.output for number, one in enumerate(questions) if one.output is not None}
        answers = {key: texts[int(key)] for key in golds}
        metrics = score(task, answers, golds, compatibility=options.compatibility).per_sample if golds else {}
        return [
            (text, {name: values[str(number)] for name, values in metrics.items() if str(number) in values})
            for number, text in enumerate(texts)
        ]

    return rate


def _likelihoods(
    options: Options, task: Task, tokenizer: Any, graph: nnx.GraphDef, params: Any, trials: Sequence[Trial]
) -> Rate:
    longest = options.answering.generation_max_length - 1

    golds = {trial.question.id: gold_of(trial.question) for trial in trials}
    tokens = tokenizer(list(golds.values()), truncation=True, max_length=longest).input_ids if golds else []
    rows = dict(zip(golds, tokens, strict=True))
    # One length for all batches, so that a program is compiled for each length of prompts alone.
    length = -(-max(map(len, tokens), default=0) // 16) * 16
    measure = jax.jit(lambda params, source, target: mean_log_probability(nnx.merge(graph, params), source, target))

    def rate(questions: Sequence[Question], source: np.ndarray) -> list[Answer]:
        target = pad_rows([rows[one.id] for one in questions], options.batch_size, length)
        target = target[own_rows(options.batch_size)]
        values = read(measure(params, *place_batch((source, target))))
        return [(None, {LIKELIHOOD: float(value)}) for value in values[: len(questions)]]

    return rate
