"""`lamp select`: each question's retriever is chosen, and with it the answer; where golds tell, how well."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamp_jax.artifacts.candidates import CandidateSet, check_same_pool, read_candidates
from lamp_jax.errors import LampError
from lamp_jax.inputs.selection import CandidateReader, read_settings
from lamp_jax.inputs.tokenizer import load_tokenizer
from lamp_jax.options.selector import Select
from lamp_jax.retrieval import selection
from lamp_jax.runs.json_files import write_json
from lamp_jax.runs.records import claim, guard_outputs
from lamp_jax.stages.evaluate import report
from lamp_jax.tasks.metrics import check_golds, score


@guard_outputs
def run(options: Select) -> None:
    if (options.by == "selector") != bool(options.selector):
        raise LampError("give --selector DIR, or --by with what else shall choose")
    inputs = [name for name in (options.data, options.selector, options.train) if name]
    beside = {"scores": Path(options.output).with_suffix(".scores.json")}
    record = claim(options.output, options, inputs=inputs, ignore=["batch_tokens", "devices"], beside=beside)
    if record.state == "done":
        return print(f"{options.output}: already chosen")
    pool = read_candidates(options.data)
    pool = pool.restrict(options.pool or pool.names, options.data)
    if pool.rewarded:
        check_golds(pool.task, {choice.id: str(choice.gold) for choice in pool.choices}, path=options.data)
    chosen = choose(options, pool)
    record.begin()
    write_choices(record.place, pool, chosen)
    print(f"{options.output}: {len(chosen)} answers, chosen among {', '.join(pool.names)}")
    if pool.rewarded:
        found = assess(options, pool, chosen)
        write_json(record.beside("scores"), found)
        print(_summary(found))
    record.finish(questions=len(pool.choices))


def choose(options: Select, pool: CandidateSet) -> dict[str, str]:
    """The chosen retriever's name for each question."""
    if options.by in ("best", "worst"):
        return selection.choose_by_reward(pool, worst=options.by == "worst")
    if options.by == "selector":
        return selection.choose_by_value(pool, _score(options, pool))
    if not options.train:
        return selection.choose_by_predictor(pool, options.by)
    train = read_candidates(options.train).restrict(pool.names, options.train)
    check_same_pool(train, pool, options.train, options.data)
    return selection.choose_by_predictor(pool, options.by, train=train)


def _score(options: Select, pool: CandidateSet) -> dict[tuple[str, str], float]:
    # Here, not above: other choices need no device.
    import jax
    from flax import nnx

    from lamp_jax.encoding import candidate_scorer
    from lamp_jax.models.longformer import LongformerConfig
    from lamp_jax.models.weights import check_tokenizer, load_longformer
    from lamp_jax.retrieval.encoders import check_length
    from lamp_jax.sharding import model_layout, open_mesh

    settings = read_settings(options.selector)
    if settings.task != pool.task.name:
        raise LampError(f"{options.selector}: chooses for {settings.task}, and {options.data} is of {pool.task.name}")
    unseen = [name for name in pool.names if name not in settings.pool]
    if unseen:
        raise LampError(
            f"{options.selector}: never saw {len(unseen)} of {len(pool.names)} retrievers ({', '.join(unseen)}), only "
            f"{', '.join(settings.pool)}; name those of them to choose among with --pool"
        )
    tokenizer = load_tokenizer(options.selector)
    check_tokenizer(tokenizer, options.selector, LongformerConfig)
    reader = CandidateReader(tokenizer, settings)
    with jax.set_mesh(open_mesh(options.devices)):
        layout = {**model_layout(options.devices), "first_token": settings.first_token}
        model = load_longformer(options.selector, **layout)
        check_length(model.config.longest, settings.max_length, options.selector)
        graph, params = nnx.split(model)
        return candidate_scorer(graph, reader, batch_tokens=options.batch_tokens)(params, pool)


def write_choices(path: str | Path, pool: CandidateSet, chosen: Mapping[str, str]) -> None:
    """Predictions in the official format, the chosen retriever's name beside each."""
    golds = [
        {"id": choice.id, "output": choice.candidates[chosen[choice.id]].output, "retriever": chosen[choice.id]}
        for choice in pool.choices
    ]
    write_json(path, {"task": pool.task.official_name, "golds": golds})


def assess(options: Select, pool: CandidateSet, chosen: Mapping[str, str]) -> dict[str, Any]:
    """The metrics of the chosen answers, beside them those of each retriever alone and of the bounds.

    Every part has the mean reward, the success rate and the task's metrics; a retriever also its winning rate and how
    often it was chosen. A retriever alone is left out if a question has no candidate of it.
    """
    singles = {name: {choice.id: name for choice in pool.choices} for name in _complete(pool)}
    wins = selection.winning_rates(pool)

    def part(one: Mapping[str, str]) -> dict[str, Any]:
        texts = {choice.id: choice.candidates[one[choice.id]].output for choice in pool.choices}
        golds = {choice.id: str(choice.gold) for choice in pool.choices}
        return {
            "reward": selection.mean_reward(pool, one),
            "success_rate": selection.success_rate(pool, one),
            **report(pool.task, score(pool.task, texts, golds, compatibility=options.compatibility)),
        }

    return {
        "chosen": part(chosen),
        "best": part(selection.choose_by_reward(pool)),
        "worst": part(selection.choose_by_reward(pool, worst=True)),
        "retrievers": {
            name: {
                **(part(singles[name]) if name in singles else {}),
                "winning_rate": wins[name],
                "times_chosen": sum(one == name for one in chosen.values()),
            }
            for name in pool.names
        },
    }


def _complete(pool: CandidateSet) -> list[str]:
    return [name for name in pool.names if all(name in choice.candidates for choice in pool.choices)]


def _summary(found: Mapping[str, Any]) -> str:
    """A table of what `assess` found."""
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
