#!/usr/bin/env bash
# Signals of a process that loads libtpu, jax 0.10.2 and libtpu 0.0.42.1; describing a topology is enough, no TPU.
#
# SIGHUP and SIGPROF, which ended the process before, are ignored from then on, and so they are in every process that
# it starts: a shell and its children, for example, outlive a hangup. signal.getsignal still says Handlers.SIG_DFL.
# Handlers that Python had set before (SIGHUP, SIGTERM) stay.
#
# Exit status 1: the behaviour changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-8 TPU_WORKER_HOSTNAMES=localhost
export TPU_STDERR_LOG_LEVEL=3 TPU_MIN_LOG_LEVEL=3
cat >"$folder/signals.py" <<'PYTHON'
import os
import signal
import subprocess
import sys
from importlib.metadata import version

from jax.experimental.topologies import get_topology_desc

handled = []
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGPROF, signal.SIG_DFL)
signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))


def of_a_child():
    """What ends a process that sends itself SIGHUP or SIGPROF: the number of the signal, or 0."""
    ends = (subprocess.run(["bash", "-c", f"kill -{name} $$"]).returncode for name in ("HUP", "PROF"))
    return tuple(-status for status in ends)


print("jax", version("jax"), "libtpu", version("libtpu"))
found = {"a child before": of_a_child()}
get_topology_desc("v5e:2x4", "tpu")
found["a child after"] = of_a_child()
found["getsignal"] = repr(signal.getsignal(signal.SIGHUP))
os.kill(os.getpid(), signal.SIGHUP)
os.kill(os.getpid(), signal.SIGTERM)
found["handled"] = handled
print("\n".join(f"{what}: {value}" for what, value in found.items()))
sys.exit(
    found
    != {
        "a child before": (signal.SIGHUP, signal.SIGPROF),
        "a child after": (0, 0),
        "getsignal": "<Handlers.SIG_DFL: 0>",
        "handled": [signal.SIGTERM],
    }
)
PYTHON
"$folder/venv/bin/python" "$folder/signals.py"
