"""`lamp check`: a table for each file, JSON output, and exit statuses for errors and warnings."""

import json
from pathlib import Path

import pytest

from lamp_jax.cli import main
from lamp_jax.datasets.synthetic import write_benchmark
from lamp_jax.tasks.catalog import TASKS, find_task

TASK = find_task("LaMP-3")
ITEM = {"id": "10", "text": "a film", "score": "4"}


def questions(path: Path, *profiles: list) -> str:
    records = [
        {"id": str(key), "input": TASK.input_for("fine"), "profile": profile} for key, profile in enumerate(profiles)
    ]
    path.write_text(json.dumps(records))
    return str(path)


def test_a_valid_file_gives_status_0_and_facts(tmp_path, capsys):
    file = questions(tmp_path / "q.json", [ITEM], [ITEM])
    assert main(["check", file]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == [f"{file}:", "questions", "of", "LaMP-3"]
    assert ["records", "2"] in rows
    assert ["profile", "sizes", "min", "1,", "median", "1.0,", "mean", "1.0,", "max", "1"] in rows
    assert ["nothing", "wrong"] in rows


def test_warnings_give_status_0(tmp_path, capsys):
    assert main(["check", questions(tmp_path / "q.json", [])]) == 0
    out = capsys.readouterr().out
    assert "warning  empty profile: 1; nothing to personalize from" in out
    assert "question '0'" in out


def test_errors_give_status_1_after_the_tables_of_all_files(tmp_path, capsys):
    bad = questions(tmp_path / "bad.json", [{**ITEM, "score": None}], [{**ITEM, "date": "?"}])
    good = questions(tmp_path / "good.json", [ITEM])
    assert main(["check", bad, str(tmp_path / "none.json"), good]) == 1
    printed = capsys.readouterr()
    assert "error    missing text: 1; " in printed.out
    assert "question '0', item '10'" in printed.out
    assert f"{good}: questions of LaMP-3" in printed.out
    assert printed.err == (
        f"lamp: errors in 2 of 3 files: {bad} (2), {tmp_path / 'none.json'} (1); fix them as the tables say\n"
    )


def test_all_results_are_written_as_json_too(tmp_path):
    bad = questions(tmp_path / "bad.json", [{**ITEM, "date": "\ud83d"}])
    output = tmp_path / "found" / "all.json"
    assert main(["check", bad, "--output", str(output), "--task", "LaMP_3"]) == 1
    (one,) = json.loads(output.read_bytes())
    assert (one["file"], one["form"], one["task"], one["facts"]["records"]) == (bad, "questions", "LaMP-3", 1)
    error, warning = one["findings"]
    assert (error["name"], error["severity"], error["count"]) == ("bad date", "error", 1)
    assert error["examples"] == ["question '0', item '10'"]
    assert (warning["name"], warning["severity"]) == ("surrogate", "warning")


def test_a_checked_file_is_not_overwritten(tmp_path, capsys):
    file = questions(tmp_path / "q.json", [ITEM])
    before = Path(file).read_bytes()
    assert main(["check", file, "--output", file]) == 1
    assert f"is also the input {file}" in capsys.readouterr().err
    assert Path(file).read_bytes() == before


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_synthetic_benchmark_has_no_errors(tmp_path, capsys, task):
    write_benchmark(task, tmp_path, questions=8, dev_questions=4, profile_size=4, words=0, seed=0)
    files = [str(path) for path in sorted(tmp_path.glob("*_questions.json")) + sorted(tmp_path.glob("*_outputs.json"))]
    assert len(files) == 4
    assert main(["check", *files]) == 0
    assert f"{files[0]}: questions of {task.name}\n" in capsys.readouterr().out
