"""The demo makes all that it promises."""

import json

from lamp_jax import cli
from lamp_jax.data.files import read_outputs


def test_the_demo_writes_its_table_and_everything_behind_it(tmp_path, capsys):
    words = ["demo", "--size", "smoke", "--seed", "3", "--output", str(tmp_path / "demo"), "--stages", "retriever"]
    assert cli.main(words) == 0
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert results["direction"] == "higher is better"
    base, learned = ["none", "random", "recency", "bm25"], ["dense", "rrf", "ropg-kd", "ropg-rl"]
    assert [row["retriever"] for row in results["rows"]] == base + learned
    for row in results["rows"]:
        assert row["metric"] == "accuracy"
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
        assert row["n"] == 200
        folder = tmp_path / "demo" / ("" if row["retriever"] in base else "retriever")
        answers = read_outputs(folder / "predictions" / f"{row['retriever']}.json")
        golds = read_outputs(tmp_path / "demo" / "data" / "dev_outputs.json")
        right = sum(answers.by_id[key] == gold for key, gold in golds.by_id.items())
        assert row["mean"] == right / 200
    told = capsys.readouterr().out
    assert cli.main(words) == 0
    again = capsys.readouterr().out.splitlines()
    assert len(again) > 8
    assert all(line in told for line in again)
