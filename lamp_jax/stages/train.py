"""`lamp train`: a generator fine-tuned or trained from scratch on prompts, with the best checkpoint by validation."""

import dataclasses
from pathlib import Path

import jax

from lamp_jax.config import SCRATCH
from lamp_jax.data.sources import content_of, open_source
from lamp_jax.decoding.generation import DEFAULT_GENERATION, open_generation
from lamp_jax.errors import LampError
from lamp_jax.options.generator import Train
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.runs.workers import available_cores
from lamp_jax.sharding import open_mesh
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.metrics import main_metric
from lamp_jax.training.divergence import check_converging
from lamp_jax.training.generator import FILES, add_profile_targets, check_questions, train_generator
from lamp_jax.training.loop import check_learning

# Number of examples above which preparing them takes longer than starting processes.
_WORTH_PROCESSES = 5000


@guard_outputs
def run(options: Train) -> None:
    task = find_task(options.task)
    inputs = [content_of(path, task) for path in (options.train, options.validation)]
    inputs += [options.model] * (options.model != SCRATCH)
    record = reserve(options.output, options, inputs=inputs, ignore=["workers"], directory=True, makes=FILES)
    if record.state == "done":
        return print(f"{options.output}: already trained")
    check_converging(record.target)
    mesh = open_mesh(options.devices)
    check_learning(options.learning, mesh)
    if options.workers < 0:
        raise LampError(f"--workers {options.workers}: must be 0 or more")
    patches = options.compatibility.patches
    questions = open_source(options.train, task, patches)
    check_questions(questions, task, options.train)
    validation = open_source(options.validation, task, patches)
    check_questions(validation, task, options.validation, scored=True)
    questions = add_profile_targets(questions, task, newest=options.profile_targets)
    generation = DEFAULT_GENERATION if options.model == SCRATCH else open_generation(options.model, options.answering)
    record.begin()
    with jax.set_mesh(mesh):
        progress = train_generator(
            options,
            task,
            questions,
            validation,
            generation,
            model=options.model,
            output=Path(record.target),
            devices=options.devices,
            names=(options.train, options.validation),
            workers=_count_workers(options, len(questions)),
        )
    record.finish(**dataclasses.asdict(progress), generation=generation.facts)
    print(f"{options.output}: best {main_metric(task)} {progress.best:.4f} on validation, at step {progress.best_step}")


def _count_workers(options: Train, questions: int) -> int:
    """Number of processes that prepare examples; 0 (threads) for few questions, where starting them is slower."""
    return options.workers or (available_cores() if questions > _WORTH_PROCESSES else 0)
