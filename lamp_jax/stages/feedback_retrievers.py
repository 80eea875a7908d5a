"""`lamp feedback retrievers`: a generator's feedback on retrievers, the training data of a selector."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from lamp_jax.config import Work
from lamp_jax.data.chunks import stream_first_items
from lamp_jax.data.files import Question, check_same_ids
from lamp_jax.decoding.feedback import Trial
from lamp_jax.decoding.generation import read_generation
from lamp_jax.errors import LampError
from lamp_jax.options.feedback import FeedbackRetrievers
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.stages.feedback import check_shards, collect, shard_part
from lamp_jax.tasks.catalog import Task, find_task
from lamp_jax.tasks.metrics import check_references

NO_RETRIEVER = "none"
"""Name of the retriever that retrieves nothing."""


@guard_outputs
def run(options: FeedbackRetrievers) -> None:
    check_shards(options)
    files = parse_pool(options.pool)
    record = reserve(
        options.output,
        options,
        inputs=[*filter(None, files.values()), options.model],
        ignore=["shard", "work"],
        directory=True,
        makes=["retrievers-*-of-*.jsonl"],
        shard=shard_part(options),
    )
    task = find_task(options.task)
    num_retrieved, patches = options.prompting.num_retrieved, options.compatibility.patches
    pool = read_orders(files, task, num_retrieved, patches=patches, work=options.work)
    references = {question.id: question.output for question in pool[next(iter(pool))] if question.output is not None}
    check_references(task, references, path=next(filter(None, files.values())))

    def trials() -> list[Trial]:
        """Trials of this shard: every question with each retriever in turn."""
        own = (questions[options.shard :: options.shards] for questions in pool.values())
        return [
            Trial(question, {"question": question.id, "retriever": name})
            for one in zip(*own, strict=True)
            for name, question in zip(pool, one, strict=True)
        ]

    count = len(next(iter(pool.values())))
    counts = [len(range(shard, count, options.shards)) * len(pool) for shard in range(options.shards)]
    if collect(options, record, trials, counts, kind="retrievers", prompting=options.prompting):
        if record.state != "done":
            record.finish(generation=read_generation(options.model, options.answering).facts)
        print(f"{options.output}: feedback of {count} questions on {len(pool)} retrievers ({', '.join(pool)})")


def parse_pool(entries: Sequence[str]) -> dict[str, str]:
    """Files by retriever name, in order, from entries `NAME=FILE` and `none` (file ""). LampError for other entries."""
    files: dict[str, str] = {}
    for entry in entries:
        name, _, file = entry.partition("=")
        if not name or bool(file) == (name == NO_RETRIEVER):
            raise LampError(
                f"--pool {entry}: give NAME=FILE, the questions in that retriever's order, or {NO_RETRIEVER}"
            )
        if name in files:
            raise LampError(f"--pool {entry}: {name!r} occurs twice; give each retriever a name of its own")
        files[name] = file
    if len(files) < 2 or not any(files.values()):
        raise LampError(f"--pool {' '.join(entries)}: give two retrievers or more, one of them with a file")
    return files


def read_orders(
    files: Mapping[str, str], task: Task, size: int, *, patches: Sequence[str], work: Work
) -> dict[str, list[Question]]:
    """Questions with the first `size` items in each retriever's order. LampError for files with different questions."""
    read = partial(stream_first_items, size=size, task=task, patches=patches, work=work)
    pool = {name: list(read(file)) for name, file in files.items() if file}
    first, asked = next(iter(pool.items()))
    for name, questions in pool.items():
        check_same_ids([q.id for q in asked], [q.id for q in questions], left=files[first], right=files[name])
        by_id = {question.id: question for question in questions}
        pool[name] = [by_id[question.id] for question in asked]
        for one, other in zip(asked, pool[name], strict=True):
            if (one.input, one.output) != (other.input, other.output):
                raise LampError(
                    f"{files[name]}: question {one.id!r} differs from that in {files[first]}, or has another "
                    "reference; merge the files of one pool from the same questions and outputs"
                )
    without_profiles = [replace(question, profile=()) for question in asked]
    return {name: pool.get(name, without_profiles) for name in files}
