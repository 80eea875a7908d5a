"""`lamp evaluate`: users' files, errors about them, and no changes outside of its output."""

import json
import zipfile
from dataclasses import replace

import pytest

from lamp_jax.errors import LampError
from lamp_jax.options import CORRECT, REFERENCE, Evaluate
from lamp_jax.stages.evaluate import run

NEWS = {"250": "politics", "251": "crime"}


def answers(task, by_id):
    return {"task": task, "golds": [{"id": key, "output": text} for key, text in by_id.items()]}


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def pack(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, value if isinstance(value, str) else json.dumps(value))
    return str(path)


@pytest.fixture
def evaluate(tmp_path):
    """Evaluates golds and predictions given as values of their JSON; returns the output."""

    def call(golds, predictions, **options):
        output = tmp_path / "E.json"
        run(
            Evaluate(
                output=str(output),
                force=True,
                golds=write(tmp_path / "G.json", golds),
                predictions=write(tmp_path / "P.json", predictions),
                **options,
            )
        )
        return read(output)

    return call


@pytest.fixture
def evaluate_zips(tmp_path):
    """Evaluates zips given as `{member: value of its JSON}`; returns the output."""

    def call(golds, predictions, **options):
        output = tmp_path / "E.json"
        zips = {"golds_zip": pack(tmp_path / "G.zip", golds), "predictions_zip": pack(tmp_path / "P.zip", predictions)}
        run(Evaluate(output=str(output), force=True, **zips, **options))
        return read(output)

    return call


# One task's files.


@pytest.mark.parametrize("name", ["", "LaMP-3", "LaMP_3", "lamp-3"])
@pytest.mark.parametrize("written", ["LaMP-3", "LaMP_3"])
def test_both_spellings_of_a_task_are_the_same(evaluate, name, written):
    golds, predictions = answers("LaMP_3", {"350": "4", "351": "1"}), answers(written, {"351": "2", "350": "4"})
    result = evaluate(golds, predictions, task=name)["tasks"]["LaMP_3"]
    assert result["mean"] == {"MAE": 0.5, "RMSE": pytest.approx(0.5**0.5)}
    assert result["per_sample"] == {"MAE": {"350": 0, "351": 1}}
    assert (result["task"], result["n"], result["metric"]) == ("LaMP-3", 2, "MAE")
    assert result["direction"] == "lower is better"
    assert result["confidence_interval"]["low"] <= 0.5 <= result["confidence_interval"]["high"]


def test_plain_lists_are_read_where_the_task_is_given(evaluate):
    golds, predictions = ([{"id": 350, "output": text}] for text in ("4", "no idea"))
    result = evaluate(golds, predictions, task="LaMP-3")["tasks"]["LaMP_3"]
    assert result["mean"]["MAE"] == 3
    assert result["invalid_predictions"] == ["350"]
    with pytest.raises(LampError, match=r"G\.json: does not name its task; give --task"):
        evaluate(golds, predictions)


def test_the_output_records_its_provenance(evaluate):
    files = answers("LaMP_4", {"1": "a b"}), answers("LaMP_4", {"1": "a b"})
    found = evaluate(*files, metrics=("rouge-2", "bleu"), compatibility=REFERENCE)
    assert found["compatibility"]["rouge"] == "bootstrap"
    assert {"lamp_jax", "rouge_score", "sacrebleu", "scikit-learn"} <= found["versions"].keys()
    assert found["tasks"]["LaMP_4"]["mean"].keys() == {"rouge-1", "rouge-L", "rouge-2", "bleu"}
    assert evaluate(*files)["compatibility"]["rouge"] == CORRECT.rouge == "mean"


def test_the_table_shows_every_metric(evaluate, capsys):
    evaluate(answers("LaMP_3", {"350": "4"}), answers("LaMP_3", {"350": "?"}))
    printed = capsys.readouterr().out
    assert "MAE           3.0000  3.0000 to 3.0000" in printed
    assert "RMSE          3.0000" in printed
    assert "1  answers are no label" in printed


def test_the_deprecated_news_task_is_recognized_by_its_labels(evaluate):
    files = answers("LaMP_2", NEWS), answers("LaMP-2-old", NEWS)
    for options in ({}, {"task": "LaMP-2-old"}):
        assert evaluate(*files, **options)["tasks"]["LaMP_2"]["task"] == "LaMP-2-old"
    with pytest.raises(LampError, match=r"G\.json: LaMP-2, question '250': the reference 'politics' is not a label"):
        evaluate(*files, task="LaMP-2")


