#!/usr/bin/env bash
# Program of tpu_run.sh on each worker: unpacks the code, updates the environment, runs lamp and shows its output.
#
#   on_worker.sh RUN all|WORKER COMMAND...
#
# The output of an existing RUN is shown again; the run is not started again, so that a lost connection costs nothing.
# --dry-run prints the commands and runs nothing.

{ # bash reads all of it before it runs: the next copy overwrites this file
  set -euo pipefail
  case ${1:-} in
    --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    --dry-run) shift && printf '%q ' launch/environment.sh tpu '&&' .venv/bin/lamp "${@:3}" && echo && exit 0 ;;
  esac
  (($# > 2)) || { echo "$0: usage: on_worker.sh RUN all|WORKER COMMAND..." >&2 && exit 2; }
  mkdir -p ~/lamp_runs ~/lamp_jax
  run=~/lamp_runs/$1
  if [[ ! -e $run.log ]]; then
    exec 8>~/lamp_runs/lock
    if ! flock --nonblock 8; then
      echo "another run is active here; wait for it, or end it by 'pkill lamp' on every worker" >&2
      exit 75
    fi
    cd ~/lamp_jax
    [[ ! -e ~/lamp_runs/files ]] || xargs -d '\n' rm -f <~/lamp_runs/files # the last copy's files
    tar -tzf ~/lamp_jax.tar.gz | sed '/\/$/d' >~/lamp_runs/files
    tar -xzf ~/lamp_jax.tar.gz
    [[ $2 != all ]] || export LAMP_HOSTS=all
    : >"$run.log"
    ( # outlives the connection, and has the lock until it and lamp end
      trap '' HUP
      status=0
      { launch/environment.sh tpu && .venv/bin/lamp "${@:3}"; } || status=$?
      echo "$status" >"$run.status"
    ) >"$run.log" 2>&1 </dev/null &
    echo $! >"$run.pid"
    exec 8>&-
  fi
  tail -s 0.1 -n +1 -f --pid="$(<"$run.pid")" "$run.log"
  [[ -e $run.status ]] || { echo "the run was killed" >&2 && exit 254; }
  status=$(<"$run.status")
  if [[ $status == 0 ]] && grep -q 'stopped by SIGTERM' "$run.log"; then exit 254; fi
  exit "$status"
}
