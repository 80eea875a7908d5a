"""What is asked of a language model, and what is scored.

Called, the package gives all tasks: `lamp_jax.tasks()` is a function of the library (`lamp_jax.api`), and Python finds
this package under its name.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self) -> tuple[Any, ...]:
        from lamp_jax.tasks.catalog import TASKS

        return tuple(TASKS.values())


sys.modules[__name__].__class__ = _Callable
