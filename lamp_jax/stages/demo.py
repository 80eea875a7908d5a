"""`lamp demo`: a benchmark is made, a small T5 trained on it, and retrievers compared in one table."""

from dataclasses import dataclass, replace
from pathlib import Path

from lamp_jax.config import SCRATCH, Answering, Learning, Prompting
from lamp_jax.data.files import add_outputs, read_outputs, read_questions, write_questions
from lamp_jax.options.data import Synth
from lamp_jax.options.demo import Demo
from lamp_jax.options.generator import Scratch, Train
from lamp_jax.runs.json_files import read_json
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.stages import demo_adapters, demo_retriever, demo_selector, synth, train
from lamp_jax.stages.comparison import Against, Order, compare, report
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-2")
RETRIEVERS = ("none", "random", "recency", "bm25")


@dataclass(frozen=True)
class Size:
    """How much the demo does."""

    questions: int
    dev_questions: int
    profile_size: int
    epochs: float
    model: Scratch


SIZES = {
    "full": Size(
        2000, 1000, 24, 2, Scratch(64, 128, num_layers=2, num_decoder_layers=1, num_heads=2, vocab_size=1000, dropout=0)
    ),
    "smoke": Size(
        40, 20, 6, 1, Scratch(16, 32, num_layers=1, num_decoder_layers=1, num_heads=2, vocab_size=400, dropout=0)
    ),
}


_PREDICTIONS = ("predictions/*.json", "table.txt", "results.json")
_FILES = (*("data/", "model/", "train.json", "dev.json"), *_PREDICTIONS, *("retriever/", "selector/", "adapters/"))
_CHAPTER_FILES = (
    *("feedback/", "kd/", "rl/", "untrained/*", "rankings/*.json"),
    *("train/*.json", "dev/*.json", "train/feedback/", "dev/feedback/", "pre/", "post/"),
    *("data/", "questions.json", "store/", "correlation.json"),
    *_PREDICTIONS,
)

CHAPTERS = {"retriever": demo_retriever.run, "selector": demo_selector.run, "adapters": demo_adapters.run}
"""What `--stages` adds, each in a directory of its own."""


@guard_outputs
def run(options: Demo) -> None:
    record = reserve(options.output, options, inputs=[], ignore=["stages"], directory=True, makes=_FILES)
    if record.state == "done":
        print((record.output / "table.txt").read_text(encoding="utf-8"))
    else:
        record.begin()
        output = record.place
        experiment = prepare(record.redirect(options))
        train.run(experiment)
        questions = read_questions(experiment.validation, task=TASK)
        orders = {retriever: Order(questions, retriever) for retriever in experiment.retrievers}
        scores = compare(experiment, TASK, orders, output)
        oracle = read_json(output / "data" / "oracle.json")
        tests = [Against("none")]
        print(report(scores, TASK, questions, output, oracle=oracle, tests=tests, seed=options.seed))
        record.finish()
    for chapter in options.stages:
        tell(chapter, replace(options, force=False), training(options))


def tell(chapter: str, options: Demo, generator: Train) -> None:
    """Runs one of `CHAPTERS`, or shows the table of one that has run."""
    output = Path(options.output) / chapter
    # What the generator is follows from the demo's own record, which is done when this begins.
    settings = replace(options, output=str(output))
    ignore, makes = ["stages"], _CHAPTER_FILES
    record = reserve(output, settings, inputs=[generator.output], ignore=ignore, directory=True, makes=makes)
    if record.state == "done":
        return print((output / "table.txt").read_text(encoding="utf-8"))
    record.begin()
    CHAPTERS[chapter](options, generator)
    record.finish()


def prepare(options: Demo) -> Train:
    """Makes the files of the benchmark and returns the training that the demo does on them."""
    on_first(lambda: make_files(options))
    return training(options)


def make_files(options: Demo) -> None:
    """The benchmark, and its questions with their golds."""
    size, output = SIZES[options.size], Path(options.output)
    data = output / "data"
    synth.run(Synth(TASK.name, str(data), size.questions, size.dev_questions, size.profile_size, seed=options.seed))
    for split in ("train", "dev"):
        questions = read_questions(data / f"{split}_questions.json", task=TASK)
        merged = add_outputs(questions, read_outputs(data / f"{split}_outputs.json").by_id)
        write_questions(output / f"{split}.json", merged)


def training(options: Demo) -> Train:
    """The generator's training."""
    size, output = SIZES[options.size], Path(options.output)
    return Train(
        task=TASK.name,
        train=str(output / "train.json"),
        validation=str(output / "dev.json"),
        output=str(output / "model"),
        model=SCRATCH,
        scratch=size.model,
        retrievers=RETRIEVERS,
        prompting=Prompting(num_retrieved=4, max_length=192),
        learning=Learning(
            epochs=size.epochs,
            batch_size=16,
            learning_rate=2e-2,
            step_size="relative",
            warmup_ratio=0.1,
            weight_decay=0.0,
            evaluate_every=0.5,
        ),
        seed=options.seed,
        validation_size=200,
        answering=Answering(decode="labels"),
    )
