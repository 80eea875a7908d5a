"""XLA flags that the installed jax supports."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable

_UNKNOWN_FLAGS = re.compile(r"Unknown flags? in XLA_FLAGS: (.*)")


def known_flags(flags: Iterable[str]) -> list[str]:
    """The given XLA flags that the installed jax supports.

    An unknown flag ends the process, so a separate process tests the flags. Flags that are already in this process's
    XLA_FLAGS, as in a test worker's, are supported.
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
