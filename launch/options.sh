# Functions of the scripts of this folder: options, usage errors, dry runs, the state of a TPU.
# Sourced with `takes` set (NAME, COMMAND, options); leaves the COMMAND in "$@" and changes to the checkout's root.
# shellcheck shell=bash disable=SC2034,SC2154  # the options are read, and `takes` is set, where this is sourced

refuse() { echo "$0: $*" >&2; exit 2; }
run() { if [[ $dry_run ]]; then printf '%q ' "$@" && echo; else "$@"; fi; }

# The state of queued-resources or tpu-vm, or ABSENT. Any other failure of gcloud is an error, never an absent TPU.
state() {
  local field=state errors answer try
  [[ $1 == tpu-vm ]] || field=state.state
  local described=(gcloud compute tpus "$1" describe "$name" --format="value($field)" "${place[@]}")
  errors=$(mktemp)
  for try in 1 2 3 4 5; do
    if answer=$("${described[@]}" 2>"$errors"); then break; fi
    if grep -q NOT_FOUND "$errors"; then answer=ABSENT && break; fi
    if ((try == 5)); then cat "$errors" >&2 && rm "$errors" && return 1; fi
    sleep "$poll"
  done
  rm "$errors" && echo "$answer"
}

name='' type='' version='' spot='' worker='' attempts='' dry_run='' place=(--quiet) poll=${LAMP_POLL_SECONDS:-20}
while (($#)); do
  case $1 in
    --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    --dry-run) dry_run=--dry-run ;;
    --quiet) ;;  # always passed to gcloud
    --) shift && break ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
    --*)
      [[ " $takes " == *" $1 "* ]] || refuse "unknown option $1; it takes: $takes --dry-run --help"
      if [[ $1 == --spot ]]; then spot=--spot && shift && continue; fi
      [[ ${2:---} != --* ]] || refuse "$1 needs a value: $1 VALUE"
      case $1 in --zone | --project) place+=("$1=$2") ;; *) printf -v "${1#--}" %s "$2" ;; esac
      shift ;;
    *) if [[ $takes == NAME* && -z $name ]]; then name=$1; else break; fi ;;
  esac
  shift
done
[[ $takes != NAME* || $name ]] || refuse "no TPU; its NAME comes first: $0 NAME ..."
[[ $takes != *--type* || $type ]] || refuse "--type is missing, such as --type v5litepod-8 (launch/README.md)"
[[ ! $type =~ ^(tpu7x?|v7x?|ironwood)- ]] || refuse "--type $type: the Cloud TPU API, which this script uses, has no" \
  "TPU7x; Compute Engine has: machine type tpu7x-standard-4t. Run lamp there (launch/README.md: On a TPU VM)"
[[ $takes != *COMMAND || $# -gt 0 ]] || refuse "the COMMAND is missing; give a COMMAND, such as: demo --size smoke"
[[ $takes == *COMMAND || $# -eq 0 ]] || refuse "unexpected argument '$1'; it takes: $takes"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
