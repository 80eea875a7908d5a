"""`lamp feedback items`: a generator's feedback on single profile items, the training data of a retriever."""

from dataclasses import replace

from lamp_jax.artifacts.feedback import first_pairs, read_shards, write_reference
from lamp_jax.config import Prompting
from lamp_jax.data.files import read_questions
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
    inputs, ignore = [options.merged, options.model], ["shard", "export_reference"]
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
    questions = read_questions(options.merged, task=find_task(options.task), patches=options.compatibility.patches)
    references = {question.id: reference_of(question, options.merged) for question in questions}
    if options.reward == "metric":
        check_references(find_task(options.task), references, path=options.merged)

    def trials(shard: int) -> list[Trial]:
        return [
            Trial(replace(pair.question, profile=(pair.question.profile[pair.rank],)), pair.names)
            for pair in first_pairs(questions[shard :: options.shards], options.profile_size)
        ]

    prompting = Prompting(num_retrieved=1, max_length=options.max_length)
    if not collect(options, record, trials, kind="items", prompting=prompting, reward=options.reward):
        return
    if options.export_reference:
        records = read_shards(record.target, "items", options.shards)
        on_first(lambda: write_reference(record.beside("reference"), questions, records))
    if options.export_reference or record.state != "done":
        generated = options.reward == "metric"
        facts = {"generation": read_generation(options.model, options.answering).facts} if generated else {}
        record.finish(**facts)
    pairs = sum(1 for _ in first_pairs(questions, options.profile_size))
    print(f"{options.output}: feedback on {pairs} pairs of question and item")
