"""Tasks: prompts for a language model, and metrics of its answers.

The package is callable and returns all tasks: `lamp_jax.tasks()` is a function of the library (`lamp_jax.api`), and
importing this package binds the same name.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self) -> tuple[Any, ...]:
        from lamp_jax.tasks.catalog import TASKS

        return tuple(TASKS.values())


sys.modules[__name__].__class__ = _Callable
