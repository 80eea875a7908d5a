"""ROPG-RL as in its paper: as `ropg_kd.py`, but one sampled item a question against the un-tuned retriever's first."""

import runpy
from dataclasses import replace
from pathlib import Path

kd = runpy.run_path(str(Path(__file__).parent / "ropg_kd.py"))["experiment"]
experiment = replace(kd, method="rl", gradient="sampled", sampled_items=1, output="runs/LaMP_3/ropg_rl")
