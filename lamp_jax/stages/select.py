"""`lamp select`: selection of a retriever, and so an answer, for each question, with scores if references exist."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamp_jax.artifacts.selector import CandidateSet, check_same_candidates, read_candidates
from lamp_jax.errors import LampError
from lamp_jax.inputs.selector import CandidateReader, read_settings
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.options.selector import Select
from lamp_jax.retrieval.selector import (
    choose_by_predictor,
    choose_by_reward,
    choose_by_value,
    mean_reward,
    success_rate,
    winning_rates,
)
from lamp_jax.runs.json_files import write_json
from lamp_jax.runs.processes import on_first
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.stages.evaluate import report
from lamp_jax.tasks.metrics import check_references, score


@guard_outputs
def run(options: Select) -> None:
    if (options.by == "selector") != bool(options.selector):
        raise LampError("give --selector DIR, or another criterion with --by")
    inputs = [name for name in (options.data, options.selector, options.train) if name]
    beside = {"scores": Path(options.output).with_suffix(".scores.json")}
    record = reserve(options.output, options, inputs=inputs, ignore=["batch_tokens", "devices"], beside=beside)
    if record.state == "done":
        return print(f"{options.output}: already chosen")
    data = read_candidates(options.data)
    data = data.restrict(options.pool or data.names, options.data)
    if data.rewarded:
        check_references(
            data.task,
            {question.id: str(question.gold) for question in data.questions},
            path=options.data,
        )
    chosen = choose(options, data)
    record.begin()
    on_first(lambda: write_chosen(record.target, data, chosen))
    print(f"{options.output}: {len(chosen)} answers, chosen among {', '.join(data.names)}")
    if data.rewarded:
        found = assess(options, data, chosen)
        on_first(lambda: write_json(record.beside("scores"), found))
        print(_summary(found))
    record.finish(questions=len(data.questions))


def choose(options: Select, data: CandidateSet) -> dict[str, str]:
    """Name of the selected retriever by question id."""
    if options.by in ("best", "worst"):
        return choose_by_reward(data, worst=options.by == "worst")
    if options.by == "selector":
        return choose_by_value(data, _score(options, data))
    if not options.train:
        return choose_by_predictor(data, options.by)
    train = read_candidates(options.train).restrict(data.names, options.train)
    check_same_candidates(train, data, options.train, options.data)
    return choose_by_predictor(data, options.by, train=train)


def _score(options: Select, data: CandidateSet) -> dict[tuple[str, str], float]:
    # Imported here: other criteria need no device.
    import jax
    from flax import nnx

    from lamp_jax.encoding import candidate_scorer
    from lamp_jax.models.longformer import LongformerConfig
    from lamp_jax.models.weights import check_tokenizer, load_longformer
    from lamp_jax.retrieval.encoders import check_length
    from lamp_jax.sharding import model_options, open_mesh

    settings = read_settings(options.selector)
    if settings.task != data.task.name:
        raise LampError(
            f"{options.selector}: was trained for {settings.task}, and {options.data} is of {data.task.name}"
        )
    unseen = [name for name in data.names if name not in settings.pool]
    if unseen:
        raise LampError(
            f"{options.selector}: was not trained on {len(unseen)} of {len(data.names)} retrievers "
            f"({', '.join(unseen)}), only on {', '.join(settings.pool)}; name the retrievers to select from with --pool"
        )
    tokenizer = load_tokenizer(options.selector)
    check_tokenizer(tokenizer, options.selector, LongformerConfig)
    reader = CandidateReader(tokenizer, settings)
    with jax.set_mesh(open_mesh(options.devices)):
        model_kwargs = {**model_options(options.devices), "first_token": settings.first_token}
        model = load_longformer(options.selector, **model_kwargs)
        check_length(model.config.longest, settings.max_length, options.selector)
        graph, params = nnx.split(model)
        return candidate_scorer(graph, reader, batch_tokens=options.batch_tokens)(params, data)


def write_chosen(path: str | Path, data: CandidateSet, chosen: Mapping[str, str]) -> None:
    """Writes predictions in the official format, each with the name of the selected retriever."""
    references = [
        {"id": question.id, "output": question.candidates[chosen[question.id]].output, "retriever": chosen[question.id]}
        for question in data.questions
    ]
    write_json(path, {"task": data.task.official_name, "golds": references})


def assess(options: Select, data: CandidateSet, chosen: Mapping[str, str]) -> dict[str, Any]:
    """Metrics of the selected answers, of each single retriever and of the bounds.

    Each entry has the mean reward, the success rate and the task's metrics; that of a retriever also its winning rate
    and the number of times it was selected, and only these if a question has no candidate of it.
    """
    singles = {name: {question.id: name for question in data.questions} for name in _complete(data)}
    wins = winning_rates(data)

    def part(one: Mapping[str, str]) -> dict[str, Any]:
        texts = {question.id: question.candidates[one[question.id]].output for question in data.questions}
        references = {question.id: str(question.gold) for question in data.questions}
        return {
            "reward": mean_reward(data, one),
            "success_rate": success_rate(data, one),
            **report(data.task, score(data.task, texts, references, compatibility=options.compatibility)),
        }

    return {
        "chosen": part(chosen),
        "best": part(choose_by_reward(data)),
        "worst": part(choose_by_reward(data, worst=True)),
        "retrievers": {
            name: {
                **(part(singles[name]) if name in singles else {}),
                "winning_rate": wins[name],
                "times_chosen": sum(one == name for one in chosen.values()),
            }
            for name in data.names
        },
    }


def _complete(data: CandidateSet) -> list[str]:
    return [name for name in data.names if all(name in question.candidates for question in data.questions)]


def _summary(found: Mapping[str, Any]) -> str:
    """Table of the results of `assess`."""
    rows = {"chosen": found["chosen"], **found["retrievers"], "worst": found["worst"], "best": found["best"]}
    metrics = list(found["chosen"]["mean"])
    width = max(map(len, rows))
    lines = [f"{'':{width}}  " + "".join(f"{title:>10}" for title in (*metrics, "success", "wins", "picked"))]
    for name, row in rows.items():
        cells = [f"{row['mean'][metric]:10.3f}" if "mean" in row else f"{'':10}" for metric in metrics]
        cells.append(f"{row['success_rate']:10.3f}" if "success_rate" in row else f"{'':10}")
        cells += [f"{row['winning_rate']:10.3f}", f"{row['times_chosen']:10d}"] if "winning_rate" in row else []
        lines.append(f"{name:{width}}  " + "".join(cells))
    return "\n".join(lines)
