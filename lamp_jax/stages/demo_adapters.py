"""`lamp demo --stages adapters`: a LoRA adapter per user compared with retrieval from the profile, and with both."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy.stats import spearmanr

from lamp_jax.data.files import Question, add_outputs, read_outputs, read_questions, write_questions
from lamp_jax.options.adapters import TrainAdapters
from lamp_jax.options.data import Synth
from lamp_jax.options.demo import Demo
from lamp_jax.options.generator import Train
from lamp_jax.runs.json_files import write_json
from lamp_jax.runs.processes import on_first
from lamp_jax.stages import synth, train_adapters
from lamp_jax.stages.comparison import Order, compare, report
from lamp_jax.stages.demo_pages import read_page
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.comparison import Against

_FEW, _MANY = 10, 50  # profile items


def run(options: Demo, generator: Train) -> None:
    output, task = Path(options.output) / "adapters", find_task(generator.task)
    training = practice(options)
    on_first(lambda: make_questions(options, training))
    train_adapters.run(training)
    questions = read_questions(training.questions, task=task)
    orders = {
        "none": Order(questions, "none"),
        "rag": Order(questions, "bm25"),
        "peft": Order(questions, "none", training.output),
        "rag+peft": Order(questions, "bm25", training.output),
    }
    scores = compare(generator, task, orders, output)
    groups = {question.id: {"group": group_of(question)} for question in questions}
    tests = [Against("none"), Against("rag")]
    text = report(scores, task, questions, output, oracle=groups, tests=tests, seed=options.seed)
    found = correlate(questions, {name: one.samples for name, one in scores.items()})
    on_first(lambda: write_json(output / "correlation.json", found))
    print(text)
    correlation = "none, all gain alike" if found["rho"] is None else f"{found['rho']:.2f}, p {found['p']:.2g}"
    print(f"a user's number of items and what the adapter gains: Spearman's rho {correlation}")


def correlate(questions: Sequence[Question], samples: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    """Spearman's correlation of a user's number of items and the adapter's gain; None where either is constant."""
    items = [len(question.profile) for question in questions]
    gains = [samples["peft"][question.id] - samples["none"][question.id] for question in questions]
    if len(set(gains)) < 2 or len(set(items)) < 2:
        return {"rho": None, "p": None, "users": len(questions)}
    rho, p = spearmanr(items, gains)
    return {"rho": float(rho), "p": float(p), "users": len(questions)}  # pyright: ignore[reportArgumentType]


def group_of(question: Question) -> str:
    """Group of the users with a similar number of profile items."""
    items = len(question.profile)
    return f"1 to {_FEW - 1}" if items < _FEW else f"{_FEW} to {_MANY - 1}" if items < _MANY else f"from {_MANY}"


def make_questions(options: Demo, training: TrainAdapters) -> None:
    """Writes questions of users on whom the model was not trained, with few to many profile items."""
    benchmark = read_page("adapters_data", Synth, options)
    synth.run(benchmark)
    data = Path(benchmark.output)
    questions = read_questions(data / "dev_questions.json", task=find_task(benchmark.task))
    write_questions(training.questions, add_outputs(questions, read_outputs(data / "dev_outputs.json").by_id))


def practice(options: Demo) -> TrainAdapters:
    """Options of the adapters' training."""
    return read_page("adapters", TrainAdapters, options)
