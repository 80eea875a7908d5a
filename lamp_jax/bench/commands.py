"""Commands of lamp as processes: their result and peak memory."""

import os
import subprocess
import sys
from collections.abc import Sequence

from lamp_jax.errors import LampError

_MB = 1e6


def run_lamp(words: Sequence[str]) -> float:
    """Runs `lamp WORDS`; returns its peak resident memory in MB. LampError, with its messages, where it fails.

    Its processor time counts as that of a child of this process.
    """
    return run_python(["-m", "lamp_jax.cli", *words])


def run_python(words: Sequence[str]) -> float:
    """Runs a Python command, as `run_lamp`."""
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None  # a pipe
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise LampError(f"{' '.join(words)}: exit status {process.returncode}: {said.strip()[-500:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return used.ru_maxrss * unit / _MB
