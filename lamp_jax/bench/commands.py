"""Commands of lamp as processes: their result and peak memory."""

import subprocess
import sys
from collections.abc import Sequence

from lamp_jax.errors import LampError

_MB = 1e6


# A process's peak memory is at least that of the process that started it: a small one starts the command.
_LAUNCH = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def run_lamp(words: Sequence[str]) -> float:
    """Runs `lamp WORDS`; returns its peak resident memory in MB. LampError, with its messages, where it fails.

    Its processor time counts as that of a child of this process.
    """
    command = [sys.executable, "-S", "-c", _LAUNCH, sys.executable, "-m", "lamp_jax.cli", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    said, _, peak = done.stdout.strip().rpartition("\n")
    if done.returncode:
        raise LampError(f"lamp {' '.join(words)}: exit status {done.returncode}: {said[-500:]}")
    return int(peak) * (1 if sys.platform == "darwin" else 1024) / _MB
