"""Comparison of one model's answers under several orders of the profiles.

Its files are `predictions/`, `results.json` and `table.txt`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from lamp_jax.data.files import Question, write_predictions
from lamp_jax.decoding.answering import answer, read_adapters
from lamp_jax.decoding.answers import Answerer
from lamp_jax.decoding.generation import open_generation
from lamp_jax.inputs.generator import make_prompts, prompt_examples, reference_of
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.families import check_generator_tokenizer, load_generator
from lamp_jax.options.generator import Train
from lamp_jax.runs.json_files import atomic_write, write_json
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.workers import available_cores
from lamp_jax.sharding import model_options, open_mesh
from lamp_jax.stages.generate import open_adapters, users_of
from lamp_jax.tasks.catalog import Task
from lamp_jax.tasks.comparison import Against, compare_row, format_table
from lamp_jax.tasks.metrics import Scores, score


class Order(NamedTuple):
    """Questions, the retriever that orders their profiles, and an adapter store (empty: the model without adapters)."""

    questions: Sequence[Question]
    retriever: str
    adapters: str = ""


def compare(experiment: Train, task: Task, orders: Mapping[str, Order], output: Path) -> dict[str, Scores]:
    """Scores of the trained model with the items of each order in the prompts. Writes the predictions."""
    tokenizer = load_tokenizer(experiment.output)
    check_generator_tokenizer(tokenizer, experiment.output)
    generation = open_generation(experiment.output, experiment.answering)
    scores = {}
    with jax.set_mesh(open_mesh(experiment.devices)):
        graph, params = nnx.split(load_generator(experiment.output, **model_options(experiment.devices)))
        answerers: dict[str, Answerer] = {}
        for name, (questions, retriever, adapters) in orders.items():
            store = open_adapters(adapters, experiment.output) if adapters else None
            if adapters not in answerers:
                lora = store and store.form.lora
                answerers[adapters] = Answerer(
                    graph, tokenizer, task, experiment.answering, generation=generation, lora=lora
                )
            prompts = make_prompts(
                questions, task, tokenizer, experiment, retriever=retriever, workers=available_cores()
            )
            answers = answer(
                prompt_examples(questions, prompts),
                answerers[adapters],
                params,
                batch_size=experiment.learning.batch_size,
                max_length=experiment.prompting.max_length,
                adapters=store and read_adapters(store, users_of(questions)),
            )
            on_first(partial(write_predictions, output / "predictions" / f"{name}.json", task, answers))
            references = {question.id: reference_of(question) for question in questions}
            scores[name] = score(task, answers, references, compatibility=experiment.compatibility)
    return scores


def report(
    scores: Mapping[str, Scores],
    task: Task,
    questions: Sequence[Question],
    output: Path,
    *,
    oracle: Mapping[str, Any],
    tests: Sequence[Against],
    seed: int,
    further: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Writes `results.json` and `table.txt` to `output`, and returns the table.

    `oracle` has the group of each question's user; `further` has more columns by title, with numbers of some rows.
    """
    groups: dict[str, list[str]] = {}
    for question in questions:
        groups.setdefault(oracle[question.id]["group"], []).append(question.id)
    ordered = dict(sorted(groups.items(), key=lambda one: (int((re.findall(r"\d+", one[0]) or [0])[0]), one[0])))
    rows = [
        compare_row(name, scores, ordered, tests)
        | {title: numbers.get(name) for title, numbers in (further or {}).items()}
        for name in scores
    ]
    text = format_table(rows, list(further or {}))
    direction = "higher is better" if task.higher_is_better else "lower is better"
    results = {"task": task.name, "direction": direction, "seed": seed, "rows": rows}
    on_first(partial(_write, output, text, results))
    return text


def _write(output: Path, text: str, results: Mapping[str, Any]) -> None:
    with atomic_write(output / "table.txt") as file:
        file.write(text + "\n")
    write_json(output / "results.json", results)
