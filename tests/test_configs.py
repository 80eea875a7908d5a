"""Config pages: their descriptions of themselves, and the demo's, which are part of the installed package."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from lamp_jax import cli
from lamp_jax.choices import check_settings
from lamp_jax.errors import LampError
from lamp_jax.options import STAGES, Demo, Synth, TrainRetriever
from lamp_jax.options.pages import read_experiment
from lamp_jax.stages.demo_pages import PAGES, page_paths, read_page

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("page", CONFIGS, ids=lambda path: path.stem)
def test_a_page_states_its_command_hardware_time_and_score(page: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = ast.get_docstring(ast.parse(page.read_text())) or ""
    facts = dict(re.findall(r"^(Command|Hardware|Time|Score): +(\S.*)$", text, re.MULTILINE))
    assert list(facts) == ["Command", "Hardware", "Time", "Score"]
    words = re.sub(r" +\(.*", "", facts["Command"]).split()
    assert words[0] == "lamp"
    assert f"configs/{page.name}" in words
    stage, options = cli.parse(words[1:])
    assert isinstance(options, STAGES[stage])


@pytest.mark.parametrize("page", CONFIGS, ids=lambda path: path.stem)
def test_a_page_shows_its_values(page: Path):
    """A page is imports of options and one call of a command's dataclass."""
    _, *body = ast.parse(page.read_text()).body
    *imports, experiment = body
    assert [one.module for one in imports if isinstance(one, ast.ImportFrom)] == ["lamp_jax.options"] * len(imports)
    assert isinstance(experiment, ast.Assign)
    assert isinstance(experiment.value, ast.Call)


def test_the_demo_reads_its_pages_in_its_directory_with_its_seed():
    paths = {Path(path).stem: path for part in PAGES for path in page_paths(part)}
    assert sorted(paths) == [path.stem for path in CONFIGS if path.stem.startswith("demo_")]
    for stem, path in paths.items():
        page, name = read_experiment(path, *STAGES.values()), stem.removeprefix("demo_")
        assert read_page(name, type(page), Demo()) == page
        full, smoke = (
            read_page(name, type(page), Demo(output="else/where", seed=7, size=size)) for size in ("full", "smoke")
        )
        assert full != smoke
        for experiment in (full, smoke):
            assert getattr(experiment, "seed", 7) == 7
            assert experiment.output == page.output.replace("demo/", "else/where/", 1)
            assert "'demo/" not in repr(experiment)


def test_a_page_of_the_demo_that_writes_elsewhere_is_named(tmp_path: Path, monkeypatch):
    page = tmp_path / "demo_data.py"
    page.write_text((ROOT / "configs" / "demo_data.py").read_text().replace("demo/data", "runs/data"))
    monkeypatch.setattr("lamp_jax.stages.demo_pages.installed_page", lambda name: str(tmp_path / name))
    with pytest.raises(LampError, match=r"demo_data\.py: its output is 'runs/data'; begin it with 'demo/'"):
        read_page("data", Synth, Demo())


def test_the_installed_package_has_the_pages(tmp_path: Path):
    pytest.importorskip("setuptools")
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    program = """
from lamp_jax.stages.demo_pages import PAGES, page_paths
print("\\n".join(path for part in PAGES for path in page_paths(part)))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    pages = [Path(line) for line in done.stdout.splitlines()]
    assert {page.parent for page in pages} == {tmp_path / "lamp_jax" / "configs"}
    assert all(page.read_bytes() == (ROOT / "configs" / page.name).read_bytes() for page in pages)


def test_a_setting_that_is_none_of_its_choices_is_an_error(tmp_path):
    """As on the command line: an unknown method of training would train by another one."""
    page = tmp_path / "page.py"
    page.write_text((ROOT / "configs" / "ropg_kd.py").read_text().replace('method="kd"', 'method="KD"'))
    with pytest.raises(LampError, match=r"page\.py: method='KD': choose one of kd, rl"):
        read_experiment(str(page), TrainRetriever)


@pytest.mark.parametrize("kind", STAGES.values(), ids=lambda kind: kind.__name__)
def test_choices_of_every_command_can_be_checked(kind: type):
    required = {field.name: "" for field in fields(kind) if field.default is MISSING}
    literals = {name: get_args(hint) for name, hint in get_type_hints(kind).items() if get_origin(hint) is Literal}
    check_settings(kind(**required | {name: literals[name][0] for name in literals.keys() & required.keys()}))
    for name in literals:
        with pytest.raises(LampError, match=f"{name}='nothing': choose one of"):
            check_settings(kind(**required | {name: "nothing"}))
