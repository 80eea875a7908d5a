#!/usr/bin/env bash
# Creates a TPU as a queued resource, unless it exists, and waits until it is ACTIVE.
#
#   launch/tpu_create.sh NAME --type v5litepod-8 [--spot] [--version RUNTIME] [--zone ZONE] [--project PROJECT]
#
# Zone and project come from gcloud's own configuration (gcloud config set compute/zone ...) unless they are given.
# Exit status 3: the request ended without a TPU. --dry-run prints the commands and runs nothing.

set -euo pipefail
takes="NAME --type --version --spot --zone --project"
# shellcheck source=launch/options.sh
source "$(dirname "$0")/options.sh"

case $version:$type in
  ?*:*) ;;
  :v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  :v5p-*) version=v2-alpha-tpuv5 ;;
  :v6e-*) version=v2-alpha-tpuv6e ;;
  :v[234]-*) version=tpu-ubuntu2204-base ;;
  *) refuse "--type $type: unknown runtime. Give --version; 'gcloud compute tpus tpu-vm versions list' lists all" ;;
esac

resources=(gcloud compute tpus queued-resources)
now=ABSENT
[[ $dry_run ]] || now=$(state queued-resources)
if [[ $now == ABSENT ]]; then
  run "${resources[@]}" create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$version" \
    ${spot:+"$spot"} "${place[@]}"
fi
if [[ $dry_run ]]; then
  echo "# until ACTIVE, every $poll seconds:"
  run "${resources[@]}" describe "$name" --format='value(state.state)' "${place[@]}"
  exit 0
fi
shown=''
while now=$(state queued-resources) && [[ $now != ACTIVE ]]; do
  case $now in
    FAILED | SUSPENDING | SUSPENDED | DELETING | ABSENT)
      echo "$name: no TPU, its request is $now; '${resources[*]} describe $name' has the reason." \
        "launch/tpu_delete.sh $name makes room for another request" >&2
      exit 3 ;;
  esac
  [[ $now == "$shown" ]] || echo "$name: $now"
  shown=$now && sleep "$poll"
done
[[ $now == ACTIVE ]] && echo "$name: ACTIVE"
