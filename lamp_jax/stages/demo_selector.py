"""`lamp demo --stages selector`: a small Longformer trained to select a retriever (RSPG-Pre, RSPG-Post)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

from lamp_jax.artifacts.selector import CandidateSet, read_candidates, write_candidates
from lamp_jax.config import SelectorMode
from lamp_jax.data.files import read_questions
from lamp_jax.options.demo import Demo
from lamp_jax.options.feedback import FeedbackRetrievers
from lamp_jax.options.generator import Train
from lamp_jax.options.retrieval import Merge, Rank
from lamp_jax.options.selector import Select, SelectorData, TrainSelector
from lamp_jax.retrieval.selector import success_rate
from lamp_jax.runs.json_files import read_json
from lamp_jax.runs.processes import on_first
from lamp_jax.stages import feedback_retrievers, merge, rank, select, selector_data, train_selector
from lamp_jax.stages.comparison import report
from lamp_jax.stages.demo_pages import read_page
from lamp_jax.tasks.comparison import Against
from lamp_jax.tasks.metrics import Scores, score

NO_RETRIEVER = feedback_retrievers.NO_RETRIEVER
RANKERS = ("recency", "bm25")
POOL = (NO_RETRIEVER, *RANKERS)
"""Retrievers to select from."""
FUSION = "rrf"
"""Retriever that is compared in addition."""
HELD_OUT = {"full": 200, "smoke": 10}
"""Number of train questions held out to select the best checkpoint, for each size of the demo."""


def run(options: Demo, generator: Train) -> None:
    output = Path(options.output) / "selector"
    make_candidates(generator, generator.train, output / "train", RANKERS)
    make_candidates(generator, generator.validation, output / "dev", (*RANKERS, FUSION))
    on_first(lambda: hold_out(output, HELD_OUT[options.size]))
    for training in trainings(options).values():
        train_selector.run(training)
    everything = read_candidates(output / "dev" / "candidates.json")
    data = everything.restrict(POOL, output)
    chosen = {name: {question.id: name for question in everything.questions} for name in everything.names}
    for name, choosing in choosers(options).items():
        chosen[name] = select.choose(choosing, data)
        path = output / "predictions" / f"{name}.json"
        on_first(partial(select.write_chosen, path, everything, chosen[name]))
    scores = {name: _score(everything, one, generator) for name, one in chosen.items()}
    success = {name: success_rate(data, one) for name, one in chosen.items() if name != FUSION}
    oracle, questions = read_json(Path(options.output) / "data" / "oracle.json"), read_questions(generator.validation)
    best = max(POOL, key=lambda name: scores[name].value)
    text = report(
        scores,
        data.task,
        questions,
        output,
        oracle=oracle,
        tests=[Against(best)],
        seed=options.seed,
        further={"success": success},
    )
    print(text)


def make_candidates(generator: Train, questions: str, folder: Path, rankers: Sequence[str]) -> None:
    """Writes each retriever's rankings, the generator's answers with its items, and the candidates."""
    pool, ranked = [NO_RETRIEVER], []
    for ranker in rankers:
        ranking = Rank(
            task=generator.task,
            questions=questions,
            ranker=ranker,
            rankings=tuple(ranked) if ranker == FUSION else (),
            output=str(folder / f"{ranker}.ranking.json"),
            scores=str(folder / f"{ranker}.scores.json"),
        )
        merged = Merge(questions, str(folder / f"{ranker}.json"), ranking=ranking.output)
        rank.run(ranking)
        on_first(partial(merge.run, merged))
        ranked.append(ranking.output)
        pool.append(f"{ranker}={merged.output}")
    feedback = FeedbackRetrievers(
        task=generator.task,
        pool=tuple(pool),
        model=generator.output,
        output=str(folder / "feedback"),
        prompting=generator.prompting,
        batch_size=64,
        answering=generator.answering,
    )
    feedback_retrievers.run(feedback)
    data = SelectorData(
        feedback=feedback.output,
        questions=questions,
        output=str(folder / "candidates.json"),
        scores=tuple(f"{ranker}={folder / f'{ranker}.scores.json'}" for ranker in RANKERS),
    )
    on_first(lambda: selector_data.run(data))


def hold_out(output: Path, questions: int) -> None:
    """Splits the train questions: the last ones select the best checkpoint. The comparison uses dev questions only."""
    data = read_candidates(output / "train" / "candidates.json")
    for name, held in (
        ("learn", data.questions[:-questions]),
        ("validation", data.questions[-questions:]),
    ):
        write_candidates(output / "train" / f"{name}.json", replace(data, questions=held))


def trainings(options: Demo) -> dict[SelectorMode, TrainSelector]:
    """Options of RSPG-Pre and RSPG-Post, with the same initial model."""
    return {mode: read_page(f"rspg_{mode}", TrainSelector, options) for mode in get_args(SelectorMode)}


def choosers(options: Demo) -> dict[str, Select]:
    """Options of each selection, by the name of its row in the table."""
    output = Path(options.output) / "selector"
    plain = Select(data=str(output / "dev" / "candidates.json"), output="", pool=POOL)
    learned = str(output / "train" / "candidates.json")  # on which predictors are standardized
    return {
        "wig": replace(plain, by="wig", train=learned),
        "nqc": replace(plain, by="nqc", train=learned),
        "sigma-max": replace(plain, by="sigma-max", train=learned),
        "sigma-50": replace(plain, by="sigma-50", train=learned),
        "rspg-pre": replace(plain, selector=trainings(options)["pre"].output),
        "rspg-post": replace(plain, selector=trainings(options)["post"].output),
        "worst": replace(plain, by="worst"),
        "best": replace(plain, by="best"),
    }


def _score(data: CandidateSet, chosen: Mapping[str, str], generator: Train) -> Scores:
    """Scores of the selected answers by the task's metrics."""
    answers = {question.id: question.candidates[chosen[question.id]].output for question in data.questions}
    references = {question.id: str(question.gold) for question in data.questions}
    return score(data.task, answers, references, compatibility=generator.compatibility)
