#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OPTIONS+=([zone]="" [type]="" [project]="" [version]="" [spot]=no [reserved]=no [queued]=no [dir]=jaxkd
  [setup]="" [python]=python3.11 [disk]="" [bucket]="" [env]="" [restarts]=20 [detach]=no [worker]=0)
ACTIONS="create copy install run all logs stop delete"
# Between looks at the TPU's state.
PAUSE=${JAXKD_PAUSE_SECONDS:-15}
# What gcloud says where a zone has none left.
NO_ROOM='no more capacity|RESOURCE_EXHAUSTED|nsufficient capacity|"code": 8'

usage() {
  cat <<'END'
usage: launch/tpu_vm.sh ACTION NAME --zone=ZONE --type=TYPE [OPTIONS] [--dry-run] -- MAIN-ARGS

Runs python -m jaxkd.main MAIN-ARGS on all workers of a Cloud TPU VM, by gcloud.

  create     make the TPU; where the zone has no room for it, try until it has
  copy       send the commit that is checked out to all workers
  install    mount disk and bucket, make an environment and install jaxkd[tpu] there
  run        train, detached from this connection, and show worker 0's output. A TPU that was
             preempted or is gone is made again, set up, and the run resumes, as it does after
             status 75: what may pass. Ends with the status of jaxkd.main, 2 for a mistake of
             yours. Ctrl-C tells the workers to save and end
  all        create, copy, install, run
  logs       show a run's output as it comes
  stop       tell a run to save and end; run resumes it
  delete     delete the TPU

  --zone=ZONE        as in --zone=us-central1-a
  --type=TYPE        accelerator type, as in v5litepod-16 (for create, run and all)
  --project=PROJECT  default: gcloud's own setting
  --version=RUNTIME  software of the TPU VM (default: the one for TYPE)
  --spot             cheaper, and may be preempted
  --reserved         from a reservation of yours
  --queued           ask for it as a queued resource, and wait
  --disk=DISK        projects/P/zones/Z/disks/D with data, mounted read-only at /mnt/data
  --bucket=BUCKET    bucket that gcsfuse mounts at ~/bucket
  --env=NAME=VALUE   environment variable of the run; --env=NAME for its value here; may be repeated
  --restarts=N       after status 75 or a lost connection, at most so many (default 20)
  --detach           run and all end when the run has started; logs shows it
  --worker=N         whose output logs shows (default 0)
  --dir=DIR          folder on the workers, relative to their home (default jaxkd)
  --setup=COMMAND    shell command that install runs first on each worker, perhaps more than once
  --python=PYTHON    3.11 or newer; apt fetches it where it is absent (default python3.11)
  --dry-run          print the commands and run nothing

Before the first use: ssh-add ~/.ssh/google_compute_engine, since gcloud reaches several workers at
once through the agent. --workdir must be on storage that all workers mount.

example: launch/tpu_vm.sh all my-tpu --zone=us-central1-a --type=v5litepod-16 --spot \
           --bucket=my-bucket -- --config=configs/symmetric.py:librispeech \
           --config.data.root=../bucket/tensorflow_datasets --workdir=../bucket/runs/symmetric
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

# queue VERB ARGUMENTS...
queue() { run gcloud compute tpus queued-resources "$1" "${@:2}" "${WHERE[@]}"; }

# everywhere COMMAND: one line for the shell of each worker
everywhere() { tpu ssh "$NAME" --worker=all --command="$1"; }

create() {
  local more=() ask said status
  [[ ${OPTIONS[spot]} == no ]] || more+=(--spot)
  [[ ${OPTIONS[reserved]} == no ]] || more+=(--reserved)
  [[ -z ${OPTIONS[disk]} ]] || more+=(--data-disk="source=${OPTIONS[disk]},mode=read-only")
  ask=(tpu create "$NAME" --version="${OPTIONS[version]}")
  [[ ${OPTIONS[queued]} == no ]] ||
    ask=(queue create "$NAME" --node-id="$NAME" --runtime-version="${OPTIONS[version]}")
  while true; do
    status=0
    { said=$("${ask[@]}" --accelerator-type="${OPTIONS[type]}" ${more[@]+"${more[@]}"} 2>&1 >&3) || status=$?; } 3>&1
    [[ -z $said ]] || echo "$said" >&2
    [[ $status != 0 && $said =~ $NO_ROOM ]] || break
    note "no room for $NAME in ${OPTIONS[zone]} yet: asking again"
    sleep "$PAUSE"
  done
  [[ $status == 0 ]] || return "$status"
  [[ ${OPTIONS[queued]} == no ]] || wait_in_queue
}

# Until what is queued is there.
wait_in_queue() {
  local now
  if [[ ${OPTIONS[dry-run]} == yes ]]; then
    queue describe "$NAME" --format="value(state.state)"
    return
  fi
  while true; do
    now=$(queue describe "$NAME" --format="value(state.state)") || true
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED) fail "the request $NAME is $now: launch/tpu_vm.sh delete $NAME --queued, and ask again" ;;
    esac
    note "the request $NAME is ${now:-in an unknown state}"
    sleep "$PAUSE"
  done
}

delete() {
  if [[ ${OPTIONS[queued]} == yes ]]; then queue delete "$NAME" --force; else tpu delete "$NAME"; fi
}

copy() {
  archive "$NAME" &&
    tpu scp "build/$NAME.tar.gz" "$NAME:jaxkd.tar.gz" --worker=all &&
    everywhere "mkdir -p $DIR && tar -xzf jaxkd.tar.gz -C $DIR"
}

