"""`lamp demo --stages retriever`: dense retrievers trained on the generator's feedback (ROPG-KD, ROPG-RL).

They are to find relevant items that share no words with the question, which BM25 cannot.
"""

from dataclasses import replace
from pathlib import Path

from lamp_jax.data.files import read_questions
from lamp_jax.inputs.retriever import read_scored_questions
from lamp_jax.models.weights import save_bert
from lamp_jax.options.demo import Demo
from lamp_jax.options.feedback import FeedbackItems
from lamp_jax.options.generator import Train
from lamp_jax.options.retrieval import Rank
from lamp_jax.options.retriever import TrainRetriever
from lamp_jax.retrieval.encoders import write_settings
from lamp_jax.retrieval.ranking import RankingFile, apply_rankings
from lamp_jax.runs.json_files import read_json, write_json
from lamp_jax.runs.processes import on_first
from lamp_jax.stages import feedback_items, rank, train_retriever
from lamp_jax.stages.comparison import Order, compare, report
from lamp_jax.stages.demo_pages import read_page
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.comparison import Against
from lamp_jax.training.retriever import choose_form, find_start, prepare_model, prepare_tokenizer

HARD_GROUP = "hidden"
"""Group of the users whose relevant items share no words with their question."""


def run(options: Demo, generator: Train) -> None:
    output = Path(options.output) / "retriever"
    task = find_task(generator.task)
    feedback_items.run(read_page("feedback", FeedbackItems, options))
    untrained = output / "untrained"
    make_untrained(trainings(options)["ropg-kd"], untrained)
    for training in trainings(options).values():
        train_retriever.run(replace(training, encoder=str(untrained)))
    questions = read_questions(generator.validation, task=task)
    orders = {"none": Order(questions, "none")}
    for ranking in rankings(options, generator, untrained):
        rank.run(ranking)
        orders[Path(ranking.output).stem] = Order(apply_rankings(questions, RankingFile(ranking.output)), "file")
    scores = compare(generator, task, orders, output)
    oracle = read_json(Path(options.output) / "data" / "oracle.json")
    tests = [Against("dense", HARD_GROUP), Against("bm25", HARD_GROUP)]
    print(report(scores, task, questions, output, oracle=oracle, tests=tests, seed=options.seed))
    on_first(lambda: _add_rows(Path(options.output) / "results.json", output / "results.json"))


def trainings(options: Demo) -> dict[str, TrainRetriever]:
    """Options of ROPG-KD and ROPG-RL, with the same initial encoder and feedback."""
    return {f"ropg-{method}": read_page(f"ropg_{method}", TrainRetriever, options) for method in ("kd", "rl")}


def rankings(options: Demo, generator: Train, untrained: Path) -> list[Rank]:
    """Rankings to compare, named by their output files; `dense` is the untrained encoder."""
    folder = Path(options.output) / "retriever" / "rankings"
    plain = Rank(str(folder / "bm25.json"), generator.task, generator.validation, ranker="bm25")
    trained = trainings(options)
    encoders = {"dense": str(untrained), **{name: training.output for name, training in trained.items()}}
    length = trained["ropg-kd"].max_length
    dense = [
        replace(plain, ranker="dense", output=str(folder / f"{name}.json"), encoder=encoder, max_length=length)
        for name, encoder in encoders.items()
    ]
    recency = replace(plain, ranker="recency", output=str(folder / "recency.json"))
    fused = tuple(one.output for one in (plain, recency, dense[0]))
    rrf = replace(plain, ranker="rrf", output=str(folder / "rrf.json"), rankings=fused)
    return [plain, recency, dense[0], rrf, *dense[1:]]


def _add_rows(path: Path, other: Path) -> None:
    """Adds to a `results.json` the rows of another that it does not have."""
    content = read_json(path)
    known = {row["retriever"] for row in content["rows"]}
    content["rows"] += [row for row in read_json(other)["rows"] if row["retriever"] not in known]
    write_json(path, content)


def make_untrained(training: TrainRetriever, directory: Path) -> None:
    """Writes the initial encoder of both trainings to its own directory."""
    if on_first((directory / "model.safetensors").exists):
        return
    scored = read_scored_questions(
        training,
        find_task(training.task),
        training.questions,
        training.feedback,
        compatibility=training.compatibility,
    )
    start = find_start(training.encoder)
    settings = choose_form(training, start)
    tokenizer = prepare_tokenizer(training, start, scored, directory)
    model = prepare_model(training, start, settings, len(tokenizer), training.devices)
    save_bert(model, directory)
    on_first(lambda: write_settings(directory, settings, width=model.config.hidden_size))
