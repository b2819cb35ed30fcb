#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OPTIONS+=([devices]=1 [grace]=20 [restarts]=3)

usage() {
  cat <<'END'
usage: launch/local.sh N [--devices=K] [--grace=SECONDS] [--restarts=R] [--dry-run] \
         -- MAIN-ARGS

Runs python -m jaxkd.main MAIN-ARGS as N processes on the CPU of this host, as a cluster would.

  N                processes
  --devices=K      virtual CPU devices of each process (default 1)
  --grace=SECONDS  from asking processes to stop until they are killed (default 20)
  --restarts=R     at most so many restarts of all, after status 75: what may pass (default 3)
  --dry-run        print the commands and run nothing
  PYTHON           environment variable: interpreter (default .venv here, else python)

Process 0 writes as it is, the others with [1], [2], … before each line. When a process fails, the
others are stopped, and its status is this script's: 2 for a mistake of yours. Ctrl-C and SIGTERM
go to all processes, which save and end; the same command resumes. For GPUs, leave this script
out: one process takes them all.

example: launch/local.sh 2 --devices=4 -- --config=configs/symmetric.py:demo --workdir=runs/two
END
}

declare -A pids=()
readers=()
final=0 asked=no deadline=0

# Below the ports that the system gives to outgoing connections.
free_port() {
  local port
  while port=$((20000 + RANDOM % 12000)) && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

# It stays until its process has closed the pipe, so that no last line is lost.
prefix() {
  local line
  trap '' INT TERM HUP
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

# start I COMMAND...
start() {
  local i=$1 out=1 err=2
  if ((i)); then
    exec {out}> >(prefix "$i")
    readers+=($!)
    exec {err}> >(prefix "$i" >&2)
    readers+=($!)
  fi
  # Job control gives the process a group of its own: Ctrl-C comes once, from here, and is not ignored.
  set -m
  "${@:2}" 0</dev/null 1>&"$out" 2>&"$err" &
  pids[$i]=$!
  set +m
  if ((i)); then exec {out}>&- {err}>&-; fi
}

pass_on() {
  local pid
  for pid in "${pids[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
}

# ended I STATUS
ended() {
  (($2)) || return 0
  local first=$((!final)) why="" others=""
  # The first failure counts; a user's mistake, which process 0 reports, explains all others.
  if ((first || ($1 == 0 && $2 == 2))); then final=$2; fi
  if [[ $asked == yes ]] && (($2 == 130 || $2 == 143)); then return 0; fi
  if ((!first)); then return 0; fi
  if (($2 > 128)); then why=" (killed by signal $(($2 - 128)))"; fi
  if ((${#pids[@]})); then others=": stopping the others"; fi
  # What ended of itself has said why.
  if [[ $why || $others ]]; then echo "process $1 ended with status $2$why$others" >&3; fi
  if [[ $others ]]; then
    deadline=$((SECONDS + OPTIONS[grace]))
    pass_on TERM
  fi
}

# gather: the statuses of those that have ended since go into gone.
gather() {
  local i pid
  for ((i = 0; i < count; i++)); do
    pid=${pids[$i]-}
    if [[ -z $pid ]] || kill -0 "$pid"; then continue; fi
    unset "pids[$i]"
    gone[$i]=0
    wait "$pid" || gone[$i]=$?
  done
}

# Until no process is left.
watch() {
  local i pid
  local -A gone
  while ((${#pids[@]})); do
    gone=()
    gather
    # One that dies makes others fail, which may be reaped before it.
    if ((${#gone[@]} && ! deadline)); then sleep 0.5 && gather; fi
    if ((${gone[0]-0} == 2)); then ended 0 2; fi
    for i in "${!gone[@]}"; do if ((gone[$i] > 128)); then ended "$i" "${gone[$i]}"; fi; done
    for i in "${!gone[@]}"; do if ((gone[$i] <= 128)); then ended "$i" "${gone[$i]}"; fi; done
    if ((deadline && SECONDS >= deadline)); then
      # The whole group, with what the process started to read its data.
      for pid in "${pids[@]}"; do kill -KILL -- "-$pid" || true; done
    fi
    sleep 0.2
  done
}

# The last lines; not for ever, since a process may leave others behind that hold its pipe.
drain() {
  local pid until=$((SECONDS + 2))
  for pid in "${readers[@]}"; do
    while kill -0 "$pid" 2>/dev/null && ((SECONDS < until)); do sleep 0.05; done
  done
}

parse "$@"
((${#WORDS[@]} == 1)) || fail "the number of processes comes first, and once: launch/local.sh 2 -- MAIN-ARGS"
count=${WORDS[0]}
whole N "$count"
whole --devices "${OPTIONS[devices]}"
whole --grace "${OPTIONS[grace]}"
whole_or_none --restarts "${OPTIONS[restarts]}"
require_main
[[ ${OPTIONS[dry-run]} == yes ]] || can_run

trap 'asked=yes; pass_on INT' INT
trap 'asked=yes; pass_on TERM' TERM HUP
for ((left = OPTIONS[restarts]; ; left--)); do
  final=0 deadline=0 readers=()
  coordinator=127.0.0.1:$(free_port)
  for ((i = 0; i < count; i++)); do
    command=(env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${OPTIONS[devices]}"
      JAXKD_PROCESSES="$count" JAXKD_PROCESS="$i" JAXKD_COORDINATOR="$coordinator"
      "$PYTHON" -m jaxkd.main "${MAIN[@]}")
    if [[ ${OPTIONS[dry-run]} == yes ]]; then quote "${command[@]}"; else start "$i" "${command[@]}"; fi
  done
  watch 3>&2 2>/dev/null # without bash's own line for each killed process
  drain
  if [[ $asked == yes ]] || ((left == 0)) || ! may_pass "$final"; then exit "$final"; fi
  note "status $final may pass: all processes start again, $((left - 1)) restarts are left"
done
