#!/usr/bin/env bash
# Runs `lamp COMMAND...` on this machine's CUDA GPUs, in a virtual environment that is created if it is missing.
#
#   launch/gpu_run.sh COMMAND...
#   launch/gpu_run.sh train configs/movielens_lamp3.py --output runs/m
#
# --dry-run (before the COMMAND) prints the commands and runs nothing.

set -euo pipefail
takes="COMMAND"
# shellcheck source=launch/options.sh
source "$(dirname "$0")/options.sh"

launch/environment.sh ${dry_run:+"$dry_run"} cuda
if ! run .venv/bin/python -c 'import jax; print(*jax.devices("gpu"))'; then
  if nvidia-smi >/dev/null 2>&1; then
    remedy="nvidia-smi sees one: CUDA 13 needs driver 580 or newer and no LD_LIBRARY_PATH to another CUDA"
  else
    remedy="nvidia-smi sees no GPU either: install the driver (580 or newer), or run .venv/bin/lamp for the CPU"
  fi
  echo "$0: jax sees no GPU. $remedy" >&2
  exit 1
fi
run .venv/bin/lamp "$@"
