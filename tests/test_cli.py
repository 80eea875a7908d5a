"""Options from a command line."""

import contextlib
import inspect
import io
import re
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from lamp_jax import cli, config
from lamp_jax.options import Rank, Train
from lamp_jax.options.pages import override, parse_options, read_experiment

RANK = ["rank", "--task", "LaMP-3", "--questions", "q.json", "--output", "r.json"]


def test_options_and_defaults():
    stage, options = cli.parse([*RANK, "--ranker", "recency", "--use-date"])
    assert stage == "rank"
    assert options == Rank("r.json", "LaMP-3", "q.json", ranker="recency", use_date=True)


def test_reference_sets_every_switch_and_each_can_be_set_separately():
    _, options = cli.parse([*RANK, "--reference"])
    assert options.compatibility == config.REFERENCE
    _, options = cli.parse([*RANK, "--reference", "--lamp1-query", "template"])
    assert options.compatibility.lamp1_query == "template"
    assert options.compatibility.zero_budget == "whole"
    assert cli.parse(RANK)[1].compatibility == config.CORRECT


def test_nested_options_have_plain_names():
    words = ["generate", "--task", "LaMP-3", "--questions", "q", "--model", "m", "--output", "p"]
    _, options = cli.parse([*words, "--num-beams", "2", "--max-length", "256", "--dtype", "bfloat16"])
    assert options.answering.num_beams == 2
    assert options.prompting.max_length == 256
    assert options.devices.dtype == "bfloat16"


OPTION_OF_ALL = {"compile": "--topology", "bench": "--size", "import-adapter": "--store"}


@pytest.mark.parametrize("stage", cli.STAGES)
def test_every_stage_explains_every_option(stage, capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse([stage, "--help"])
    assert end.value.code == 0
    assert OPTION_OF_ALL.get(stage, "--output") in capsys.readouterr().out


def test_help_lists_every_command_with_its_summary(capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for stage, options in cli.STAGES.items():
        summary = " ".join(inspect.cleandoc(options.__doc__ or "").partition("\n\n")[0].split())
        assert summary
        assert f"{stage} {summary}" in shown


@pytest.mark.parametrize("words", [[], ["rnk"], ["feedback"], ["--task", "LaMP-3"]])
def test_words_that_begin_with_no_command_are_a_usage_error(words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse(words)
    assert end.value.code == 2
    assert re.search("COMMAND: invalid choice.*'rank'|required: COMMAND", capsys.readouterr().err)


def test_a_docstrings_lines_are_joined_in_a_help_text():
    @dataclass
    class Options:
        words: int = 0
        """First line, which ends after it
        continues in the second."""

    found = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(found):
        parse_options(Options, ["--help"], prog="lamp")
    assert re.search(r"which ends after\W+it continues in the second", found.getvalue())
    assert not re.search(r"after it\W*\n\W*continues", found.getvalue())


def test_commands_that_compute_run_on_all_processes():
    trained = {"train", "train-adapters", "train-retriever", "train-selector"}
    asked = {"generate", "select", "rank", "feedback items", "feedback retrievers"}
    assert {"demo", *trained, *asked} == cli.JOINT


@pytest.mark.parametrize("stage", cli.STAGES)
def test_every_stage_has_a_program(stage):
    from importlib import import_module

    assert callable(import_module(cli.module_of(stage)).run)


PAGE = """
from lamp_jax.options import Learning, Train
experiment = Train("LaMP-3", "a.json", "b.json", "out", learning=Learning(epochs=3.0))
"""


def test_a_config_page_gives_defaults_that_options_override(tmp_path):
    page = tmp_path / "page.py"
    page.write_text(PAGE)
    assert cli.parse(["train", str(page)])[1].learning.epochs == 3.0
    options = cli.parse(["train", str(page), "--epochs", "1", "--seed", "5"])[1]
    assert (options.learning.epochs, options.seed, options.train) == (1.0, 5, "a.json")


def test_compile_takes_a_page_and_after_two_dashes_options_of_its_experiment(tmp_path):
    page = tmp_path / "page.py"
    page.write_text(PAGE)
    words = ["compile", str(page), "--topology", "v5e:2x4", "--", "--epochs", "1", "--sharding", "fsdp"]
    _, options = cli.parse(words)
    assert (options.config, options.topology) == (str(page), "v5e:2x4")
    experiment = override(read_experiment(str(page), Train), options.options)
    assert (experiment.learning.epochs, experiment.devices.sharding, experiment.train) == (1.0, "fsdp", "a.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [("x = (\n", "line 1: SyntaxError"), ("x = 1\n1 / 0\n", "line 2: Zero"), ("import nothing_such", "line 1: Module")],
)
def test_a_config_page_that_ends_in_an_error_is_named_with_the_line(tmp_path, capsys, content, words):
    (tmp_path / "page.py").write_text(content)
    assert cli.main(["train", str(tmp_path / "page.py")]) == 1
    assert f"{tmp_path / 'page.py'}, {words}" in capsys.readouterr().err


def test_a_bad_config_page_is_named(tmp_path, capsys):
    assert cli.main(["train", str(tmp_path / "absent.py")]) == 1
    assert "no such config page" in capsys.readouterr().err
    (tmp_path / "empty.py").write_text("")
    assert cli.main(["train", str(tmp_path / "empty.py")]) == 1
    assert "`experiment` must be Train(...)" in capsys.readouterr().err


def test_the_error_about_an_unknown_task_lists_all_tasks(capsys):
    assert cli.main(["rank", "--task", "LaMP-9", "--questions", "q.json", "--output", "r.json"]) == 1
    assert "choose one of LaMP-1, LaMP-2" in capsys.readouterr().err


def test_a_closed_output_pipe_is_no_error():
    words = f"{sys.executable} -m lamp_jax.cli rank --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert int(done.stdout) in (0, 128 + signal.SIGPIPE)  # 0: all was written before the reader closed the pipe
