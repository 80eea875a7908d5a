"""`lamp feedback items`: what a generator makes of each profile item alone; from it a retriever learns."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from lamp_jax.config import FeedbackItems, Prompting, Prompts
from lamp_jax.data.feedback import Pair, feedback_record, first_pairs, read_records, shard_file, write_reference
from lamp_jax.data.files import Question, read_questions
from lamp_jax.data.records import Journal, Record, claim, read_journal
from lamp_jax.decoding.answers import Answerer
from lamp_jax.decoding.labels import mean_log_probability
from lamp_jax.errors import LampError
from lamp_jax.inputs.batches import choose_buckets, pad_rows, prediction_batches
from lamp_jax.inputs.examples import gold_of, make_prompts, prompt_examples
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.weights import load_t5
from lamp_jax.sharding import model_layout, open_mesh, place_batch
from lamp_jax.tasks.catalog import Task, find_task
from lamp_jax.tasks.metrics import score
from lamp_jax.tasks.rewards import LIKELIHOOD

# Batches whose prompts are built and sorted by length together: a resumed run builds no more than these again.
_WINDOW = 256

Answer = tuple[str | None, dict[str, float]]
"""What was generated (None where nothing was), and its metrics."""
Rate = Callable[[Sequence[Pair], np.ndarray], list[Answer]]
"""Pairs and their prompts [B, S], of which the rows behind the pairs only fill the batch -> an answer for each pair."""


def run(options: FeedbackItems) -> None:
    task = find_task(options.task)
    if not 0 <= options.shard < options.shards:
        raise LampError(f"--shard {options.shard}: shards are numbered from 0 to {options.shards - 1}")
    if options.force and options.shards > 1:
        raise LampError(f"{options.output}: --force would remove the other shards' work too; remove it by hand")
    inputs, ignore = [options.merged, options.model], ["shard", "export_reference"]
    record = claim(options.output, options, inputs=inputs, ignore=ignore, directory=True)
    questions = read_questions(options.merged, task=task)
    for question in questions:
        gold_of(question, options.merged)
    if record.state != "done":
        _make(options, task, questions, record)
        if not all(_is_whole(options, questions, shard) for shard in range(options.shards)):
            return print(f"{options.output}: shard {options.shard} of {options.shards} is done, others are not")
        record.finish()
    if options.export_reference:
        write_reference(options.export_reference, questions, read_records(options.output))
    pairs = sum(1 for _ in first_pairs(questions, options.profile_size))
    print(f"{options.output}: feedback on {pairs} pairs of question and item")


def _make(options: FeedbackItems, task: Task, questions: Sequence[Question], record: Record) -> None:
    tokenizer = load_tokenizer(options.model)
    with jax.set_mesh(open_mesh(options.devices)):
        graph, params = nnx.split(load_t5(options.model, **model_layout(options.devices)))
        rate = (_likelihoods if options.reward == "likelihood" else _metrics)(options, task, tokenizer, graph, params)
        record.begin()
        with closing(Journal(_path(options, options.shard))) as journal:
            rate_pairs(_pairs(options, questions, options.shard), rate, tokenizer, options, journal)


def rate_pairs(pairs: Sequence[Pair], rate: Rate, tokenizer: Any, options: FeedbackItems, journal: Journal) -> None:
    """Appends a record for every pair, batch by batch; the batches are a function of the list of pairs alone.

    So a run that was killed goes on behind its last whole batch and ends with the same bytes.
    """
    task = find_task(options.task)
    prompting = Prompting(num_retrieved=1, max_length=options.max_length)
    told = Prompts("", "", "", "", prompting=prompting, compatibility=options.compatibility)
    done, seen = len(journal.entries), 0
    rows = dict.fromkeys(choose_buckets(options.max_length), options.batch_size)
    window = _WINDOW * options.batch_size
    with tqdm(total=len(pairs), desc="feedback", unit="pair", disable=None) as bar:
        for start in range(0, len(pairs), window):
            part = pairs[start : start + window]
            if seen + len(part) <= done:
                seen += len(part)
                bar.update(len(part))
                continue
            alone = [replace(question, profile=(question.profile[rank],)) for question, rank in part]
            prompts = make_prompts(alone, task, tokenizer, told, retriever="file")
            examples = prompt_examples(alone, prompts)
            for places, batch in prediction_batches(examples, rows=rows):
                if seen + len(places) > done:
                    if done > seen:
                        journal.keep(seen)  # a batch that was cut in the middle
                    chosen = [part[place] for place in places]
                    answers = rate(chosen, batch.source)
                    journal.append(feedback_record(pair, *one) for pair, one in zip(chosen, answers, strict=True))
                seen += len(places)
                bar.update(len(places))


def _metrics(options: FeedbackItems, task: Task, tokenizer: Any, graph: nnx.GraphDef, params: Any) -> Rate:
    answerer = Answerer(graph, tokenizer, task, options.answering)

    def rate(pairs: Sequence[Pair], source: np.ndarray) -> list[Answer]:
        texts = answerer(params, place_batch(source))[: len(pairs)]
        keys = [str(number) for number in range(len(pairs))]
        golds = dict(zip(keys, (gold_of(pair.question) for pair in pairs), strict=True))
        scores = score(task, dict(zip(keys, texts, strict=True)), golds, compatibility=options.compatibility)
        return [
            (text, {name: values[key] for name, values in scores.per_sample.items()})
            for key, text in zip(keys, texts, strict=True)
        ]

    return rate


def _likelihoods(options: FeedbackItems, task: Task, tokenizer: Any, graph: nnx.GraphDef, params: Any) -> Rate:
    longest = options.answering.generation_max_length - 1
    measure = jax.jit(lambda params, source, target: mean_log_probability(nnx.merge(graph, params), source, target))

    def rate(pairs: Sequence[Pair], source: np.ndarray) -> list[Answer]:
        golds = [gold_of(pair.question) for pair in pairs]
        rows = tokenizer(golds, truncation=True, max_length=longest).input_ids
        # Lengths that are multiples of 16, so that few shapes are compiled.
        target = pad_rows(rows, len(source), -(-max(map(len, rows)) // 16) * 16)
        values = np.asarray(measure(params, *place_batch((source, target))))
        return [(None, {LIKELIHOOD: float(value)}) for value in values[: len(pairs)]]

    return rate


def _pairs(options: FeedbackItems, questions: Sequence[Question], shard: int) -> list[Pair]:
    return list(first_pairs(questions[shard :: options.shards], options.profile_size))


def _path(options: FeedbackItems, shard: int) -> Path:
    return Path(options.output) / shard_file(shard, options.shards)


def _is_whole(options: FeedbackItems, questions: Sequence[Question], shard: int) -> bool:
    return sum(1 for _ in read_journal(_path(options, shard))) == len(_pairs(options, questions, shard))
