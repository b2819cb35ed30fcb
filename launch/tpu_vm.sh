#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OPTIONS+=([zone]="" [type]="" [project]="" [version]="" [spot]=no [dir]=jaxkd [setup]="" [python]=python3.11)
ACTIONS="create copy install run all stop delete"
# Between looks at the TPU's state.
PAUSE=${JAXKD_PAUSE_SECONDS:-15}

usage() {
  cat <<'END'
usage: launch/tpu_vm.sh ACTION NAME --zone=ZONE --type=TYPE [OPTIONS] [--dry-run] -- MAIN-ARGS

Runs python -m jaxkd.main MAIN-ARGS on all workers of a Cloud TPU VM, by gcloud.

  create     make the TPU
  copy       send the commit that is checked out to all workers
  install    make an environment there and install jaxkd and jax[tpu]
  run        train; a TPU that was preempted or is gone is made again, set up, and the run resumes.
             Ends with the status of jaxkd.main. Ctrl-C tells the workers to save and end
  all        create, copy, install, run
  stop       tell a run to save and end; run resumes it
  delete     delete the TPU

  --zone=ZONE        as in --zone=us-central1-a
  --type=TYPE        accelerator type, as in v5litepod-16 (for create, run and all)
  --project=PROJECT  default: gcloud's own setting
  --version=RUNTIME  software of the TPU VM (default: the one for TYPE)
  --spot             cheaper, and may be preempted
  --dir=DIR          folder on the workers, relative to their home (default jaxkd)
  --setup=COMMAND    shell command that install runs first on each worker, perhaps more than once
  --python=PYTHON    3.11 or newer; apt fetches it where it is absent (default python3.11)
  --dry-run          print the commands and run nothing

Before the first use: ssh-add ~/.ssh/google_compute_engine, since gcloud reaches several workers at
once through the agent. --workdir must be on storage that all workers mount.

example: launch/tpu_vm.sh all my-tpu --zone=us-central1-a --type=v5litepod-16 --spot \
           --setup='mkdir -p runs; mountpoint -q runs || gcsfuse --implicit-dirs my-bucket runs' \
           -- --config=configs/symmetric.py:librispeech --workdir=../runs/symmetric
END
}

runtime() {
  case ${OPTIONS[type]} in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "--type is '${OPTIONS[type]}': v2-N, v3-N, v4-N, v5litepod-N, v5p-N, v6e-N, or any with --version=RUNTIME" ;;
  esac
}

# tpu VERB ARGUMENTS...
tpu() { run gcloud compute tpus tpu-vm "$1" "${@:2}" "${WHERE[@]}"; }

# everywhere COMMAND: one line for the shell of each worker
everywhere() { tpu ssh "$NAME" --worker=all --command="$1"; }

create() {
  local more=()
  [[ ${OPTIONS[spot]} == no ]] || more=(--spot)
  tpu create "$NAME" --accelerator-type="${OPTIONS[type]}" --version="${OPTIONS[version]}" "${more[@]}"
}

delete() { tpu delete "$NAME"; }

copy() {
  archive "$NAME" &&
    tpu scp "build/$NAME.tar.gz" "$NAME:jaxkd.tar.gz" --worker=all &&
    everywhere "mkdir -p $DIR && tar -xzf jaxkd.tar.gz -C $DIR"
}

install() {
  local setup="" python apt="sudo apt-get -qq -o DPkg::Lock::Timeout=600"
  [[ -z ${OPTIONS[setup]} ]] || setup="{ ${OPTIONS[setup]}; } && "
  python=$(quote "${OPTIONS[python]}")
  everywhere "${setup}cd $DIR && { $python -m venv .venv 2>/dev/null || { $apt update && $apt install -y $python-venv && $python -m venv .venv; }; } && .venv/bin/pip install -q -e '.[hf,tfds]' 'jax[tpu]'"
}

