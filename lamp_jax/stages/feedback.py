"""Collection of feedback of both kinds: answers scored batch by batch and appended, in shards that can resume."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import jax
from flax import nnx
from tqdm.auto import tqdm

from lamp_jax.artifacts.feedback import FeedbackKind, feedback_record, shard_file
from lamp_jax.config import Prompting
from lamp_jax.decoding.answers import Answerer
from lamp_jax.decoding.feedback import Trial, likelihood_rater, metric_rater, rate_trials
from lamp_jax.decoding.generation import open_generation
from lamp_jax.distributed import stop_if_asked
from lamp_jax.errors import LampError
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.families import check_generator_tokenizer, load_generator
from lamp_jax.options.feedback import FeedbackItems, FeedbackRetrievers
from lamp_jax.runs.journals import Journal, count_entries
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.records import RunRecord
from lamp_jax.runs.workers import parallel_map
from lamp_jax.sharding import check_divides, model_options, open_mesh
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.rewards import Reward

Options = FeedbackItems | FeedbackRetrievers


def check_shards(options: Options) -> None:
    """LampError for a shard out of range, and for `--force` with several shards, which would remove the others."""
    if not 0 <= options.shard < options.shards:
        raise LampError(f"--shard {options.shard}: shards are numbered from 0 to {options.shards - 1}")
    if options.force and options.shards > 1:
        raise LampError(f"{options.output}: --force would remove the other shards' work too; remove it by hand")


def shard_part(options: Options) -> str:
    """Name of a shard's reservation of the output directory, which several shards share."""
    return f"-{options.shard}" if options.shards > 1 else ""


def collect(
    options: Options,
    record: RunRecord,
    trials: Callable[[], list[Trial]],
    counts: Sequence[int],
    *,
    kind: FeedbackKind,
    prompting: Prompting,
    reward: Reward = "metric",
) -> bool:
    """Collects the feedback on the trials of this shard; True once all shards are complete.

    Otherwise prints that other shards are not. `trials` returns this shard's trials; `counts` has the number of trials
    of every shard.
    """
    if record.state == "done":
        return True

    def path(shard: int) -> Path:
        return record.target / shard_file(kind, shard, options.shards)

    task, tokenizer = find_task(options.task), load_tokenizer(options.model)
    check_generator_tokenizer(tokenizer, options.model)
    with jax.set_mesh(open_mesh(options.devices)):
        check_divides("--batch-size", options.batch_size, "data")
        graph, params = nnx.split(load_generator(options.model, **model_options(options.devices)))
        own_trials = trials()
        if reward == "likelihood":
            answering, size = options.answering, options.batch_size
            rate = likelihood_rater(graph, params, tokenizer, own_trials, answering=answering, batch_size=size)
        else:
            generation = open_generation(options.model, options.answering)
            answerer = Answerer(graph, tokenizer, task, options.answering, generation=generation)
            rate = metric_rater(answerer, params, task, compatibility=options.compatibility)
        record.begin()
        with (
            closing(Journal(path(options.shard))) as journal,
            tqdm(total=len(own_trials), desc="feedback", unit="prompt", disable=None) as bar,
        ):
            done = len(journal.entries)
            batches = rate_trials(
                own_trials,
                rate,
                task,
                tokenizer,
                prompting=prompting,
                batch_size=options.batch_size,
                compatibility=options.compatibility,
                done=done,
                advance=bar.update,
            )
            for batch in batches:
                if done > batch.first:
                    journal.keep(batch.first)  # removes an incomplete batch
                journal.append(
                    feedback_record(kind, trial.names, prompt.text, *answer)
                    for trial, prompt, answer in zip(batch.trials, batch.prompts, batch.answers, strict=True)
                )
                stop_if_asked()

    def all_there() -> bool:
        paths = [path(shard).absolute() for shard in range(options.shards)]
        begun = [path for path in paths if path.exists()]
        size = sum(path.stat().st_size for path in begun)
        counted = dict(zip(begun, parallel_map(count_entries, begun, options.work, size=size), strict=True))
        return [counted.get(path, 0) for path in paths] == list(counts)

    if not on_first(all_there):
        print(f"{options.output}: shard {options.shard} of {options.shards} is done, others are not")
        return False
    return True
