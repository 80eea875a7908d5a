"""Config pages: Python files whose `experiment` is the options of a command."""

import runpy
import traceback
from collections.abc import Sequence
from typing import Any

import tyro

from lamp_jax.errors import LampError

CLI_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
"""tyro settings of all command lines."""


def read_experiment(path: str, *kinds: type) -> Any:
    """The `experiment` of a config page. LampError if it is missing or not an instance of `kinds`."""
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
    return experiment


def override(experiment: Any, words: Sequence[str]) -> Any:
    """An experiment with command-line options replacing its own. Exits with a usage message for invalid options."""
    if not words:
        return experiment
    return tyro.cli(
        type(experiment), default=experiment, args=list(words), prog="lamp compile ... --", config=CLI_STYLE
    )
