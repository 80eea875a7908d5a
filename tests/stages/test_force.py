"""`--force` of every command: no stage replaces its own input at, above or inside its output."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lamp_jax import cli, config
from lamp_jax.artifacts.adapters import AdapterEntry, create_store
from lamp_jax.runs.records import record_path
from lamp_jax.training.store import make_form

TINY = Path(__file__).parents[1] / "cases" / "tiny"
QUESTION = {
    "id": "1",
    "input": "What is the score of the following review on a scale of 1 to 5? review: good",
    "profile": [{"id": "1", "text": "good", "score": "5", "date": "2020-01-01"}],
    "user_id": "u",
    "output": "5",
}
RECORD = {"stage": "train", "fingerprint": "x", "finished": True, "makes": ["*"], "settings": {}}


class Stage(NamedTuple):
    """Arguments of a command: the options that are input paths, and the others."""

    inputs: tuple[str, ...]
    more: str = ""
    output: str = "--output"


SCORED = "--task LaMP-3"
STAGES = {
    "avocado": Stage(("--archives", "--ids")),
    "build": Stage(("--histories", "--join"), SCORED),
    "check": Stage(("files",), ""),
    "tfds": Stage(("--data",), SCORED),
    "rank": Stage(("--questions", "--encoder"), f"{SCORED} --ranker dense"),
    "rank rrf": Stage(("--questions", "--rankings"), f"{SCORED} --ranker rrf"),
    "merge": Stage(("--questions", "--outputs", "--ranking")),
    "prompts": Stage(("--merged", "--tokenizer"), SCORED),
    "train": Stage(("--train", "--validation", "--model"), SCORED),
    "generate": Stage(("--questions", "--golds", "--model", "--adapters"), SCORED),
    "feedback items": Stage(("--merged", "--model"), SCORED),
    "feedback retrievers": Stage(("--pool", "--model"), SCORED),
    "train-adapters": Stage(("--questions", "--model"), SCORED),
    "export-adapter": Stage(("store", "--model"), "--user u"),
    "import-adapter": Stage(("directory", "--model"), "--user u", output="--store"),
    "convert-store": Stage(("--store",)),
    "train-retriever": Stage(
        ("--questions", "--validation", "--feedback", "--validation-feedback", "--encoder"), SCORED
    ),
    "selector-data": Stage(("--feedback", "--questions", "--golds", "--scores")),
    "train-selector": Stage(("--train", "--validation", "--model")),
    "select": Stage(("--data", "--selector", "--train")),
    "evaluate": Stage(("--golds", "--predictions"), SCORED),
    "evaluate zips": Stage(("--golds-zip", "--predictions-zip")),
}
WITHOUT_INPUTS = {"demo", "synth", "download", "compile", "bench"}
WITHOUT_FORCE = {"check", "import-adapter"}
DIRECTORIES = {"--model", "--adapters", "--encoder", "--tokenizer", "--selector", "--feedback", "--validation-feedback"}
DIRECTORIES |= {"store", "--store", "directory", "--archives", "--ids", "--data"}
NOT_PATHS = {
    "task",
    "user",
    "by",
    "ranker",
    "retriever",
    "mode",
    "method",
    "decode",
    "beam_staging",
    "embeddings_cache",
    "columns",
    "date_format",
    "encoding",
}
NOT_PATHS |= {"output", "scores", "export_reference", "all"}
CASES = [(name, option) for name, stage in STAGES.items() for option in stage.inputs]


def command(name: str) -> str:
    return name if name in cli.STAGES else name.rsplit(" ", 1)[0]


def test_every_command_and_every_option_that_is_a_path_is_tried():
    assert {command(name) for name in STAGES} | WITHOUT_INPUTS == set(cli.STAGES)
    for name, options in cli.STAGES.items():
        if name in WITHOUT_INPUTS:
            continue
        texts = {field.name for field in dataclasses.fields(options) if field.type in (str, "str", tuple[str, ...])}
        tried = {one for key, stage in STAGES.items() if command(key) == name for one in stage.inputs}
        plain = {one.removeprefix("--").replace("-", "_") for one in tried}
        others = {"metrics", "map", "pool", "tasks", "user", "store"} | NOT_PATHS
        assert texts - plain <= others, name


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> Path:
    """A store with the adapter of one user."""
    directory = tmp_path_factory.mktemp("made") / "store"
    form = make_form(str(TINY / "t5_ft"), config.Lora(rank=1), "float32")
    store = create_store(directory, form)
    store.append([AdapterEntry("u", 1, 1, 1.0)], {name: np.ones((1, *shape)) for name, shape in form.shapes.items()})
    store.close()
    return directory


@pytest.fixture
def world(tmp_path, adapters) -> Path:
    """An input for each option, in a separate directory that a run record of lamp lists as an output."""
    for options in {option for stage in STAGES.values() for option in stage.inputs}:
        folder = tmp_path / options.removeprefix("--")
        if folder.exists():  # `store` and `--store`
            continue
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(RECORD))
        if options in DIRECTORIES:
            fill(options, folder / "in", adapters)
    for name in ("questions", "golds", "outputs", "train", "validation", "merged", "files", "pool"):
        (tmp_path / name / "in").write_text(json.dumps([QUESTION]))
    (tmp_path / "histories" / "in").write_text("user,date,text,score\nu,2020-01-01,good,5\n")
    return tmp_path


def fill(option: str, place: Path, adapters: Path) -> None:
    models = {"--encoder": "bert", "--selector": "longformer_w512"}
    if option in ("store", "--store", "--adapters"):
        shutil.copytree(adapters, place)
    elif option in ("--model", "--tokenizer", *models):
        shutil.copytree(TINY / models.get(option, "t5_ft"), place)
    else:
        place.mkdir()
        (place / "kept.json").write_text("[]")
    if option == "--data":
        (place / "train_questions.json").write_text(json.dumps([QUESTION]))
        (place / "train_outputs.json").write_text(json.dumps([{"id": "1", "output": "5"}]))
    if option == "--archives":
        with zipfile.ZipFile(place / "001.zip", "w") as archive:
            archive.writestr("x.txt", "no mail")
    if option == "--ids":
        for part in ("train", "dev"):
            (place / f"{part}_questions.json").write_text("[]")


def words(name: str, world: Path, output: Path, **given: Path) -> list[str]:
    """The command with the inputs of the world, except those that are given."""
    stage = STAGES[name]
    called = [*command(name).split(), *stage.more.split()]
    for option in stage.inputs:
        if (name, option) == ("select", "--train") and given.get("option") != option:
            continue
        path = str(given.get(option) or world / option.removeprefix("--") / "in")
        path = f"a={path}" if option in ("--pool", "--scores") and name != "rank" else path
        path = f"{path}:user" if option == "--join" else path
        called += [option, path] if option.startswith("--") else [path]
        called += ["none"] if option == "--pool" else [path] if option == "--rankings" else []
    called += [stage.output, str(output)]
    return called if name in WITHOUT_FORCE else [*called, "--force"]


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """All files, directories and links below a folder."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else (path.read_bytes() if path.is_file() else "directory")
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(("name", "option"), CASES)
def test_force_leaves_every_input_unchanged(name, option, world, capsys):
    source = world / option.removeprefix("--") / "in"
    if not source.exists():
        source.write_text("[]")
    through, holder = world / "link", world / "holder"
    through.symlink_to(source)
    holder.mkdir()
    (holder / "run.json").write_text(json.dumps(RECORD))
    (holder / "link").symlink_to(source)
    (holder / "folder").symlink_to(source.parent)
    places = {
        "at": (source, source),
        "above": (source.parent, source),
        "at, through a link": (through, source),
        "above, through a link": (holder, holder / "link"),
        "above a link on the way": (holder, holder / "folder" / "in"),
    }
    if source.is_dir() and (name, option) not in {("tfds", "--data"), ("avocado", "--ids")}:
        places["inside"] = (source / "inner", source)
        (source / "linked").symlink_to(holder / "target")
        (holder / "target").write_text("its target is in the output")
        places["above the target of a link inside"] = (holder, source)
    if name == "tfds":  # writes to OUTPUT/lamp/CONFIG
        inner = world / "tfds" / "lamp" / "lamp_3_user"
        inner.parent.mkdir(parents=True)
        shutil.copytree(source, inner / "tree")
        (inner / "run.json").write_text(json.dumps(RECORD))
        places = {"above": (world / "tfds", inner / "tree")}
    before = snapshot(world)
    for how, (output, given) in places.items():
        called = words(name, world, output, **{option: given, "option": option})
        assert cli.main(called) == 1, how
        error = capsys.readouterr().err
        assert any(said in error for said in ("the input", "where this command writes a")), (how, error)
        assert snapshot(world) == before, how


def test_a_command_with_a_separate_output_passes_these_checks(world, capsys):
    for name in ("merge", "evaluate", "check", "prompts"):
        output = world / "apart" / f"{name}.json"
        assert cli.main(words(name, world, output)) in (0, 1)
        assert "the input" not in capsys.readouterr().err, name
        assert not record_path(output).with_suffix(".lock").exists()