def test_the_same_command_again_does_nothing_and_another_is_refused(tmp_path, capsys):
    paths = {"golds": tmp_path / "G.json", "predictions": tmp_path / "P.json", "output": tmp_path / "E.json"}
    options = Evaluate(**{name: str(path) for name, path in paths.items()})
    write(paths["golds"], answers("LaMP_3", {"350": "4"}))
    write(paths["predictions"], '{"task": "LaMP_3", "golds": [')
    with pytest.raises(LampError, match="truncated JSON"):
        run(options)
    write(paths["predictions"], answers("LaMP_3", {"350": "4"}))
    run(options)  # the patched file needs no --force
    made = paths["output"].stat().st_mtime_ns
    run(options)
    assert "already evaluated" in capsys.readouterr().out
    assert paths["output"].stat().st_mtime_ns == made
    write(paths["predictions"], answers("LaMP_3", {"350": "5"}))
    with pytest.raises(LampError, match="--force"):
        run(options)
    run(replace(options, force=True))
    assert read(paths["output"])["tasks"]["LaMP_3"]["mean"]["MAE"] == 1


def test_clipping_is_an_option(evaluate):
    files = answers("LaMP_3", {"350": "4"}), answers("LaMP_3", {"350": "9"})
    assert evaluate(*files)["tasks"]["LaMP_3"]["mean"]["MAE"] == 5
    clipped = evaluate(*files, out_of_range="clip")
    assert clipped["tasks"]["LaMP_3"]["mean"]["MAE"] == 1
    assert clipped["out_of_range"] == "clip"


