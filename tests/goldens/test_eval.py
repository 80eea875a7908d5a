"""Metrics: equal to the official evaluation's on every file under goldens/eval.

`summary.json` names references and predictions and has means and values by question; `task_X.json` is the output of the
official code for `preds_X.json`, `all.json` for `golds.zip` and `preds.zip`.
"""

import json
from pathlib import Path

import pytest

from lamp_jax.data.files import read_outputs
from lamp_jax.options import CORRECT, REFERENCE, Evaluate
from lamp_jax.stages.evaluate import run
from lamp_jax.tasks.catalog import find_task
from lamp_jax.tasks.metrics import extra_metrics, score
from tests.goldens.cases import CASES

pytestmark = pytest.mark.golden

FOLDER = CASES / "goldens" / "eval"


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def entries():
    """(label, entry) of every summary: an entry names golds and predictions."""
    for summary in sorted(FOLDER.glob("**/summary*.json")):
        for name, entry in read(summary).items():
            if "gold" in entry and "pred" in entry:
                yield f"eval-{summary.relative_to(FOLDER)}-{name}", entry


def located(name):
    """A path of a summary, which begins at the root of the cases or at goldens/."""
    return next(path for path in (CASES / name, CASES / "goldens" / name) if path.exists())


def zips():
    """(label, expected, golds, predictions) of every `all*.json` and the zips of the same ending."""
    for expected in sorted(FOLDER.glob("**/all*.json")):
        ending = expected.stem.removeprefix("all")
        golds, predictions = (expected.with_name(f"{kind}{ending}.zip") for kind in ("golds", "preds"))
        if golds.exists() and predictions.exists():
            yield f"eval-{expected.relative_to(FOLDER)}", expected, golds, predictions


def task_files():
    """(label, expected, predictions) of every `task_X.json` and `preds_X.json`."""
    for expected in sorted(FOLDER.glob("**/task_*.json")):
        predictions = expected.with_name(expected.name.replace("task_", "preds_", 1))
        if predictions.exists():
            yield f"eval-{expected.relative_to(FOLDER)}", expected, predictions


def golds_of(predictions):
    """The golds that a summary names for these predictions, otherwise those with the same ids in `synth`."""
    for _, entry in entries():
        if located(entry["pred"]) == predictions:
            return located(entry["gold"])
    score_with = read_outputs(predictions)
    folder = CASES / "synth" / str(score_with.task).replace("-", "_")
    same = (
        path
        for path in sorted(folder.glob("*_outputs.json"))
        if read_outputs(path).by_id.keys() == score_with.by_id.keys()
    )
    return next(same, None) or pytest.skip(f"no golds here for {predictions.name}")


def params(cases):
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


def close(value, *, rouge=False):
    """The public code's ROUGE is the median of an unseeded bootstrap; its MAE and RMSE pass through float32."""
    return pytest.approx(value, abs=0.02) if rouge else pytest.approx(value, abs=1e-6, rel=1e-6)


def assert_official(means, expected):
    assert expected
    for name, value in expected.items():
        assert means[name] == close(value, rouge=name.startswith("rouge")), name


def make_scorer(entry):
    golds, predictions = read_outputs(located(entry["gold"])), read_outputs(located(entry["pred"]))
    task = find_task(golds.task or predictions.task or "")

    def score_with(compatibility):
        extra = [name for name in extra_metrics(task) if name.startswith("rouge")]
        return score(task, predictions.by_id, golds.by_id, compatibility=compatibility, extra=extra)

    return score_with


def by_plain_name(values):
    return {name.lower().replace("-", ""): value for name, value in values.items()}


@pytest.mark.parametrize("entry", params(entries()))
def test_means_equal_the_official_means(entry):
    score_with = make_scorer(entry)
    assert_official(score_with(REFERENCE).mean, entry["result"])
    plain = by_plain_name(score_with(CORRECT).mean)
    for name, value in entry.get("plain_mean", {}).items():
        assert plain[name.lower()] == close(value), name


@pytest.mark.parametrize("entry", params(case for case in entries() if "per_sample" in case[1]))
def test_scores_by_question_equal_the_official_scores(entry):
    expected = dict(entry["per_sample"])
    ids = expected.pop("ids")
    by_question = by_plain_name(make_scorer(entry)(CORRECT).per_sample)
    for name, values in expected.items():
        assert by_question[name.lower()] == close(dict(zip(ids, values, strict=True))), name


@pytest.mark.parametrize(("expected", "predictions"), params(task_files()))
def test_evaluating_one_tasks_files_equals_the_official_result(expected, predictions, tmp_path):
    golds = golds_of(predictions)
    output = tmp_path / "scores.json"
    run(Evaluate(output=str(output), golds=str(golds), predictions=str(predictions), compatibility=REFERENCE))
    (result,) = read(output)["tasks"].values()
    assert_official(result["mean"], read(expected))


@pytest.mark.parametrize(("expected", "golds", "predictions"), params(zips()))
def test_evaluating_zips_equals_the_official_result(expected, golds, predictions, tmp_path):
    output = tmp_path / "scores.json"
    run(Evaluate(output=str(output), golds_zip=str(golds), predictions_zip=str(predictions), compatibility=REFERENCE))
    results = read(output)["tasks"]
    assert results.keys() == read(expected).keys()
    for name, means in read(expected).items():
        assert_official(results[name]["mean"], means)
