"""`lamp demo`: a small benchmark, a generator trained on it, and a table that compares retrievers."""

from dataclasses import replace
from pathlib import Path

from lamp_jax.compiled_programs import use_compilation_cache
from lamp_jax.data.files import add_outputs, read_outputs, read_questions, write_questions
from lamp_jax.options.data import Synth
from lamp_jax.options.demo import Demo
from lamp_jax.options.generator import Train
from lamp_jax.runs.json_files import read_json
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.stages import demo_adapters, demo_retriever, demo_selector, synth, train
from lamp_jax.stages.comparison import Order, compare, report
from lamp_jax.stages.demo_pages import page_paths, read_page
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.comparison import Against

_PREDICTIONS = ("predictions/*.json", "table.txt", "results.json")
_FILES = (*("data/", "model/", "train.json", "dev.json"), *_PREDICTIONS, *("retriever/", "selector/", "adapters/"))
_CHAPTER_FILES = (
    *("feedback/", "kd/", "rl/", "untrained/*", "rankings/*.json"),
    *("train/*.json", "dev/*.json", "train/feedback/", "dev/feedback/", "pre/", "post/"),
    *("data/", "questions.json", "store/", "correlation.json"),
    *_PREDICTIONS,
)

CHAPTERS = {"retriever": demo_retriever.run, "selector": demo_selector.run, "adapters": demo_adapters.run}
"""Chapters that `--stages` adds, each in its own directory."""


@guard_outputs
def run(options: Demo) -> None:
    use_compilation_cache(options.compilation_cache)
    record = reserve(options.output, options, inputs=page_paths(), ignore=["stages"], directory=True, makes=_FILES)
    if record.state == "done":
        print((record.output / "table.txt").read_text(encoding="utf-8"))
    else:
        record.begin()
        output = record.target
        experiment = prepare(record.redirect(options))
        train.run(experiment)
        task = find_task(experiment.task)
        questions = read_questions(experiment.validation, task=task)
        orders = {retriever: Order(questions, retriever) for retriever in experiment.retrievers}
        scores = compare(experiment, task, orders, output)
        oracle = read_json(output / "data" / "oracle.json")
        tests = [Against("none")]
        print(report(scores, task, questions, output, oracle=oracle, tests=tests, seed=options.seed))
        record.finish()
    for chapter in options.stages:
        run_chapter(chapter, replace(options, force=False), training(options))


def run_chapter(chapter: str, options: Demo, generator: Train) -> None:
    """Runs a chapter, or prints its table if it is finished."""
    output = Path(options.output) / chapter
    # The generator is determined by the demo's own run record, which is finished before a chapter begins.
    settings = replace(options, output=str(output))
    inputs, ignore = [generator.output, *page_paths(chapter)], ["stages"]
    record = reserve(output, settings, inputs=inputs, ignore=ignore, directory=True, makes=_CHAPTER_FILES)
    if record.state == "done":
        return print((output / "table.txt").read_text(encoding="utf-8"))
    record.begin()
    CHAPTERS[chapter](options, generator)
    record.finish()


def prepare(options: Demo) -> Train:
    """Writes the files of the benchmark, and returns the options of the demo's training on them."""
    on_first(lambda: make_files(options))
    return training(options)


def make_files(options: Demo) -> None:
    """Writes the benchmark, and its questions merged with their references."""
    benchmark, generator = read_page("data", Synth, options), training(options)
    synth.run(benchmark)
    task, data = find_task(benchmark.task), Path(benchmark.output)
    for split, merged in (("train", generator.train), ("dev", generator.validation)):
        questions = read_questions(data / f"{split}_questions.json", task=task)
        write_questions(merged, add_outputs(questions, read_outputs(data / f"{split}_outputs.json").by_id))


def training(options: Demo) -> Train:
    """Options of the generator's training."""
    return read_page("generator", Train, options)
