"""`lamp train-retriever`: a dual encoder trained on a generator's feedback on items."""

import dataclasses
from functools import partial
from pathlib import Path

import jax

from lamp_jax.config import SCRATCH
from lamp_jax.errors import LampError
from lamp_jax.inputs.retriever import read_scored_questions
from lamp_jax.options.retriever import TrainRetriever
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.sharding import open_mesh
from lamp_jax.tasks.catalog import find_task
from lamp_jax.training.divergence import check_converging
from lamp_jax.training.loop import check_learning
from lamp_jax.training.retriever import (
    FILES,
    check_retriever_training,
    choose_form,
    divide,
    find_start,
    train_retriever,
)


@guard_outputs
def run(options: TrainRetriever) -> None:
    task = find_task(options.task)
    if options.validation and not options.validation_feedback:
        raise LampError("--validation: give its feedback too, --validation-feedback")
    check_retriever_training(options)
    files = [options.questions, options.validation, *options.feedback, *options.validation_feedback]
    inputs = [name for name in files if name] + [options.encoder] * (options.encoder != SCRATCH)
    record = reserve(options.output, options, inputs=inputs, directory=True, makes=FILES)
    if record.state == "done":
        return print(f"{options.output}: already trained")
    check_converging(record.target)
    mesh = open_mesh(options.devices)
    check_learning(options.learning, mesh)
    read = partial(read_scored_questions, options, task, compatibility=options.compatibility)
    scored = read(options.questions, options.feedback)
    validation = read(options.validation, options.validation_feedback) if options.validation else []
    divided = divide(options, scored, validation, name=options.questions)
    start = find_start(options.encoder)
    settings = choose_form(options, start)
    record.begin()
    with jax.set_mesh(mesh):
        before, progress = train_retriever(
            options,
            task,
            divided.train,
            divided.validation,
            start,
            settings,
            output=Path(record.target),
            devices=options.devices,
        )
    facts = {"questions": len(divided.train), "skipped_equal_rewards": divided.skipped, "before": before}
    facts["encoder"] = dataclasses.asdict(settings)
    record.finish(**facts, **dataclasses.asdict(progress))
    print(
        f"{options.output}: learned from {len(divided.train)} questions ({divided.skipped} with equal rewards for "
        f"all items were skipped); mean reward of the first {options.reward_at} items on {len(divided.validation)} "
        f"held-out questions: {before:.4f} before, {progress.best:.4f} at step {progress.best_step}"
    )
