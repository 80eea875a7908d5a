"""The demo makes all that it promises."""

import json
from pathlib import Path

import pytest

from lamp_jax import cli
from lamp_jax.data.files import read_outputs


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    words = ["demo", "--size", "smoke", "--seed", "3", "--output", str(tmp_path_factory.mktemp("demo") / "demo")]
    assert cli.main([*words, "--stages", "selector"]) == 0
    return words


@pytest.fixture(scope="module")
def folder(words):
    return Path(words[-1])


def right(folder, predictions):
    """The share of the dev questions that a file answers rightly."""
    golds = read_outputs(folder / "data" / "dev_outputs.json").by_id
    answers = read_outputs(predictions).by_id
    assert answers.keys() == golds.keys()
    return sum(answers[key] == gold for key, gold in golds.items()) / len(golds)


def test_the_table_is_what_the_predictions_are(folder):
    results = json.loads((folder / "results.json").read_text())
    assert results["direction"] == "higher is better"
    assert [row["retriever"] for row in results["rows"]] == ["none", "random", "recency", "bm25"]
    for row in results["rows"]:
        assert row["metric"] == "accuracy"
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
        assert row["n"] == 20
        assert row["mean"] == right(folder, folder / "predictions" / f"{row['retriever']}.json")


def test_the_selectors_table_is_what_was_chosen(folder):
    rows = {row["retriever"]: row for row in json.loads((folder / "selector" / "results.json").read_text())["rows"]}
    singles, choosers = ["none", "recency", "bm25"], ["wig", "nqc", "sigma-max", "sigma-50", "rspg-pre", "rspg-post"]
    assert list(rows) == [*singles, "rrf", *choosers, "worst", "best"]
    for name in (*choosers, "worst", "best"):
        path = folder / "selector" / "predictions" / f"{name}.json"
        assert rows[name]["mean"] == right(folder, path)
        assert {one["retriever"] for one in json.loads(path.read_text())["golds"]} <= set(singles)
        assert rows["worst"]["mean"] <= rows[name]["mean"] <= rows["best"]["mean"]
    for name in singles:  # the same model and prompts as in the first table
        other = {row["retriever"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}[name]
        assert rows[name]["mean"] == other["mean"]
    assert rows["best"]["success"] == 1
    assert rows["rrf"]["success"] is None


def test_no_question_of_the_comparison_is_learned_from(folder):
    def ids(name):
        return {one["id"] for one in json.loads((folder / "selector" / name).read_text())["questions"]}

    learned, held_out, asked = (ids(f"{name}.json") for name in ("train/learn", "train/validation", "dev/candidates"))
    assert (len(learned), len(held_out), len(asked)) == (30, 10, 20)
    assert len(learned | held_out | asked) == 60


@pytest.mark.parametrize("part", [".", "selector"])
def test_the_same_command_shows_the_table_again(words, folder, part, capsys):
    assert cli.main([*words, "--stages", "selector"]) == 0
    assert (folder / part / "table.txt").read_text() in capsys.readouterr().out
