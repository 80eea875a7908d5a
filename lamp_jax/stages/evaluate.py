"""`lamp evaluate`: scores of predictions by their references, for the files of one task or zip files of several."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lamp_jax.config import Compatibility
from lamp_jax.data.files import Outputs, check_same_ids, outputs_by_id, read_outputs
from lamp_jax.errors import LampError
from lamp_jax.options.generator import Evaluate
from lamp_jax.runs.json_files import write_json
from lamp_jax.runs.json_records import BOM, parse_record
from lamp_jax.runs.records import guard_outputs, reserve
from lamp_jax.tasks.catalog import TASKS, Task, find_task
from lamp_jax.tasks.metrics import InvalidReferenceError, OutOfRange, Scores, extra_metrics, score
from lamp_jax.tasks.significance import confidence_interval
from lamp_jax.version import VERSION

_LIBRARIES = ("numpy", "scipy", "scikit-learn", "rouge_score", "sacrebleu", "nltk")
_NO_MEMBER = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Source:
    """Answers of a file, and the file's name in messages."""

    name: str
    outputs: Outputs


@guard_outputs
def run(options: Evaluate) -> None:
    """Scores the predictions, prints a table and writes `options.output`.

    Raises LampError before writing, for files that cannot be read, and for files of different tasks or questions.
    """
    inputs = [name for name in (options.golds, options.predictions, options.golds_zip, options.predictions_zip) if name]
    record = reserve(options.output, options, inputs=inputs)
    if record.state == "done":
        return print(f"{options.output}: already evaluated")
    pairs, missing = _zipped(options) if _wants_zips(options) else (_single(options), {})
    _check_extra(options.metrics, list(pairs))
    results = {}
    for task, (predictions, references) in pairs.items():
        results[task.official_name] = report(task, _score(task, predictions, references, options))
    record.begin()
    write_report(record.target, results, missing, options.compatibility, out_of_range=options.out_of_range)
    for name, reason in missing.items():
        print(f"not evaluated: {name}: {reason}")
    record.finish()


def write_report(
    path: str | Path,
    results: Mapping[str, Mapping[str, Any]],
    missing: Mapping[str, str],
    compatibility: Compatibility,
    *,
    out_of_range: OutOfRange = "keep",
) -> None:
    """Writes results of `report` by official task name, with settings and library versions, and prints a table."""
    versions = {"lamp_jax": VERSION, **{name: version(name) for name in _LIBRARIES}}
    content = {
        "tasks": results,
        "missing": missing,
        "compatibility": asdict(compatibility),
        "out_of_range": out_of_range,
        "versions": versions,
    }
    write_json(path, content)
    print(table(results))