@pytest.mark.parametrize(
    ("golds", "predictions", "options", "message"),
    [
        (answers("LaMP_3", {"1": "4"}), answers("LaMP_5", {"1": "4"}), {}, r"P\.json: answers of LaMP_5, where LaMP-3"),
        (
            answers("LaMP_3", {"1": "4"}),
            answers("LaMP_3", {"1": "4"}),
            {"task": "LaMP_5"},
            r"G\.json: answers of LaMP_3",
        ),
        (answers("LaMP_9", {"1": "4"}), answers("LaMP_3", {"1": "4"}), {}, r"G\.json: unknown task 'LaMP_9'"),
        (
            answers("LaMP_3", {"1": "4"}),
            answers("LaMP_3", {"2": "4"}),
            {},
            r"(?s)1 ids of .*G\.json.* \(1\).*P\.json.*\(2\)",
        ),
        (
            answers("LaMP_3", {"1": "6"}),
            answers("LaMP_3", {"1": "4"}),
            {},
            r"G\.json: LaMP-3, question '1': the reference '6'",
        ),
        (
            answers("LaMP_3", {"1": "4"}),
            '{"task": "LaMP_3", "golds": [{"id": "1", "out',
            {},
            r"P\.json: truncated JSON",
        ),
        (
            answers("LaMP_3", {"1": "4"}),
            answers("LaMP_3", {"1": "4"}),
            {"metrics": ("bleu",)},
            "LaMP-3 generates no text",
        ),
    ],
    ids=["predictions", "golds", "unknown", "ids", "label", "cut off", "metric"],
)
def test_bad_input_is_named_and_nothing_is_written(evaluate, tmp_path, golds, predictions, options, message):
    with pytest.raises(LampError, match=message):
        evaluate(golds, predictions, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["G.json", "P.json"]


@pytest.mark.parametrize(
    "options", [{}, {"golds": "G"}, {"golds_zip": "G"}, {"golds": "G", "predictions_zip": "P"}, {"predictions": "P"}]
)
def test_golds_and_predictions_are_both_files_or_both_zips(options, tmp_path):
    with pytest.raises(LampError, match="either --golds and --predictions, or --golds-zip and --predictions-zip"):
        run(Evaluate(output=str(tmp_path / "E.json"), **options))


# Zips.


def test_existing_tasks_are_evaluated_and_missing_tasks_are_named(evaluate_zips, capsys):
    found = evaluate_zips(
        {"golds/LaMP_1_dev_outputs.json": answers("LaMP_1", {"1": "[1]"}), "x/y.json": answers("LaMP_4", {"4": "a b"})},
        {"3.json": answers("LaMP-3", {"1": "5"}), "deep/er/a.json": answers("LaMP-1", {"1": "[1]"})},
    )
    assert found["tasks"].keys() == {"LaMP_1"}
    assert found["tasks"]["LaMP_1"]["mean"]["accuracy"] == 1
    assert found["missing"].keys() == {"LaMP_2", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7"}
    assert found["missing"]["LaMP_3"].startswith("no references in ")
    assert found["missing"]["LaMP_4"].startswith("no predictions in ")
    assert "not evaluated: LaMP_4: no predictions in" in capsys.readouterr().out


def test_other_members_of_a_zip_are_ignored(evaluate_zips):
    golds = {
        "readme.txt": "hello",
        "__MACOSX/._a.json": "\x00",
        "a/._b.json": "\x00",
        "a/b.json": answers("LaMP_4", {"4": "a"}),
    }
    assert evaluate_zips(golds, {"P.json": answers("LaMP_4", {"4": "a"})})["tasks"]["LaMP_4"]["mean"]["rouge-1"] == 1


def test_only_the_output_is_written(evaluate_zips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    kept = tmp_path / "tmp" / "mine.json"
    kept.write_text("mine")
    evaluate_zips({"a.json": answers("LaMP_4", {"4": "a"})}, {"a.json": answers("LaMP_4", {"4": "a"})})
    assert kept.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["E.json", "E.json.run.json", "G.zip", "P.zip", "tmp"]


def test_extra_metrics_go_to_the_tasks_that_generate_text(evaluate_zips):
    both = {"1.json": answers("LaMP_1", {"1": "[1]"}), "4.json": answers("LaMP_4", {"4": "a b"})}
    found = evaluate_zips(both, both, metrics=("rouge-lsum",))["tasks"]
    assert found["LaMP_1"]["mean"].keys() == {"accuracy", "f1"}
    assert found["LaMP_4"]["mean"]["rouge-LSum"] == 1


def test_the_news_task_in_zips_is_recognized_by_its_labels(evaluate_zips):
    files = {"a.json": answers("LaMP_2", NEWS)}
    assert evaluate_zips(files, files)["tasks"]["LaMP_2"]["task"] == "LaMP-2-old"


GOOD = {"a.json": answers("LaMP_4", {"4": "a"})}


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({"a.json": '{"task": "LaMP_4", "golds": ['}, r"P\.zip, a\.json: invalid JSON"),
        ({"a.json": [{"id": "4", "output": "a"}]}, r"P\.zip, a\.json: expected .* which names its task"),
        ({"a.json": {"task": "LaMP_4", "golds": [{"id": "4"}]}}, r"P\.zip, a\.json, record 0: expected an object with"),
        ({"a.json": {"task": "LaMP_4", "golds": [{"id": 4, "output": ""}] * 2}}, r"record 1: the id '4' occurs twice"),
        ({**GOOD, "b.json": GOOD["a.json"]}, r"P\.zip, b\.json: a second file of LaMP_4, besides .*a\.json"),
        ({"a.json": answers("LaMP_0", {"4": "a"})}, r"P\.zip, a\.json: unknown task 'LaMP_0'"),
        ({"a.json": answers("LaMP_4", {"5": "a"})}, r"1 ids of .*G\.zip, a\.json are not in .*P\.zip, a\.json \(4\)"),
        ({"a.json": answers("LaMP_5", {"5": "a"})}, r"no task is in both"),
        ({"readme.txt": "hello"}, r"P\.zip: no JSON file in it"),
    ],
)
def test_a_bad_file_in_a_zip_is_named(evaluate_zips, predictions, message):
    with pytest.raises(LampError, match=message):
        evaluate_zips(GOOD, predictions)


def test_a_truncated_zip_is_named(tmp_path):
    golds = pack(tmp_path / "G.zip", GOOD)
    complete = (tmp_path / "G.zip").read_bytes()
    for name, content in (("cut.zip", complete[:-30]), ("bad.zip", complete.replace(b'"output"', b'"OUTPUT"', 1))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LampError, match=rf"{name}.*(not a complete zip|cannot be unpacked)"):
            run(Evaluate(output=str(tmp_path / "E.json"), golds_zip=golds, predictions_zip=str(tmp_path / name)))
    with pytest.raises(LampError, match=r"none\.zip: no such file"):
        run(Evaluate(output="E.json", golds_zip=str(tmp_path / "none.zip"), predictions_zip=golds))
    with pytest.raises(LampError, match="leave it out"):
        run(Evaluate(output="E.json", task="LaMP-4", golds_zip=golds, predictions_zip=golds))
