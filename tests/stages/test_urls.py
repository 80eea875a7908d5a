"""Stages at URLs: inputs are unchanged, outputs are uploaded under any name, messages show URLs."""

import json
import shutil
from pathlib import Path

import pytest

from lamp_jax import cli
from lamp_jax.runs import remote
from lamp_jax.tasks.catalog import find_task
from tests.bucket import let_orbax_write, url
from tests.goldens import cases

MODEL = cases.CASES / "tiny" / "t5_ft"
HIDDEN = (".gitattributes", ".git/config", "checkpoints/5/x")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with questions and a model that has hidden files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    let_orbax_write(monkeypatch)
    place = tmp_path / "place"
    shutil.copytree(MODEL, place / "model")
    for name in HIDDEN:
        (place / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "model" / name).write_text(name)
    items = [{"id": str(one), "text": f"a film of {one}", "score": "4", "date": "2003"} for one in range(3)]
    text = find_task("LaMP-3").template.format(text="a film of 1")
    question = {"id": "1", "input": text, "profile": items, "user_id": "u", "output": "4"}
    for name in ("q.json", ".hq.json", "qq", "b[1]/q.json", "b1/q.json", "checkpoints/q.json"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(json.dumps([question | {"id": name}]))
    return place


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def lamp(*words) -> int:
    return cli.main([str(word) for word in words])


def file_url(path: Path) -> str:
    return f"file://{path}"


def rank(questions, output, *more) -> int:
    return lamp("rank", "--task", "LaMP-3", "--questions", questions, "--output", output, *more)


@pytest.mark.parametrize("at", [url, pytest.param(file_url, marks=pytest.mark.slow)])
def test_inputs_at_a_url_are_unchanged(place, at):
    before = contents(place)
    for name in (".hq.json", "qq", "b[1]/q.json", "checkpoints/q.json"):
        assert lamp("check", at(place / name)) == 0
        assert rank(at(place / name), place / "out" / name) == 0
        assert json.loads((place / "out" / name).read_text()) == {name: ["1", "0", "2"]}
    lamp("check", at(place / "model"))
    model = ("--model", at(place / "model"), "--max-length", 64)
    words = ("generate", "--task", "LaMP-3", "--questions", at(place / "qq"), *model)
    assert lamp(*words, "--output", place / "out" / "p.json") == 0
    shutil.rmtree(place / "out")
    assert contents(place) == before


@pytest.mark.parametrize("at", [url, file_url])
@pytest.mark.parametrize(
    "name", ["ranking", "r[1].json", ".hid.json", "checkpoints", "a b.json", "deep/r.lock", "r.json/"]
)
def test_a_file_of_any_name_is_sent(place, at, name):
    """Its run record and scores are sent too, and again after `--force`."""
    here, there = place / "here" / name, place / "there" / name
    before = contents(place)
    for more in ((), ("--ranker", "recency", "--force")):
        assert rank(place / "q.json", here, "--scores", f"{here}.s.json", *more) == 0
        assert rank(place / "q.json", at(there), "--scores", f"{at(there)}.s.json", *more) == 0
        made, expected = contents(place / "there"), contents(place / "here")
        for files in (made, expected):
            assert json.loads(files.pop(f"{name.rstrip('/')}.run.json"))["finished"]
        assert made == expected
    shutil.rmtree(place / "here")
    shutil.rmtree(place / "there")
    assert contents(place) == before


@pytest.mark.parametrize("at", [url, file_url])
@pytest.mark.parametrize("name", [".hid", "checkpoints", "d[1]", "d.json", "run"])
def test_a_directory_of_any_name_is_sent(place, at, name):
    words = ("synth", "--task", "LaMP-2", "--questions", 5, "--dev-questions", 2, "--profile-size", 2)
    for seed in (0, 1):
        assert lamp(*words, "--seed", seed, "--force", "--output", place / "here" / name) == 0
        assert lamp(*words, "--seed", seed, "--force", "--output", at(place / "there" / name)) == 0
        made, expected = contents(place / "there"), contents(place / "here")
        assert json.loads(made.pop(f"{name}/run.json"))["finished"]
        assert expected.pop(f"{name}/run.json")
        assert made == expected


@pytest.mark.parametrize("at", [url, file_url])
def test_an_input_is_not_replaced_under_another_of_its_names(place, at, capsys):
    assert rank(place / "q.json", place / "r.json") == 0
    before = contents(place)
    asked = ("--task", "LaMP-3", "--questions", place / "q.json", "--max-length", 64)
    for given, output in (
        (at(place / "model"), at(place / "model")),
        (at(place / "model"), f"{at(place)}//./model/"),
        (at(place / "model"), at(place / "model" / "p.json")),
        *([(at(place / "model"), place / "model"), (place / "model", at(place / "model"))] if at is file_url else []),
    ):
        assert lamp("generate", *asked, "--model", given, "--output", output, "--force") == 1
        assert "input" in capsys.readouterr().err
    merge = ("merge", "--questions", place / "q.json", "--ranking", at(place / "r.json"))
    assert lamp(*merge, "--output", at(place / "r.json"), "--force") == 1
    assert "input" in capsys.readouterr().err
    assert contents(place) == before


@pytest.mark.parametrize("name", [".", "data/..", "..", "/", "model/../.."])
@pytest.mark.parametrize("option", ["--questions", "--output"])
def test_a_url_without_a_unique_location_changes_nothing(place, name, option, capsys, monkeypatch):
    monkeypatch.chdir(place)
    before = contents(place)
    where = f"bucket:/{place}/{name}" if ".." in name else f"file://{name}"
    words = {"--questions": place / "q.json", "--output": place / "r.json"} | {option: where}
    assert lamp("rank", "--task", "LaMP-3", *(word for pair in words.items() for word in pair), "--force") == 1
    assert capsys.readouterr().err.startswith(f"lamp: {where}: ")
    assert contents(place) == before


def test_messages_and_records_contain_urls(place, capfd):
    def printed():
        found = "".join(capfd.readouterr())
        assert "cache" not in found
        return found

    output = url(place / "r.json")
    assert rank(url(place / "q.json"), output) == 0
    assert f"{output}: 1 rankings" in printed()
    assert rank(url(place / "q.json"), output) == 0
    assert f"{output}: already" in printed()
    assert rank(url(place / "qq"), output) == 1
    assert f"lamp: {output}: exists with other settings or inputs ({output}.run.json lists them)" in printed()
    assert rank(url(place / "none.json"), url(place / "x.json")) == 1
    assert f"lamp: {url(place / 'none.json')}: no such file" in printed()
    assert lamp("check", url(place / "model" / "config.json")) == 1
    assert url(place / "model" / "config.json") in printed()
    made = json.loads((place / "r.json.run.json").read_text())
    assert made["settings"]["questions"] == url(place / "q.json")
    assert [*made["inputs"]] == [url(place / "q.json")]
    assert "cache" not in (place / "r.json.run.json").read_text().replace('"compilation_cache"', "")


def test_another_machine_reads_the_complete_output(place, tmp_path, monkeypatch, capsys):
    words = (url(place / "q.json"), url(place / "r.json"), "--scores", url(place / "s.json"))
    model = ("--model", url(place / "model"), "--max-length", 64, "--output", url(place / "p.json"))
    for number in range(2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine{number}"))
        assert rank(*words) == 0
        assert lamp("generate", "--task", "LaMP-3", "--questions", url(place / "q.json"), *model) == 0
    assert capsys.readouterr().out.count("already") == 2
    assert (place / "p.scores.json").exists()
    assert not remote._copies
