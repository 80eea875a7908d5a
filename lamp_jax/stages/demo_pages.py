"""Experiments of the demo: config pages `demo_*.py` with the directory, seed and size of a run."""

from dataclasses import fields, replace
from typing import Any, TypeVar

from lamp_jax.config import ScratchEncoder
from lamp_jax.errors import LampError
from lamp_jax.options.demo import Demo
from lamp_jax.options.pages import installed_page, read_experiment
from lamp_jax.options.selector import ScratchSelector
from lamp_jax.settings import Scratch

Experiment = TypeVar("Experiment")

PAGES = {
    "": ("data", "generator"),
    "retriever": ("feedback", "ropg_kd", "ropg_rl"),
    "selector": ("rspg_pre", "rspg_post"),
    "adapters": ("adapters_data", "adapters"),
}
"""Config pages of the demo itself, and of each chapter that `--stages` adds."""

_DIRECTORY = "demo/"
"""Prefix of the paths in the pages."""

# Feedback by likelihood: an untrained model is wrong with every item, so that the metrics of all items are equal.
_FEEDBACK: dict[str, Any] = {"profile_size": 2, "reward": "likelihood"}
_ROPG = _FEEDBACK | {
    "epochs": 1,
    "scratch": ScratchEncoder(16, 32, num_layers=1, num_heads=2, vocab_size=300, dropout=0),
}
_RSPG = {"epochs": 1, "scratch": ScratchSelector(16, 32, num_layers=1, num_heads=2, vocab_size=300, dropout=0)}
_SMOKE: dict[str, dict[str, Any]] = {
    "data": {"questions": 40, "dev_questions": 20, "profile_size": 6},
    "generator": {
        "epochs": 1,
        "scratch": Scratch(16, 32, num_layers=1, num_decoder_layers=1, num_heads=2, vocab_size=400, dropout=0),
    },
    "feedback": _FEEDBACK,
    "ropg_kd": _ROPG,
    "ropg_rl": _ROPG,
    "rspg_pre": _RSPG,
    "rspg_post": _RSPG,
    "adapters_data": {"dev_questions": 16, "profile_sizes": (2, 8)},
    "adapters": {"epochs": 1, "users_per_step": 8},
}
"""Values of `--size smoke` that replace those of the pages."""


def page_paths(part: str = "") -> list[str]:
    """Paths of the pages of the demo itself, or of a chapter."""
    return [installed_page(f"demo_{name}.py") for name in PAGES[part]]


def read_page(name: str, kind: type[Experiment], options: Demo) -> Experiment:
    """Experiment of the page `demo_NAME.py`, in the demo's directory, with its seed and size.

    Raises LampError as `read_experiment`, and for a page whose output is not in the demo's directory.
    """
    path = installed_page(f"demo_{name}.py")
    experiment = read_experiment(path, kind)
    if not experiment.output.startswith(_DIRECTORY):
        given = f"its output is {experiment.output!r}"
        raise LampError(
            f"{path}: {given}; begin it with {_DIRECTORY!r}, which `lamp demo` replaces by its own --output"
        )
    changes = dict(_SMOKE[name]) if options.size == "smoke" else {}
    if "epochs" in changes:
        changes["learning"] = replace(experiment.learning, epochs=changes.pop("epochs"))
    if any(field.name == "seed" for field in fields(experiment)):
        changes["seed"] = options.seed
    paths = {field.name: _move(getattr(experiment, field.name), options.output) for field in fields(experiment)}
    return replace(experiment, **paths | changes)


def _move(value: Any, directory: str) -> Any:
    """Paths moved from the pages' directory to another; any other value unchanged."""
    if isinstance(value, tuple):
        return tuple(_move(one, directory) for one in value)
    if isinstance(value, str) and value.startswith(_DIRECTORY):
        return f"{directory.rstrip('/')}/{value.removeprefix(_DIRECTORY)}"
    return value
