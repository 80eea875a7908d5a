"""`lamp synth`: files of a synthetic benchmark, and its oracle."""

from lamp_jax.datasets.synthetic import FILES, write_benchmark
from lamp_jax.options.data import Synth
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.tasks.catalog import find_task


@guard_outputs
def run(options: Synth) -> None:
    task = find_task(options.task)
    record = reserve(options.output, options, inputs=[], directory=True, makes=FILES)
    if record.state == "done":
        return print(f"{options.output}: already made")
    record.begin()
    write_benchmark(
        task,
        record.target,
        questions=options.questions,
        dev_questions=options.dev_questions,
        profile_size=options.profile_sizes or options.profile_size,
        words=options.words,
        seed=options.seed,
    )
    record.finish()
    print(f"{options.output}: train and dev questions and outputs of {task.name}, and oracle.json")
