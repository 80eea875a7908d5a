"""Layers of the package: a module imports only from layers below it, and host layers never start jax."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lamp_jax"
FLOORS = {
    "": 1,
    "errors": 0,
    "version": 0,
    "config": 0,
    "choices": 1,
    "settings": 1,
    "runs": 1,
    "tasks": 2,
    "data": 3,
    "artifacts": 4,
    "datasets": 4,
    "results": 5,
    "retrieval": 5,
    "inputs": 6,
    "compiled_programs": 7,
    "distributed": 7,
    "sharding": 8,
    "models": 9,
    "losses": 9,
    "decoding": 10,
    "encoding": 10,
    "steps": 11,
    "training": 12,
    "compiler": 12,
    "options": 13,
    "api_training": 13,
    "api": 14,
    "bench": 15,
    "stages": 16,
    "cli": 17,
}
WATERLINE = 6
DEVICE_LIBRARIES = {"jax", "flax", "optax", "orbax", "jaxlib", "chex"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def floor_name(module: str) -> str:
    """The name in FLOORS that a module of the package belongs to."""
    return module.removeprefix("lamp_jax").removeprefix(".").partition(".")[0]


def imports(path: Path) -> set[str]:
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path == PACKAGE / "__init__.py":  # its re-exported names are imported on first use
        tree.body = [node for node in tree.body if "TYPE_CHECKING" not in ast.unparse(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from lamp_jax import config` imports a module, `from lamp_jax.errors import LampError` a module's name.
            package = node.module == "lamp_jax"
            names |= {f"lamp_jax.{alias.name}" for alias in node.names} if package else {node.module or ""}
    return names


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_from_floors_below(path: Path):
    own = floor_name(module_name(path))
    for name in imports(path):
        if name == "lamp_jax" or name.startswith("lamp_jax."):
            other = floor_name(name)
            below = FLOORS[other] < FLOORS[own] or other == own
            assert below, f"{module_name(path)} (floor {FLOORS[own]}) imports {name} (floor {FLOORS[other]})"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if FLOORS[floor_name(module_name(path))] <= WATERLINE], ids=module_name
)
def test_a_host_module_names_no_device_library(path: Path):
    assert not {name.partition(".")[0] for name in imports(path)} & DEVICE_LIBRARIES


def test_the_json_writer_knows_no_process_group():
    assert "lamp_jax.runs.processes" not in imports(PACKAGE / "runs" / "json_files.py")


@pytest.mark.parametrize(
    "path", [path for path in MODULES if floor_name(module_name(path)) != "models"], ids=module_name
)
def test_no_module_outside_models_knows_a_family_of_generators(path: Path):
    """Others use `models.generator` and `models.families`: a new family changes none of them."""
    assert not [name for name in imports(path) if name.startswith("lamp_jax.models.t5")]
    named = [node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)]
    assert not [name for name in named if name.lower().removeprefix("_") in ("t5", "t5config") or "_t5" in name]


def test_no_host_module_starts_jax():
    host = [module_name(path) for path in MODULES if FLOORS[floor_name(module_name(path))] <= WATERLINE]
    program = f"""
import importlib, sys
for name in {host!r}:
    importlib.import_module(name)
assert "jax" not in sys.modules, "jax was imported"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_no_import_of_any_module_starts_a_backend():
    """Multi-host programs call jax.distributed.initialize after their imports, before the backend starts."""
    names = [module_name(path) for path in MODULES]
    program = f"""
import importlib
for name in {names!r}:
    importlib.import_module(name)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_help_does_not_start_jax():
    program = """
import sys
from lamp_jax import cli
try:
    cli.main(["train", "--help"])
except SystemExit:
    pass
assert "jax" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
