#!/usr/bin/env bash
# Runs `lamp COMMAND...` on all workers of a TPU, with this checkout's tracked files and their changes.
#
#   launch/tpu_run.sh NAME [--worker 0] [--zone ZONE] [--project PROJECT] COMMAND...
#   launch/tpu_run.sh my-tpu train configs/movielens_lamp3.py --output gs://BUCKET/m
#
# All workers form one process group (LAMP_HOSTS=all); --worker 0 is for commands that need one machine only. Options
# precede the COMMAND; its relative paths are relative to ~/lamp_jax on the workers. The output of each worker is in
# logs/NAME/WORKER.log here, and in ~/lamp_runs there. The exit status is the highest of the workers; 254: stopped
# before its end: the same command resumes; 255: not reachable. A run outlives the connection: the same LAMP_RUN
# (printed at the beginning) reconnects to it. --dry-run prints the commands and runs nothing.

set -euo pipefail
takes="NAME --worker --zone --project COMMAND"
# shellcheck source=launch/options.sh
source "$(dirname "$0")/options.sh"

vm=(gcloud compute tpus tpu-vm)
logs=logs/$name
code=$logs/lamp_jax.tar.gz
run_id=${LAMP_RUN:-$(date +%Y%m%d-%H%M%S)-$$}
printf -v command '%q ' bash on_worker.sh "$run_id" "${worker:-all}" "$@"
reach() {
  run "${vm[@]}" scp "$code" launch/on_worker.sh "$name:" --worker="$1" "${place[@]}" || return 255
  run "${vm[@]}" ssh "$name" --worker="$1" --command="${command% }" "${place[@]}"
}

run mkdir -p "$logs"
[[ $dry_run ]] || changes=$(git stash create)  # a commit of the changes to tracked files, or nothing
run git archive --format=tar.gz --output="$code" "${changes:-HEAD}"
counted=("${vm[@]}" describe "$name" --format='value(networkEndpoints.len())' "${place[@]}")
if [[ $dry_run ]]; then
  [[ $worker ]] || { run "${counted[@]}" && echo "# for each WORKER, at the same time:"; }
  reach "${worker:-WORKER}" && exit 0
fi
if [[ -z $worker ]]; then
  count=$("${counted[@]}")
  ((count > 0)) || { echo "$name: no workers yet; launch/tpu_create.sh waits for them" >&2 && exit 255; }
  worker=$(seq 0 $((count - 1)))
fi
echo "LAMP_RUN=$run_id, logs in $logs"
trap 'echo "$name: the run continues there; LAMP_RUN=$run_id and the same command reconnect to it" >&2; kill 0' INT
pids=() worst=0 screen=1
exec 9>/dev/null
for one in $worker; do
  (reach "$one" </dev/null 2>&1 | tee -a "$logs/$one.log" >&"$screen") &
  pids+=("$one:$!") screen=9  # the first worker's lines are shown
done
for one in "${pids[@]}"; do
  status=0 && wait "${one#*:}" || status=$?
  ((status == 0)) || echo "$name: worker ${one%:*} ended with status $status; see $logs/${one%:*}.log" >&2
  ((status <= worst)) || worst=$status
done
exit "$worst"
