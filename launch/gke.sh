#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OPTIONS+=([cluster]="" [zone]="" [project]="" [type]="" [num-slices]=1 [restarts]=20 [image]="" [env]="")
ACTIONS="image create list logs delete"

usage() {
  cat <<'END'
usage: launch/gke.sh image NAME --image=IMAGE [--dry-run]
       launch/gke.sh create NAME --cluster=CLUSTER --type=TYPE --image=IMAGE [OPTIONS] [--dry-run] \
         -- MAIN-ARGS
       launch/gke.sh list --cluster=CLUSTER
       launch/gke.sh logs NAME
       launch/gke.sh delete NAME --cluster=CLUSTER

Runs python -m jaxkd.main MAIN-ARGS on TPU slices of a GKE cluster, by xpk (pip install xpk).

  image    build IMAGE from the commit that is checked out, by docker, and push it
  create   start it as workload NAME. Pods that are evicted, are killed or end with status 75 (what
           may pass) start again, up to --restarts times, and the run resumes; after a mistake of
           yours (status 2) they do not
  list     workloads of the cluster and how they stand
  logs     what worker 0 of slice 0 prints, by kubectl; list selects the cluster for it
  delete   end a workload: its run saves first

  --cluster=CLUSTER  as it was given to xpk cluster create
  --zone=ZONE, --project=PROJECT
                     default: gcloud's own settings
  --type=TYPE        TPU type, as in v5litepod-16
  --num-slices=N     slices (default 1)
  --image=IMAGE      where the cluster finds it, as in us-docker.pkg.dev/PROJECT/REPOSITORY/jaxkd:1
  --env=NAME=VALUE   variable of the pods; --env=NAME for its value here; may be repeated
  --restarts=N       at most so many restarts (default 20)
  --dry-run          print the commands and run nothing

Data and --workdir must be on storage that all pods mount; once for a cluster:
  xpk storage attach runs --cluster=my-cluster --zone=us-central1-a --type=gcsfuse \
    --bucket=my-bucket --mount-point=/mnt/runs --readonly=false --auto-mount=true

example: launch/gke.sh create symmetric-1 --cluster=my-cluster --zone=us-central1-a \
           --type=v5litepod-16 --num-slices=2 --image=us-docker.pkg.dev/my-project/my/jaxkd:1 \
           -- --config=configs/symmetric.py:librispeech \
           --config.data.root=/mnt/runs/tensorflow_datasets --workdir=/mnt/runs/symmetric
END
}

image() {
  pin_commit
  archive "$NAME"
  run rm -rf "build/$NAME"
  run mkdir "build/$NAME"
  run tar -xzf "build/$NAME.tar.gz" -C "build/$NAME"
  run docker build --tag="${OPTIONS[image]}" --file=launch/Dockerfile "build/$NAME"
  run docker push "${OPTIONS[image]}"
}

create() {
  local variable more=()
  for variable in ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}; do more+=(--env="$variable"); done
  # xpk restarts after 42 and 127 to 255, too. exec: the signal that it passes on must reach Python.
  run xpk workload create --workload="$NAME" "${WHERE[@]}" --tpu-type="${OPTIONS[type]}" \
    --num-slices="${OPTIONS[num-slices]}" --max-restarts="${OPTIONS[restarts]}" \
    --restart-on-exit-codes="$AGAIN" --termination-grace-period-seconds=300 \
    --docker-image="${OPTIONS[image]}" --env=JAX_PLATFORMS=tpu --env=JAXKD_PROCESSES=auto \
    --env=JAXKD_STOPPED_STATUS=143 ${more[@]+"${more[@]}"} \
    --command="exec python -m jaxkd.main $(quote "${MAIN[@]}")"
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
[[ $ACTION == @(logs|image) ]] || require cluster my-cluster
[[ $ACTION != @(create|image) ]] || require image us-docker.pkg.dev/PROJECT/REPOSITORY/jaxkd:1
if [[ $ACTION == create ]]; then
  require type v5litepod-16
  whole --num-slices "${OPTIONS[num-slices]}"
  whole_or_none --restarts "${OPTIONS[restarts]}"
  require_main
  [[ ${MAIN[*]} != *$'\n'* ]] || fail "an argument of jaxkd.main has a line break, which xpk cannot carry"
  want_shared_workdir
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
WHERE=(--cluster="${OPTIONS[cluster]}")
[[ -z ${OPTIONS[zone]} ]] || WHERE+=(--zone="${OPTIONS[zone]}")
[[ -z ${OPTIONS[project]} ]] || WHERE+=(--project="${OPTIONS[project]}")
"$ACTION"
