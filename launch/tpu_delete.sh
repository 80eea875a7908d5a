#!/usr/bin/env bash
# Deletes a TPU and its queued resource; it is no error if they do not exist.
#
#   launch/tpu_delete.sh NAME [--zone ZONE] [--project PROJECT]
#
# The contents of its disks are lost. --dry-run prints the commands and runs nothing.

set -euo pipefail
takes="NAME --zone --project"
# shellcheck source=launch/options.sh
source "$(dirname "$0")/options.sh"

now=unknown
[[ $dry_run ]] || now=$(state queued-resources)
if [[ $now == ABSENT ]]; then
  echo "$name: there is none"
else
  run gcloud compute tpus queued-resources delete "$name" --force "${place[@]}"
fi