def report(task: Task, scores: Scores) -> dict[str, Any]:
    """Results of one task. The confidence interval is that of the main metric's plain mean over questions."""
    return {
        "task": task.name,
        "n": len(scores.samples),
        "metric": scores.metric,
        "direction": "higher is better" if task.higher_is_better else "lower is better",
        "mean": scores.mean,
        "confidence_interval": asdict(confidence_interval(scores.samples)),
        "invalid_predictions": list(scores.invalid),
        "per_sample": scores.per_sample,
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Table of results with one metric per line, the main metric with its confidence interval."""
    lines = [f"{'task':10} {'n':>6}  {'metric':10} {'mean':>9}  95 % interval"]
    for name, result in results.items():
        for metric, value in result["mean"].items():
            interval = result["confidence_interval"]
            main = f"  {interval['low']:.4f} to {interval['high']:.4f}" if metric == result["metric"] else ""
            lines.append(f"{name:10} {result['n']:6}  {metric:10} {value:9.4f}{main}")
        if result["invalid_predictions"]:
            lines.append(f"{name:10} {len(result['invalid_predictions']):6}  answers are no label of the task")
    return "\n".join(lines)


def _wants_zips(options: Evaluate) -> bool:
    files, zips = (options.golds, options.predictions), (options.golds_zip, options.predictions_zip)
    if all(files) and not any(zips):
        return False
    if all(zips) and not any(files):
        if options.task:
            raise LampError(
                "--task goes with --golds and --predictions: leave it out, the files in the zips name theirs"
            )
        return True
    raise LampError("give either --golds and --predictions, or --golds-zip and --predictions-zip")


def _check_extra(metrics: tuple[str, ...], tasks: list[Task]) -> None:
    if metrics and not any(extra_metrics(task) for task in tasks):
        names = ", ".join(task.name for task in tasks)
        raise LampError(f"--metrics {' '.join(metrics)}: {names} generates no text; leave --metrics out")


def _score(task: Task, predictions: Source, references: Source, options: Evaluate) -> Scores:
    check_same_ids(references.outputs.by_id, predictions.outputs.by_id, left=references.name, right=predictions.name)
    extra = options.metrics if extra_metrics(task) else ()
    try:
        return score(
            task,
            predictions.outputs.by_id,
            references.outputs.by_id,
            compatibility=options.compatibility,
            extra=extra,
            out_of_range=options.out_of_range,
        )
    except InvalidReferenceError as error:
        raise LampError(f"{references.name}: {error}") from error


Pairs = dict[Task, tuple[Source, Source]]  # predictions, references


def _single(options: Evaluate) -> Pairs:
    references = Source(options.golds, read_outputs(options.golds))
    predictions = Source(options.predictions, read_outputs(options.predictions))
    if not options.task and references.outputs.task is None:
        raise LampError(f"{references.name}: does not name its task; give --task")
    task = find_task(options.task) if options.task else _task_of(references)
    for source in (references, predictions):
        found = source.outputs.task
        if found is not None and _official(source) != task.official_name:
            raise LampError(
                f"{source.name}: answers of {found}, where {task.name} is evaluated; give files of one task"
            )
    return {task: (predictions, references)}


def _zipped(options: Evaluate) -> tuple[Pairs, dict[str, str]]:
    references, predictions = _read_zip(options.golds_zip), _read_zip(options.predictions_zip)
    sides = (
        (f"no references in {options.golds_zip}", references),
        (f"no predictions in {options.predictions_zip}", predictions),
    )
    pairs, missing = {}, {}
    for name in dict.fromkeys(task.official_name for task in TASKS.values()):
        reasons = [reason for reason, found in sides if name not in found]
        if reasons:
            missing[name] = " and ".join(reasons)
        else:
            pairs[_task_of(references[name])] = (predictions[name], references[name])
    if not pairs:
        raise LampError(
            f"{options.golds_zip} has references of {', '.join(references)}, {options.predictions_zip} predictions of "
            f"{', '.join(predictions)}: no task is in both; give zips of the same tasks"
        )
    return pairs, missing


def _official(source: Source) -> str:
    """Official name of a file's task."""
    try:
        return find_task(source.outputs.task or "").official_name
    except LampError as error:
        raise LampError(f"{source.name}: {error}") from error


def _task_of(references: Source) -> Task:
    """Task of a file of references. The deprecated news task is also named `LaMP_2`, but has other labels."""
    named = [task for task in TASKS.values() if task.official_name == _official(references)]
    answers = {answer.strip() for answer in references.outputs.by_id.values()}
    return next((task for task in named if answers <= set(task.labels)), named[0])


def _read_zip(path: str) -> dict[str, Source]:
    """Answers in a zip file by official task name. Only JSON files are read; nothing is extracted to disk."""
    found: dict[str, Source] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if _is_answers(name)]
            sources = [_read_member(name, f"{path}, {name}", archive.read) for name in members]
    except FileNotFoundError:
        raise LampError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise LampError(f"{path}: a directory, where a zip file is expected") from None
    except zipfile.BadZipFile as error:
        raise LampError(f"{path}: not a complete zip file ({error}); download or make it again") from None
    for source in sources:
        name = _official(source)
        if name in found:
            raise LampError(f"{source.name}: a second file of {name}, besides {found[name].name}; remove one")
        found[name] = source
    if not found:
        raise LampError(f'{path}: no JSON file in it; expected files like {{"task": "LaMP_3", "golds": [...]}}')
    return found


def _is_answers(name: str) -> bool:
    """True for JSON members of a zip file, except the `__MACOSX/._name.json` that macOS adds."""
    return name.endswith(".json") and not name.startswith("__MACOSX/") and not name.rpartition("/")[2].startswith(".")


def _read_member(member: str, name: str, read: Callable[[str], bytes]) -> Source:
    try:
        content = parse_record(read(member).removeprefix(BOM))
    except _NO_MEMBER as error:
        raise LampError(f"{name}: cannot be unpacked ({error}); download or make the zip again") from None
    except ValueError as error:
        raise LampError(f"{name}: invalid JSON ({error}); download or make it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("golds"), list) or "task" not in content:
        raise LampError(f'{name}: expected {{"task": "LaMP_3", "golds": [...]}}, which names its task')
    return Source(name, Outputs(str(content["task"]), outputs_by_id(content["golds"], name)))
