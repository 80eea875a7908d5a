"""Notebooks: they run unchanged, define no functions or classes, and are stored without outputs."""

import ast
import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from lamp_jax.compiled_programs import VARIABLE

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))

TABLES = {
    "quickstart.ipynb": [
        r"retriever +accuracy",
        *(rf"^{name} +0\.\d" for name in ("none", "random", "recency", "bm25")),
    ],
    "lamp_data.ipynb": [rf"^{name} +MAE +\d\.\d+ " for name in ("zero_shot_none", "zero_shot_bm25", "tuned_bm25")],
    "adapters.ipynb": [rf"^{name} +[01]\.\d+ " for name in ("none", "rag", "peft", "rag\\+peft")],
    "library.ipynb": [
        r"^scores \{'without': \d",
        r"^with +Answer\(.*p=0\.\d",
        r"^tokens \(1, \d+\) states \(1, \d+, 64\)",
    ],
    "retriever_optimization.ipynb": [rf"^{name} +[01]\.\d+ " for name in ("none", "bm25", "ropg-kd", "ropg-rl")],
}
"""Texts that must occur in the outputs."""
PICTURES = {
    "quickstart.ipynb": 2,
    "library.ipynb": 2,
    "adapters.ipynb": 2,
    "lamp_data.ipynb": 1,
    "retriever_optimization.ipynb": 1,
}


def read(name):
    return nbformat.read(FOLDER / name, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def runs_commands(name):
    """Whether a notebook runs commands, not the library in the notebook's own process."""
    return any(cell.source.startswith("%%") for cell in code_cells(read(name)))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory, compiled):
    """Name of a kernel with the Python of the tests and without internet access."""
    folder = tmp_path_factory.mktemp("jupyter")
    nowhere = "http://127.0.0.1:9"
    environment = {
        "LAMP_SIZE": "smoke",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        # The number of devices of a user's machine; quick compilation and a cache, as in all tests.
        "XLA_FLAGS": re.sub(r"--xla_force_host_platform_device_count=\S+", "", os.environ["XLA_FLAGS"]).strip(),
        VARIABLE: compiled,
        "HF_HUB_OFFLINE": "1",
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "IPYTHONDIR": str(folder / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python of the tests",
        "language": "python",
        "env": environment,
    }
    place = folder / "kernels" / "tests"
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
        yield "tests"


def test_every_notebook_is_tested():
    assert set(NAMES) == set(TABLES) == set(PICTURES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Directory in which all notebooks run, as in a checkout: those that run `lamp demo` share its model."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_at_smoke_size(name, kernel, folder):
    notebook = read(name)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name=kernel, resources=resources).execute()
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    for line in TABLES[name]:
        assert re.search(line, text, re.MULTILINE), (line, text)
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES[name]
    assert all(base64.b64decode(picture).startswith(b"\x89PNG\r\n\x1a\n") for picture in pictures)


@pytest.mark.slow
def test_a_command_that_fails_stops_a_notebook(kernel, tmp_path):
    notebook = read("retriever_optimization.ipynb")
    demo = next(cell for cell in code_cells(notebook) if cell.id == "demo")
    demo.source = demo.source.replace("--output demo", "--size enormous")
    resources = {"metadata": {"path": str(tmp_path)}}
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="CalledProcessError"):
        nbclient.NotebookClient(notebook, timeout=300, kernel_name=kernel, resources=resources).execute()


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_define_no_functions_or_classes(name):
    for cell in code_cells(read(name)):
        if cell.source.startswith("%%"):
            assert cell.source.startswith("%%bash -eu\n"), "a shell that continues after an error"
            continue
        assert not re.search(r"^\s*[%!]", cell.source, re.MULTILINE), "a failure of such a line is not seen"
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)


def test_only_quickstart_and_library_compute_in_their_own_process():
    assert [name for name in NAMES if not runs_commands(name)] == ["library.ipynb", "quickstart.ipynb"]


@pytest.mark.parametrize("name", list(filter(runs_commands, NAMES)))
def test_imports_of_a_notebook_of_commands_do_not_start_jax(name):
    """jax in the notebook's own process would hold the TPU that the commands need."""
    sources = [cell.source for cell in code_cells(read(name))]
    python = [source for source in sources if not source.startswith("%%")]
    nodes = [node for source in python for node in ast.walk(ast.parse(source))]
    imports = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    assert any("lamp " in source for source in sources)
    check = ["import sys", "assert not {'jax', 'flax'} & set(sys.modules)"]
    subprocess.run([sys.executable, "-c", "\n".join(imports + check)], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stripped(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert cell.metadata == {}
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_cell_ids_are_unique(name):
    names = [cell.id for cell in read(name).cells]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", one) for one in names), "an editor has written random ids"


def test_notebooks_have_the_same_first_cells():
    firsts = [code_cells(read(name))[0] for name in NAMES]
    assert {cell.id for cell in firsts} == {"install"}
    assert len({cell.source for cell in firsts}) == 1
