"""The demo: all outputs that it announces."""

import json
from pathlib import Path

import pytest

from lamp_jax import cli
from lamp_jax.artifacts.adapters import open_store
from lamp_jax.data.files import read_outputs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    words = ["demo", "--size", "smoke", "--seed", "3", "--output", str(tmp_path_factory.mktemp("demo") / "demo")]
    assert cli.main([*words, "--stages", "selector"]) == 0
    return words


@pytest.fixture(scope="module")
def folder(words):
    return Path(words[-1])


@pytest.fixture(scope="module")
def adapted(words, folder):
    """Folder of the adapters stage, run in the existing demo."""
    assert cli.main([*words, "--stages", "adapters"]) == 0
    return folder / "adapters"


def share_correct(folder, predictions):
    """Share of the dev questions that a predictions file answers correctly."""
    golds = read_outputs(folder / "data" / "dev_outputs.json").by_id
    answers = read_outputs(predictions).by_id
    assert answers.keys() == golds.keys()
    return sum(answers[key] == gold for key, gold in golds.items()) / len(golds)


def test_the_table_equals_the_scores_of_the_predictions(folder):
    results = json.loads((folder / "results.json").read_text())
    assert results["direction"] == "higher is better"
    assert [row["retriever"] for row in results["rows"]] == ["none", "random", "recency", "bm25"]
    for row in results["rows"]:
        assert row["metric"] == "accuracy"
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
        assert row["n"] == 20
        assert row["mean"] == share_correct(folder, folder / "predictions" / f"{row['retriever']}.json")


def test_the_selectors_table_equals_its_choices(folder):
    rows = {row["retriever"]: row for row in json.loads((folder / "selector" / "results.json").read_text())["rows"]}
    singles, choosers = ["none", "recency", "bm25"], ["wig", "nqc", "sigma-max", "sigma-50", "rspg-pre", "rspg-post"]
    assert list(rows) == [*singles, "rrf", *choosers, "worst", "best"]
    for name in (*choosers, "worst", "best"):
        path = folder / "selector" / "predictions" / f"{name}.json"
        assert rows[name]["mean"] == share_correct(folder, path)
        assert {one["retriever"] for one in json.loads(path.read_text())["golds"]} <= set(singles)
        assert rows["worst"]["mean"] <= rows[name]["mean"] <= rows["best"]["mean"]
    for name in singles:  # the same model and prompts as in the first table
        other = {row["retriever"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}[name]
        assert rows[name]["mean"] == other["mean"]
    assert rows["best"]["success"] == 1
    assert rows["rrf"]["success"] is None


def test_training_and_comparison_have_no_question_in_common(folder):
    def ids(name):
        return {one["id"] for one in json.loads((folder / "selector" / name).read_text())["questions"]}

    learned, held_out, asked = (ids(f"{name}.json") for name in ("train/learn", "train/validation", "dev/candidates"))
    assert (len(learned), len(held_out), len(asked)) == (30, 10, 20)
    assert len(learned | held_out | asked) == 60


def test_the_adapters_table_equals_the_scores_of_the_predictions(adapted):
    rows = json.loads((adapted / "results.json").read_text())["rows"]
    assert [row["retriever"] for row in rows] == ["none", "rag", "peft", "rag+peft"]
    for row in rows:
        assert row["n"] == 16
        assert row["mean"] == share_correct(adapted, adapted / "predictions" / f"{row['retriever']}.json")
        assert set(row["tests"]) == {"p vs none", "p vs rag"}


def test_the_gain_of_adapters_is_correlated_with_the_number_of_items(adapted):
    found = json.loads((adapted / "correlation.json").read_text())
    assert found.keys() == {"rho", "p", "users"}
    assert found["users"] == 16
    sizes = [len(one["profile"]) for one in json.loads((adapted / "questions.json").read_text())]
    assert 2 <= min(sizes) < max(sizes) <= 8


def test_every_compared_user_has_an_adapter_and_is_unseen_by_the_model(folder, adapted):
    def read(*path):
        return json.loads(folder.joinpath(*path).read_text())

    asked = read("adapters", "questions.json")
    assert open_store(adapted / "store").entries.keys() == {str(one["user_id"]) for one in asked}
    known = {
        item["description"] for name in ("train.json", "dev.json") for one in read(name) for item in one["profile"]
    }
    assert not known & {item["description"] for one in asked for item in one["profile"]}


@pytest.mark.parametrize("part", [".", "selector", "adapters"])
def test_the_same_command_shows_the_table_again(words, folder, adapted, part, capsys):
    assert cli.main([*words, "--stages", "selector", "adapters"]) == 0
    assert (folder / part / "table.txt").read_text() in capsys.readouterr().out
