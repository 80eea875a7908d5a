#!/usr/bin/env bash
# safetensors 0.8.0: a slice that ends beyond a tensor's last row is an error, and not cut short as in Python.
#
# Guess: get_slice("x")[:8] of a tensor [6, 2] gives its 6 rows, as numpy, PyTorch and lists do; whoever reads "the first
# few rows" of every tensor of a checkpoint relies on it. Seen: SafetensorError, index out of bounds, for any stop beyond
# the last row and for the empty slice [6:]; a negative stop, as in [:-2], is an OverflowError. Stops within are right.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
"$place/venv/bin/python" - "$place/x.safetensors" << 'EOF'
import sys
from importlib.metadata import version

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

print("safetensors", version("safetensors"))
save_file({"x": np.arange(12, dtype=np.float32).reshape(6, 2)}, sys.argv[1])
found = {}
with safe_open(sys.argv[1], framework="numpy") as file:
    slices = {"[:6]": slice(6), "[:8]": slice(8), "[4:8]": slice(4, 8), "[:-2]": slice(-2), "[6:]": slice(6, None)}
    for title, rows in slices.items():
        try:
            found[title] = file.get_slice("x")[rows].shape
        except Exception as error:
            found[title] = type(error).__name__
        print(f"{title:6} numpy {np.zeros((6, 2))[rows].shape!s:8} safetensors {found[title]}")
assert found["[:6]"] == (6, 2)
assert {found[title] for title in ("[:8]", "[4:8]", "[6:]")} == {"SafetensorError"}, found
assert found["[:-2]"] == "OverflowError", found
EOF
