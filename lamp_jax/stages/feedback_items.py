"""`lamp feedback items`: a generator's feedback on single profile items, the training data of a retriever."""

from dataclasses import replace

from lamp_jax.artifacts.feedback import first_pairs, read_shards, write_reference
from lamp_jax.config import Prompting
from lamp_jax.data.chunks import stream_first_items
from lamp_jax.data.files import Question
from lamp_jax.decoding.feedback import Trial
from lamp_jax.decoding.generation import read_generation
from lamp_jax.inputs.generator import reference_of
from lamp_jax.options.feedback import FeedbackItems
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.stages.feedback import check_shards, collect, shard_part
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.metrics import check_references


@guard_outputs
def run(options: FeedbackItems) -> None:
    check_shards(options)
    inputs, ignore = [options.merged, options.model], ["shard", "export_reference", "work"]
    beside = {"reference": options.export_reference}
    record = reserve(
        options.output,
        options,
        inputs=inputs,
        ignore=ignore,
        directory=True,
        makes=["items-*-of-*.jsonl"],
        beside=beside,
        shard=shard_part(options),
    )
    questions, counts = _read_shard(options)

    def trials() -> list[Trial]:
        return [
            Trial(replace(pair.question, profile=(pair.question.profile[pair.rank],)), pair.names)
            for pair in first_pairs(questions, options.profile_size)
        ]

    prompting = Prompting(num_retrieved=1, max_length=options.max_length)
    if not collect(options, record, trials, counts, kind="items", prompting=prompting, reward=options.reward):
        return
    if options.export_reference:
        records = read_shards(record.target, "items", options.shards)
        on_first(lambda: write_reference(record.beside("reference"), records))
    if options.export_reference or record.state != "done":
        generated = options.reward == "metric"
        facts = {"generation": read_generation(options.model, options.answering).facts} if generated else {}
        record.finish(**facts)
    print(f"{options.output}: feedback on {sum(counts)} pairs of question and item")


def _read_shard(options: FeedbackItems) -> tuple[list[Question], list[int]]:
    """Questions of this shard with their first items, and the number of pairs of every shard.

    LampError as read_questions, and for a question without reference.
    """
    task, size = find_task(options.task), options.profile_size
    questions: list[Question] = []
    references: dict[str, str] = {}
    counts = [0] * options.shards
    patches, path = options.compatibility.patches, options.merged
    for index, question in enumerate(stream_first_items(path, size, task=task, patches=patches, work=options.work)):
        references[question.id] = reference_of(question, path)
        counts[index % options.shards] += sum(1 for _ in first_pairs([question], size))
        if index % options.shards == options.shard:
            questions.append(question)
    if options.reward == "metric":
        check_references(task, references, path=path)
    return questions, counts
