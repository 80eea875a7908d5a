"""Config pages: Python files whose `experiment` is the options of a command."""

import inspect
import runpy
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro import _strings  # private: nothing public changes how help texts are joined

from lamp_jax.choices import check_settings
from lamp_jax.errors import LampError

CLI_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
"""tyro settings of all command lines."""


def installed_page(name: str) -> str:
    """Path of a config page of this project: beside the package in a checkout, in the package where installed."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return str((installed if installed.is_dir() else package.parent / "configs") / name)


def read_experiment(path: str, *kinds: type) -> Any:
    """Experiment of a config page, its `experiment`. LampError if it is missing, not an instance of `kinds`,
    or has a setting that is not one of its choices."""
    try:
        page = runpy.run_path(path)
    except FileNotFoundError:
        raise LampError(f"{path}: no such config page") from None
    except Exception as error:  # a page is any Python code
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        raise LampError(f"{path}, line {line or 1}: {type(error).__name__}: {error}") from error
    experiment = page.get("experiment")
    if not isinstance(experiment, kinds):
        wanted = " or ".join(f"{kind.__name__}(...)" for kind in kinds)
        raise LampError(f"{path}: `experiment` must be {wanted}, found {type(experiment).__name__}")
    check_settings(experiment, name=f"{path}: ")
    return experiment


def parse_options(kind: Any, words: Sequence[str], **settings: Any) -> Any:
    """Options of a command line, as `tyro.cli` parses them. Exits with a usage message for invalid words."""
    join = _strings.remove_single_line_breaks
    # tyro 1.0 joins the lines of an attribute's docstring before it removes their indentation, and thus joins none.
    _strings.remove_single_line_breaks = lambda text: join(inspect.cleandoc(text))
    try:
        return tyro.cli(kind, args=list(words), config=CLI_STYLE, **settings)
    finally:
        _strings.remove_single_line_breaks = join


def override(experiment: Any, words: Sequence[str]) -> Any:
    """Experiment with options replaced by those of a command line. Exits with a usage message for invalid ones."""
    if not words:
        return experiment
    return parse_options(type(experiment), words, default=experiment, prog="lamp compile ... --")
