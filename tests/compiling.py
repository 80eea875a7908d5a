"""What the compiler of this jax is asked for: options and flags come and go, and one that it does not know is an error.

Nothing here starts jax in this process before it is asked for an option.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

_UNKNOWN_OPTION, _UNKNOWN_FLAGS = "No such compile option", re.compile(r"Unknown flags? in XLA_FLAGS: (.*)")


@cache
def quickly() -> dict[str, Any]:
    """Compile options with which the same programs are compiled in half the time; none where jax has no such option."""
    return known_options({"xla_cpu_use_fusion_emitters": False})


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those compile options that jax knows."""
    return {name: value for name, value in options.items() if _is_known(name, value)}


def _is_known(name: str, value: Any) -> bool:
    import jax

    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if _UNKNOWN_OPTION not in str(error):
            raise
        return False
    return True


def known_flags(flags: Iterable[str]) -> list[str]:
    """Those words for XLA_FLAGS that jax knows. It ends the process for any other: it is asked in a process of its own.

    Flags that are in this process's XLA_FLAGS already, as in a test worker's, are known.
    """
    flags = list(flags)
    if set(flags) <= set(os.environ.get("XLA_FLAGS", "").split()):
        return flags
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    asked = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if asked.returncode == 0:
        return flags
    found = _UNKNOWN_FLAGS.search(asked.stderr)
    unknown = set(found[1].split()) if found else set()
    if not unknown & set(flags):
        raise RuntimeError(f"jax does not start with XLA_FLAGS={' '.join(flags)}:\n{asked.stderr}")
    return known_flags(flag for flag in flags if flag not in unknown)
