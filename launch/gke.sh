#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OPTIONS+=([cluster]="" [zone]="" [project]="" [type]="" [num-slices]=1 [restarts]=20 [base-docker-image]="")
ACTIONS="create list logs delete"

usage() {
  cat <<'END'
usage: launch/gke.sh create NAME --cluster=CLUSTER --type=TYPE [OPTIONS] [--dry-run] -- MAIN-ARGS
       launch/gke.sh list --cluster=CLUSTER
       launch/gke.sh logs NAME
       launch/gke.sh delete NAME --cluster=CLUSTER

Runs python -m jaxkd.main MAIN-ARGS on TPU slices of a GKE cluster, by xpk (pip install xpk).

  create   send the commit that is checked out and start it as workload NAME. Pods that are evicted
           or fail start again, up to --restarts times, and the run resumes; after a user's mistake
           (status 2) they do not
  list     workloads of the cluster and how they stand
  logs     what worker 0 of slice 0 prints, by kubectl; list selects the cluster for it
  delete   end a workload: its run saves first

  --cluster=CLUSTER  as it was given to xpk cluster create
  --zone=ZONE, --project=PROJECT
                     default: gcloud's own settings
  --type=TYPE        TPU type, as in v5litepod-16
  --num-slices=N     slices (default 1)
  --restarts=N       at most so many restarts (default 20)
  --base-docker-image=IMAGE
                     has jax[tpu] and jaxkd's dependencies; without it, python:3.11, where pip
                     installs them at every start
  --dry-run          print the commands and run nothing

--workdir must be on storage that all pods mount, for example by xpk storage.

example: launch/gke.sh create symmetric-1 --cluster=my-cluster --zone=us-central1-a \
           --type=v5litepod-16 --num-slices=2 \
           -- --config=configs/symmetric.py:librispeech --workdir=/mnt/runs/symmetric
END
}

create() {
  local command image=${OPTIONS[base-docker-image]}
  # exec: the signal that xpk passes on must reach Python itself.
  command="exec env JAXKD_PROCESSES=auto JAXKD_STOPPED_STATUS=143 python -m jaxkd.main $(quote "${MAIN[@]}")"
  [[ -n $image ]] || command="pip install -q -e '.[hf,tfds]' 'jax[tpu]' && $command"
  pin_commit
  archive "$NAME"
  run rm -rf "build/$NAME"
  run mkdir "build/$NAME"
  run tar -xzf "build/$NAME.tar.gz" -C "build/$NAME"
  # xpk restarts after 42 and 127 to 255; a process that loses another may also end with 1.
  run xpk workload create --workload="$NAME" "${WHERE[@]}" --tpu-type="${OPTIONS[type]}" \
    --num-slices="${OPTIONS[num-slices]}" --max-restarts="${OPTIONS[restarts]}" \
    --restart-on-exit-codes=1 --termination-grace-period-seconds=300 --base-docker-image="${image:-python:3.11}" \
    --script-dir="build/$NAME" --command="$command"
}

list() { run xpk workload list "${WHERE[@]}"; }

logs() {
  local zero=jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
  run kubectl logs --follow --tail=-1 --selector="jobset.sigs.k8s.io/jobset-name=$NAME,$zero"
}

delete() { run xpk workload delete --workload="$NAME" "${WHERE[@]}" --force; }

parse "$@"
ACTION=${WORDS[0]-} NAME=${WORDS[1]-}
[[ -n $ACTION && " $ACTIONS " == *" $ACTION "* ]] || fail "ACTION is '$ACTION': choose from $ACTIONS"
if [[ $ACTION == list ]]; then
  ((${#WORDS[@]} == 1)) || fail "list takes no '$NAME': launch/gke.sh list --cluster=CLUSTER"
else
  ((${#WORDS[@]} == 2)) || fail "one NAME is needed, as in launch/gke.sh $ACTION symmetric-1"
  resource_name "$NAME" NAME
fi
[[ $ACTION == logs ]] || require cluster my-cluster
if [[ $ACTION == create ]]; then
  require type v5litepod-16
  whole --num-slices "${OPTIONS[num-slices]}"
  whole --restarts "${OPTIONS[restarts]}"
  require_main
  [[ ${MAIN[*]} != *$'\n'* ]] || fail "an argument of jaxkd.main has a line break, which xpk cannot carry"
  want_shared_workdir
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
WHERE=(--cluster="${OPTIONS[cluster]}")
[[ -z ${OPTIONS[zone]} ]] || WHERE+=(--zone="${OPTIONS[zone]}")
[[ -z ${OPTIONS[project]} ]] || WHERE+=(--project="${OPTIONS[project]}")
"$ACTION"
