#!/usr/bin/env bash
# Runs a command on a TPU until it is finished: creates a preempted TPU again and resumes the command.
#
#   launch/tpu_babysit.sh NAME --type v5litepod-8 --spot [--version RUNTIME] [--attempts 20] [--zone ZONE]
#                         [--project PROJECT] -- COMMAND...
#   launch/tpu_babysit.sh my-tpu --type v6e-8 --spot -- train configs/movielens_lamp3.py --output gs://BUCKET/m
#
# Outputs must be in a bucket: a new TPU has empty disks. The script ends with the command's status if the command fails
# while the TPU exists, and with status 1 after more than --attempts restarts. The TPU is not deleted at the end.
# --dry-run prints the commands and runs nothing.

set -euo pipefail
takes="NAME --type --version --spot --attempts --zone --project COMMAND"
# shellcheck source=launch/options.sh
source "$(dirname "$0")/options.sh"

[[ ${attempts:=20} =~ ^[0-9]+$ ]] || refuse "--attempts $attempts is not a number; give a number, such as --attempts 20"
create=(launch/tpu_create.sh "$name" --type "$type" ${version:+--version "$version"} ${spot:+"$spot"} "${place[@]}")
command=(launch/tpu_run.sh "$name" "${place[@]}" -- "$@")
if [[ $dry_run ]]; then
  "${create[@]}" --dry-run
  exec "${command[@]:0:2}" --dry-run "${command[@]:2}"
fi

# Sets $there: yes, or why not. If gcloud fails, that is an error, and nothing is deleted.
look() {
  local resource machine
  resource=$(state queued-resources) && machine=$(state tpu-vm) || exit 1
  there=yes
  case "$resource $machine" in
    SUSPEND* | FAILED* | DELETING* | ABSENT*) there="no, it is $resource" ;;
    "ACTIVE ABSENT" | *" PREEMPTED" | *" TERMINATED" | *" STOPP"* | *" DELETING") there="no, its machine is $machine" ;;
  esac
}

for ((attempt = 0; attempt <= attempts; attempt++)); do
  look
  if [[ $there != yes ]]; then launch/tpu_delete.sh "$name" "${place[@]}" && unset LAMP_RUN; fi
  status=0 && "${create[@]}" || status=$?
  ((status != 3)) || { sleep "$poll" && continue; } # the request failed, or the TPU was preempted again
  ((status == 0)) || exit "$status"
  export LAMP_RUN=${LAMP_RUN:-$(date +%Y%m%d-%H%M%S)-$$-$attempt}
  "${command[@]}" || status=$?
  sleep "$poll" # a preemption is visible only after some seconds
  look
  if [[ $there == yes ]] && ((status < 254)); then exit "$status"; fi
  echo "$name: not finished (status $status; TPU exists: $there); trying again" >&2
  ((status == 255)) || unset LAMP_RUN # after a lost connection, reconnect to the active run
done
echo "$name: not finished after $attempts restarts; see logs/$name, then the same command resumes" >&2
exit 1
