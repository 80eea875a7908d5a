"""Config pages: a Python file whose `experiment` holds the options of a stage."""

import runpy
import traceback
from collections.abc import Sequence
from typing import Any

import tyro

from lamp_jax.errors import LampError

CLI_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
"""How options are spelled."""


def read_experiment(path: str, *kinds: type) -> Any:
    """The `experiment` of a page. LampError where there is none, or it is of none of these kinds."""
    try:
        page = runpy.run_path(path)
    except FileNotFoundError:
        raise LampError(f"{path}: no such config page") from None
    except Exception as error:  # the page may do anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        raise LampError(f"{path}, line {line or 1}: {type(error).__name__}: {error}") from error
    experiment = page.get("experiment")
    if not isinstance(experiment, kinds):
        wanted = " or ".join(f"{kind.__name__}(...)" for kind in kinds)
        raise LampError(f"{path}: `experiment` must be {wanted}, found {type(experiment).__name__}")
    return experiment


def override(experiment: Any, words: Sequence[str]) -> Any:
    """The experiment with options of a command line over its own. Exits as command lines do where they do not fit."""
    if not words:
        return experiment
    return tyro.cli(
        type(experiment), default=experiment, args=list(words), prog="lamp compile ... --", config=CLI_STYLE
    )
