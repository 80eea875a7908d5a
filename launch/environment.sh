#!/usr/bin/env bash
# Makes the checkout's virtual environment .venv with the extra tpu or cuda; does nothing if it is up to date.
#
#   launch/environment.sh EXTRA
#
# Up to date: setup.py, constraints.txt and EXTRA have not changed. --dry-run prints the commands and runs nothing.

set -euo pipefail
takes="COMMAND"
# shellcheck source=launch/options.sh
source "$(dirname "$0")/options.sh"

[[ " tpu cuda " == *" $* "* ]] || refuse "unknown extra '$*'; choose tpu or cuda"
wanted="$1 $(cat setup.py constraints.txt | cksum)"
[[ ! -e .venv/installed || $(<.venv/installed) != "$wanted" ]] || exit 0
if [[ ! -x .venv/bin/pip ]]; then
  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    run python3 -m venv .venv
  else # the TPU images have Python 3.10
    run python3 -m pip install --quiet --user uv
    run python3 -m uv venv --quiet --seed --python 3.11 .venv
  fi
fi
run .venv/bin/pip install --quiet -c constraints.txt -e ".[$1]"
[[ $dry_run ]] || echo "$wanted" >.venv/installed
