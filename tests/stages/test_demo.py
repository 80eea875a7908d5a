"""The demo makes all that it promises."""

import json

from lamp_jax import cli
from lamp_jax.data.files import read_outputs


def test_the_demo_writes_its_table_and_everything_behind_it(tmp_path, capsys):
    words = ["demo", "--size", "smoke", "--seed", "3", "--output", str(tmp_path / "demo")]
    assert cli.main(words) == 0
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert results["direction"] == "higher is better"
    assert [row["retriever"] for row in results["rows"]] == ["none", "random", "recency", "bm25"]
    for row in results["rows"]:
        assert row["metric"] == "accuracy"
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
        assert row["n"] == 20
        answers = read_outputs(tmp_path / "demo" / "predictions" / f"{row['retriever']}.json")
        golds = read_outputs(tmp_path / "demo" / "data" / "dev_outputs.json")
        right = sum(answers.by_id[key] == gold for key, gold in golds.by_id.items())
        assert row["mean"] == right / 20
    table = capsys.readouterr().out
    assert cli.main(words) == 0
    assert capsys.readouterr().out.strip() in table
