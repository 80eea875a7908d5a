"""`lamp demo`: a benchmark is made, a small T5 trained on it, and retrievers compared in one table."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from lamp_jax.config import Answering, Demo, Prompting, Retriever, Scratch, Synth, Train
from lamp_jax.data.files import (
    Question,
    add_outputs,
    read_json,
    read_outputs,
    read_questions,
    write_json,
    write_predictions,
    write_questions,
)
from lamp_jax.data.records import claim
from lamp_jax.decoding.answers import Answerer
from lamp_jax.inputs.examples import gold_of, make_prompts, prompt_examples
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.models.weights import load_t5
from lamp_jax.sharding import make_mesh, model_layout
from lamp_jax.stages import synth, train
from lamp_jax.stages.generate import answer
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.metrics import Scores, paired_test, score
from lamp_jax.tasks.significance import confidence_interval

TASK = find_task("LaMP-2")
RETRIEVERS: tuple[Retriever, ...] = ("none", "random", "recency", "bm25")


@dataclasses.dataclass(frozen=True)
class Size:
    """How much the demo does."""

    questions: int
    profile_size: int
    epochs: float
    model: Scratch


SIZES = {
    "full": Size(
        2000, 24, 2, Scratch(64, 128, num_layers=2, num_decoder_layers=1, num_heads=2, vocab_size=1000, dropout=0)
    ),
    "smoke": Size(
        40, 6, 1, Scratch(16, 32, num_layers=1, num_decoder_layers=1, num_heads=2, vocab_size=400, dropout=0)
    ),
}


def run(options: Demo) -> None:
    output = Path(options.output)
    record = claim(output, options, inputs=[], directory=True)
    if record.state == "done":
        return print((output / "table.txt").read_text(encoding="utf-8"))
    record.begin()
    experiment = prepare(options)
    train.run(experiment)
    questions = read_questions(experiment.validation, task=TASK)
    oracle = read_json(output / "data" / "oracle.json")
    scores = compare_retrievers(experiment, questions, output)
    rows = [row(name, scores, questions, oracle) for name in scores]
    text = table(rows)
    (output / "table.txt").write_text(text + "\n", encoding="utf-8")
    direction = "higher is better" if TASK.higher_is_better else "lower is better"
    write_json(output / "results.json", {"task": TASK.name, "direction": direction, "seed": options.seed, "rows": rows})
    record.finish()
    print(text)


def prepare(options: Demo) -> Train:
    """Makes the files of the benchmark and returns the training that the demo does on them."""
    size, output = SIZES[options.size], Path(options.output)
    data = output / "data"
    synth.run(Synth(TASK.name, str(data), questions=size.questions, profile_size=size.profile_size, seed=options.seed))
    for split in ("train", "dev"):
        questions = read_questions(data / f"{split}_questions.json", task=TASK)
        merged = add_outputs(questions, read_outputs(data / f"{split}_outputs.json").by_id)
        write_questions(output / f"{split}.json", merged)
    return Train(
        task=TASK.name,
        train=str(output / "train.json"),
        validation=str(output / "dev.json"),
        output=str(output / "model"),
        model=train.SCRATCH,
        scratch=size.model,
        retrievers=RETRIEVERS,
        prompting=Prompting(num_retrieved=4, max_length=192),
        epochs=size.epochs,
        batch_size=16,
        learning_rate=2e-2,
        step_size="relative",
        warmup_ratio=0.1,
        weight_decay=0.0,
        evaluate_every=0.5,
        seed=options.seed,
        answering=Answering(decode="labels"),
    )


def compare_retrievers(experiment: Train, questions: Sequence[Question], output: Path) -> dict[str, Scores]:
    """The one trained model's answers with each retriever's items in the prompt: their scores by retriever."""
    golds = {question.id: gold_of(question) for question in questions}
    tokenizer = load_tokenizer(experiment.output)
    scores = {}
    with jax.set_mesh(make_mesh()):
        graph, params = nnx.split(load_t5(experiment.output, **model_layout(experiment.devices)))
        answerer = Answerer(graph, tokenizer, TASK, experiment.answering)
        for retriever in experiment.retrievers:
            prompts = make_prompts(questions, TASK, tokenizer, experiment, retriever=retriever)
            answers = answer(
                prompt_examples(questions, prompts),
                answerer,
                params,
                batch_size=experiment.batch_size,
                max_length=experiment.prompting.max_length,
            )
            write_predictions(output / "predictions" / f"{retriever}.json", TASK, answers)
            scores[retriever] = score(TASK, answers, golds, compatibility=experiment.compatibility)
    return scores


def row(
    name: str, scores: Mapping[str, Scores], questions: Sequence[Question], oracle: Mapping[str, Any]
) -> dict[str, Any]:
    """One retriever's line of `results.json`: mean, 95 % interval, test against no profile, mean by group of users."""
    samples = scores[name].samples
    interval = confidence_interval(samples)
    groups: dict[str, list[float]] = {}
    for question in questions:
        groups.setdefault(oracle[question.id]["group"], []).append(samples[question.id])
    metric = scores[name].metric
    return {
        "retriever": name,
        "metric": metric,
        "mean": scores[name].value,
        "low": interval.low,
        "high": interval.high,
        "n": len(samples),
        "p_against_none": paired_test(metric, samples, scores["none"].samples).p,
        "groups": {group: sum(values) / len(values) for group, values in sorted(groups.items())},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as lines of text."""
    groups = list(rows[0]["groups"])
    head = f"{'retriever':10} {rows[0]['metric']:>8}  95 % interval   p vs none  " + "".join(f"{g:>10}" for g in groups)
    lines = [head]
    for one in rows:
        interval = f"{one['low']:.3f} to {one['high']:.3f}"
        by_group = "".join(f"{one['groups'][group]:10.3f}" for group in groups)
        lines.append(f"{one['retriever']:10} {one['mean']:8.3f}  {interval}  {one['p_against_none']:9.2g}  {by_group}")
    return "\n".join(lines)
