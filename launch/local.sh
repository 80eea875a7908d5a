#!/usr/bin/env bash
# Runs one command as a process group on this machine: launch/local.sh [--dry-run] N lamp ...
set -euo pipefail
usage="usage: launch/local.sh [--dry-run] N COMMAND...
Starts N processes of COMMAND as one process group of jax; each line of output begins with the process's number.
SIGTERM and Ctrl-C are sent to all. If a process fails, the others are ended, and the exit status is that process's.
LAMP_PORT: port of the first process (default: a free port)."

dry=""
[[ ${1:-} == --help ]] && echo "$usage" && exit 0
[[ ${1:-} == --dry-run ]] && dry=1 && shift
[[ ${1:-} =~ ^[1-9][0-9]*$ && $# -ge 2 ]] || { echo "$usage" >&2; exit 2; }
number=$1 && shift
port=${LAMP_PORT:-$(python3 -c 'import socket as s; t = s.socket(); t.bind(("", 0)); print(t.getsockname()[1])')}
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$number
declare -A running=()
for ((index = 0; index < number; index++)); do
  if [[ $dry ]]; then
    echo "JAX_COORDINATOR_ADDRESS=$JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES=$number JAX_PROCESS_ID=$index $*"
  else
    JAX_PROCESS_ID=$index "$@" > >(sed -u "s/^/$index: /") 2> >(sed -u "s/^/$index: /" >&2) &
    running[$!]=$index
  fi
done

stop() { kill "$1" "${!running[@]}" 2>/dev/null || true; }
trap "stop -TERM" TERM INT
worst=0
while ((${#running[@]})); do
  sleep 0.2
  for pid in "${!running[@]}"; do
    kill -0 "$pid" 2>/dev/null && continue
    unset "running[$pid]"
    status=0; wait "$pid" || status=$?
    if ((status && !worst)); then worst=$status; stop -TERM; sleep 2; stop -KILL; fi
  done
done
exit "$worst"