# gcloud starts a command again when its connection drops, and the first may still hold the TPU: the
# process leaves its number, and whoever comes next asks it to save and waits for its end.
# shellcheck disable=SC2016 # for the workers' shells
STOP='p=$(cat jaxkd.pid 2>/dev/null); alive="grep -qs jaxkd.main /proc/$p/cmdline"; $alive && kill "$p"; while $alive; do sleep 1; done;'

stop() { everywhere "cd $DIR || exit; $STOP true"; }

main() {
  everywhere "cd $DIR || exit; $STOP echo \$\$ >jaxkd.pid; exec env JAXKD_PROCESSES=auto JAXKD_STOPPED_STATUS=143 .venv/bin/python -m jaxkd.main $(quote "${MAIN[@]}")"
}

# READY, PREEMPTED, …; absent where there is none; nothing where gcloud cannot say.
state() {
  local found
  found=$(tpu list --filter="name~/$NAME\$" --format="value(state)") && echo "${found:-absent}"
}

# A preempted TPU says READY for a while after its workers have gone.
is_gone() {
  local i now
  for ((i = 0; i < 8; i++)); do
    now=$(state) || true
    [[ -z $now || $now == READY ]] || return 0
    sleep "$PAUSE"
  done
  return 1
}

# Until the TPU is there and set up: after a preemption there may be no room for hours.
rebuild() {
  local now
  while true; do
    now=$(state) || true
    note "$NAME is ${now:-in an unknown state}"
    case $now in
      READY) copy && install && return ;;
      absent) create && continue ;;
      PREEMPTED | TERMINATED | STOPPED) delete && continue ;;
    esac
    sleep "$PAUSE"
  done
}

# The first signal lets the workers save, the second leaves them to themselves.
interrupt() {
  if [[ $interrupted == yes ]]; then kill -- "-$pid" || true; fi
  interrupted=yes
  stop || true
}

run_to_the_end() {
  local status pid interrupted=no
  while true; do
    status=0
    # With job control Ctrl-C stays here, and the workers' last lines still come.
    set -m
    main </dev/null &
    pid=$!
    set +m
    trap interrupt INT TERM
    wait "$pid" || status=$?
    while kill -0 "$pid" 2>/dev/null; do # a signal ends the waiting, not the run
      status=0
      wait "$pid" || status=$?
    done
    trap - INT TERM
    if [[ $status == [02] || $interrupted == yes ]]; then return "$status"; fi
    note "the run on $NAME ended with status $status: looking whether the TPU is gone"
    is_gone || { echo "error: the run ended with status $status, and $NAME is still there" >&2 && exit "$status"; }
    rebuild
  done
}

parse "$@"
((${#WORDS[@]} == 2)) || fail "ACTION and NAME are needed, as in launch/tpu_vm.sh all my-tpu; ACTION is one of: $ACTIONS"
ACTION=${WORDS[0]} NAME=${WORDS[1]}
[[ " $ACTIONS " == *" $ACTION "* ]] || fail "ACTION is '$ACTION': choose from $ACTIONS"
resource_name "$NAME" NAME
require zone us-central1-a
cd "$(dirname "${BASH_SOURCE[0]}")/.."
DIR=$(quote "${OPTIONS[dir]}")
WHERE=(--zone="${OPTIONS[zone]}" --quiet)
[[ -z ${OPTIONS[project]} ]] || WHERE+=(--project="${OPTIONS[project]}")
if [[ $ACTION == @(create|run|all) ]]; then
  require type v5litepod-16
  OPTIONS[version]=${OPTIONS[version]:-$(runtime)}
fi
if [[ $ACTION == @(run|all) ]]; then
  require_main
  want_shared_workdir
fi
if [[ $ACTION == @(copy|run|all) ]]; then pin_commit; fi
if [[ $ACTION == all ]]; then
  create
  copy
  install
fi
if [[ $ACTION != @(run|all) ]]; then "$ACTION"; elif [[ ${OPTIONS[dry-run]} == yes ]]; then main; else run_to_the_end; fi
