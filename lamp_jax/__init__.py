"""Personalizing language models from a user's own history, in JAX.

`import lamp_jax as lamp` gives the library's functions (`lamp_jax.api`) and the dataclasses that they take; each is
imported when it is first used, and none of these imports starts jax.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lamp_jax.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from lamp_jax.api import (
        adapters,
        compare,
        feedback,
        finetune,
        generate,
        load,
        prompts,
        rank,
        read_questions,
        score,
        task,
        tasks,
        train_retriever,
    )
    from lamp_jax.config import Answering, Learning, Lora, Optimization, Prompting, ScratchEncoder
    from lamp_jax.results import ItemFeedback
    from lamp_jax.settings import AdapterTraining, GeneratorTraining, RetrieverTraining, Scratch

__all__ = [
    "AdapterTraining",
    "Answering",
    "GeneratorTraining",
    "ItemFeedback",
    "Learning",
    "Lora",
    "Optimization",
    "Prompting",
    "RetrieverTraining",
    "Scratch",
    "ScratchEncoder",
    "adapters",
    "compare",
    "feedback",
    "finetune",
    "generate",
    "load",
    "prompts",
    "rank",
    "read_questions",
    "score",
    "task",
    "tasks",
    "train_retriever",
]

_HOMES = {
    "config": ("Answering", "Learning", "Lora", "Optimization", "Prompting", "ScratchEncoder"),
    "results": ("ItemFeedback",),
    "settings": ("AdapterTraining", "GeneratorTraining", "RetrieverTraining", "Scratch"),
}
_MODULES = dict.fromkeys(__all__, "api") | {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The subpackage `tasks` takes this name once it is imported; it is callable and returns what api.tasks returns.
    return (
        import_module("lamp_jax.tasks")
        if name == "tasks"
        else getattr(import_module(f"lamp_jax.{_MODULES[name]}"), name)
    )


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