install() {
  local setup="" python apt="sudo apt-get -qq -o DPkg::Lock::Timeout=600" disk=/dev/disk/by-id/google-persistent-disk-1
  [[ -z ${OPTIONS[setup]} ]] || setup="{ ${OPTIONS[setup]}; } && "
  [[ -z ${OPTIONS[disk]} ]] ||
    setup+="{ mountpoint -q /mnt/data || { sudo mkdir -p /mnt/data && sudo mount -o ro,noload $disk /mnt/data; }; } && "
  [[ -z ${OPTIONS[bucket]} ]] ||
    setup+="mkdir -p bucket && { mountpoint -q bucket || gcsfuse --implicit-dirs $(quote "${OPTIONS[bucket]}") bucket; } && "
  python=$(quote "${OPTIONS[python]}")
  everywhere "${setup}cd $DIR && { $python -m venv .venv 2>/dev/null || { $apt update && $apt install -y $python-venv && $python -m venv .venv; }; } && .venv/bin/pip install -q -e '.[tpu,hf,tfds]'"
}

# An earlier process may still hold the TPU: it has left its number, and whoever comes next asks it
# to save and waits for its end.
# shellcheck disable=SC2016 # for the workers' shells
STOP='p=$(cat jaxkd.pid 2>/dev/null); alive="grep -qs jaxkd.main /proc/$p/cmdline"; $alive && kill "$p"; while $alive; do sleep 1; done;'

stop() { everywhere "cd $DIR || exit; $STOP true"; }

# The run goes on when the connection ends; its output, number and status are in files.
begin() {
  local command words=(env JAX_PLATFORMS=tpu JAXKD_PROCESSES=auto JAXKD_STOPPED_STATUS=143)
  words+=(${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} .venv/bin/python -m jaxkd.main "${MAIN[@]}")
  command=$(quote "${words[@]}")
  # shellcheck disable=SC2016
  command+=' & echo $! >jaxkd.pid; wait $!; echo $? >jaxkd.status'
  everywhere "cd $DIR || exit; $STOP rm -f jaxkd.status jaxkd.pid; nohup setsid sh -c $(quote "$command") >jaxkd.log 2>&1 </dev/null &"
}

# follow WORKER LINES: what it prints, the last LINES first, until it ends; and its status.
follow() {
  # shellcheck disable=SC2016
  local wait='n=0; until [ -s jaxkd.pid ] || [ $n = 30 ]; do sleep 1; n=$((n+1)); done'
  # shellcheck disable=SC2016
  local status='n=0; until [ -s jaxkd.status ] || [ $n = 5 ]; do sleep 1; n=$((n+1)); done; exit $(cat jaxkd.status || echo 255)'
  tpu ssh "$NAME" --worker="$1" --command="cd $DIR || exit; $wait; tail -n $2 -F --pid=\$(cat jaxkd.pid) jaxkd.log; $status"
}

logs() { follow "${OPTIONS[worker]}" +1; }

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
      absent)
        # The request that it came from is used up.
        [[ ${OPTIONS[queued]} == no ]] || delete || true
        create && continue
        ;;
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

# watched LINES: follows worker 0, whatever signals come; sets status and interrupted.
watched() {
  local pid
  status=0
  # With job control Ctrl-C stays here, and the worker's last lines still come.
  set -m
  follow 0 "$1" </dev/null &
  pid=$!
  set +m
  trap interrupt INT TERM
  wait "$pid" || status=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal ends the waiting, not the run
    status=0
    wait "$pid" || status=$?
  done
  trap - INT TERM
}

run_to_the_end() {
  local status interrupted=no left=${OPTIONS[restarts]} lines=+1
  begin
  [[ ${OPTIONS[detach]} == no ]] || return 0
  while true; do
    watched "$lines"
    if [[ $status == [02] || $interrupted == yes ]]; then return "$status"; fi
    note "the run on $NAME ended with status $status: looking whether the TPU is gone"
    if is_gone; then
      rebuild
    elif ((left-- <= 0)) || { ! may_pass "$status" && [[ $status != 255 ]]; }; then
      echo "error: the run ended with status $status, and $NAME is still there; launch/tpu_vm.sh logs $NAME --worker=N shows what each worker printed" >&2
      exit "$status"
    elif [[ $status == 255 ]]; then # the connection, or the run's shell
      lines=20
      continue
    fi
    lines=+1
    begin
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
whole_or_none --restarts "${OPTIONS[restarts]}"
[[ ${OPTIONS[worker]} =~ ^([0-9]{1,5}|all)$ ]] || fail "--worker is '${OPTIONS[worker]}': it must be a number, or all"
[[ ${OPTIONS[spot]} == no || ${OPTIONS[reserved]} == no ]] || fail "--spot and --reserved: choose one of them"
[[ -z ${OPTIONS[disk]} || ${OPTIONS[disk]} =~ ^projects/[^/,]+/zones/[^/,]+/disks/[^/,]+$ ]] ||
  fail "--disk is '${OPTIONS[disk]}': it must be projects/PROJECT/zones/ZONE/disks/DISK"
if [[ $ACTION == @(copy|run|all) ]]; then pin_commit; fi
if [[ $ACTION == all ]]; then
  create
  copy
  install
fi
if [[ $ACTION != @(run|all) ]]; then "$ACTION"; elif [[ ${OPTIONS[dry-run]} == yes ]]; then
  begin
  follow 0 +1
else run_to_the_end; fi
