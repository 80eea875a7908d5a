"""`lamp demo --stages retriever`: dense retrievers learn from the demo's generator what BM25 cannot find."""

from dataclasses import dataclass, replace
from pathlib import Path

from lamp_jax.config import SCRATCH, Answering, Learning, ScratchEncoder
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
from lamp_jax.stages.comparison import Against, Order, compare, report
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.rewards import Reward

HARD_GROUP = "hidden"
"""The users whose relevant items share no words with their question."""


@dataclass(frozen=True)
class Size:
    """How much this part does."""

    profile_size: int
    kd_epochs: float
    rl_epochs: float
    encoder: ScratchEncoder
    reward: Reward = "metric"


SIZES = {
    "full": Size(16, 4, 8, ScratchEncoder(64, 128, num_layers=1, num_heads=2, vocab_size=1000, dropout=0)),
    "smoke": Size(2, 1, 1, ScratchEncoder(16, 32, num_layers=1, num_heads=2, vocab_size=300, dropout=0), "likelihood"),
}


def run(options: Demo, generator: Train) -> None:
    output = Path(options.output) / "retriever"
    task = find_task(generator.task)
    feedback_items.run(feedback(options, generator))
    untrained = output / "untrained"
    make_untrained(trainings(options, generator)["ropg-kd"], untrained)
    for training in trainings(options, generator).values():
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


def feedback(options: Demo, generator: Train) -> FeedbackItems:
    """The generator's feedback on the first items of the train questions, whose profiles are in random order."""
    return FeedbackItems(
        task=generator.task,
        merged=generator.train,
        model=generator.output,
        output=str(Path(options.output) / "retriever" / "feedback"),
        profile_size=SIZES[options.size].profile_size,
        reward=SIZES[options.size].reward,  # a model that has learned nothing is wrong with every item alike
        batch_size=64,
        max_length=128,
        answering=Answering(decode="labels"),
    )


def trainings(options: Demo, generator: Train) -> dict[str, TrainRetriever]:
    """ROPG-KD and ROPG-RL, from the same start on the same feedback."""
    size, output = SIZES[options.size], Path(options.output) / "retriever"
    kd = TrainRetriever(
        task=generator.task,
        questions=generator.train,
        feedback=(str(output / "feedback"),),
        output=str(output / "kd"),
        encoder=SCRATCH,
        scratch=size.encoder,
        reward=size.reward,
        profile_size=size.profile_size,
        use_date=False,
        max_length=64,
        learning=Learning(
            epochs=size.kd_epochs, batch_size=32, learning_rate=2e-2, step_size="relative", weight_decay=0.0
        ),
        seed=options.seed,
    )
    longer = replace(kd.learning, epochs=size.rl_epochs)
    rl = replace(kd, method="rl", gradient="expected", learning=longer, output=str(output / "rl"))
    return {"ropg-kd": kd, "ropg-rl": rl}


def rankings(options: Demo, generator: Train, untrained: Path) -> list[Rank]:
    """Everything that is compared, by the names of the output files; `dense` is the untrained encoder."""
    folder = Path(options.output) / "retriever" / "rankings"
    plain = Rank(str(folder / "bm25.json"), generator.task, generator.validation, ranker="bm25")
    encoders = {"dense": str(untrained)}
    encoders |= {name: training.output for name, training in trainings(options, generator).items()}
    dense = [
        replace(plain, ranker="dense", output=str(folder / f"{name}.json"), encoder=encoder, max_length=64)
        for name, encoder in encoders.items()
    ]
    recency = replace(plain, ranker="recency", output=str(folder / "recency.json"))
    fused = tuple(one.output for one in (plain, recency, dense[0]))
    rrf = replace(plain, ranker="rrf", output=str(folder / "rrf.json"), rankings=fused)
    return [plain, recency, dense[0], rrf, *dense[1:]]


def _add_rows(whole: Path, part: Path) -> None:
    """Adds the rows of one `results.json` to another, but for those that it has."""
    content = read_json(whole)
    known = {row["retriever"] for row in content["rows"]}
    content["rows"] += [row for row in read_json(part)["rows"] if row["retriever"] not in known]
    write_json(whole, content)


def make_untrained(training: TrainRetriever, directory: Path) -> None:
    """The encoder that both trainings start from, in a directory of its own."""
    if on_first((directory / "model.safetensors").exists):
        return
    scored = read_scored_questions(
        training,
        find_task(training.task),
        training.questions,
        training.feedback,
        compatibility=training.compatibility,
    )
    start = train_retriever.find_start(training)
    settings = train_retriever.choose_form(training, start)
    tokenizer = train_retriever.prepare_tokenizer(replace(training, output=str(directory)), start, scored)
    model = train_retriever.prepare_model(training, start, settings, len(tokenizer))
    save_bert(model, directory)
    on_first(lambda: write_settings(directory, settings, width=model.config.hidden_size))
