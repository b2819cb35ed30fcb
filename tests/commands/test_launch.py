"""Launch scripts against stand-ins of gcloud, xpk, srun and python, which record their calls."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from stand_ins import COMMIT, LAUNCH, House

# pip puts it beside Python, which need not be in PATH.
SHELLCHECK = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.defpath}")
SCRIPTS = ["gke.sh", "local.sh", "slurm.sbatch", "tpu_vm.sh"]
LR = "--config.training.lr=(1e-4, 1e-3, 1e-4, 1e-6)"
# What shells like to take apart.
ARGS = ["--config=x.py:tedlium", LR, "--workdir=/mnt/it's $HOME", 'a"b', "*", "a\\b"]


@pytest.fixture
def house(tmp_path) -> House:
  return House(tmp_path)


def wait_for(*paths: pathlib.Path):
  limit = time.monotonic() + 10
  while not all(p.exists() for p in paths):
    assert time.monotonic() < limit, paths
    time.sleep(0.02)


def lines(text: str) -> list[list[str]]:
  return [shlex.split(line) for line in text.splitlines()]


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
def test_shellcheck():
  files = sorted(str(p.relative_to(LAUNCH.parent)) for p in LAUNCH.iterdir())
  assert files == [f"launch/{name}" for name in sorted([*SCRIPTS, "common.sh"])]
  subprocess.run([SHELLCHECK, "-x", *files], cwd=LAUNCH.parent, check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(house, script):
  out, err = house.run(script, "--help")
  assert out.startswith("usage: ") and "example: " in out and "--dry-run" in out and not err
  assert max(map(len, out.splitlines())) <= 100
  assert house.calls() == []


TPU = ["my-tpu", "--zone=us-central1-a"]
V5E = "--type=v5litepod-16"
GKE = ["create", "run-1", "--cluster=c", V5E]
MAIN = ["--", "--config=x.py", LR, "--workdir=/mnt/runs"]
MAIN_LINE = f"--config=x.py '{LR}' --workdir=/mnt/runs"


@pytest.mark.parametrize(
  "script, args, words",
  [
    ("local.sh", [], "the number of processes comes first, and once: launch/local.sh 2"),
    ("local.sh", ["two", "--", "x"], "N is 'two': it must be a whole number, 1 or more"),
    ("local.sh", ["0", "--", "x"], "N is '0'"),
    ("local.sh", ["2", "--devices=many", "--", "x"], "--devices is 'many'"),
    ("local.sh", ["2", "--devices=", "--", "x"], "--devices needs a value, as in --devices=VALUE"),
    ("local.sh", ["2", "--devices", "3", "--", "x"], "--devices needs a value"),
    ("local.sh", ["2", "--dry-run=no", "--", "x"], "--dry-run=no: --dry-run takes no value"),
    ("local.sh", ["2", "--devces=3", "--", "x"], "--devces: unknown option; choose from"),
    ("local.sh", ["2", "--config=x.py"], "put what is for jaxkd.main after --"),
    ("local.sh", ["2", "--$(touch x)=1"], "unknown option"),
    ("local.sh", ["2"], "nothing to run: end the line with -- --config=configs/VARIANT.py"),
    ("slurm.sbatch", [], "nothing to run"),
    ("slurm.sbatch", ["--config=x.py"], "not inside a Slurm job: sbatch launch/slurm.sbatch"),
    ("tpu_vm.sh", ["run"], "ACTION and NAME are needed"),
    ("tpu_vm.sh", ["crate", *TPU], "ACTION is 'crate': choose from create copy install run all"),
    ("tpu_vm.sh", ["create", "My_TPU", "--zone=z"], "NAME is 'My_TPU': it must begin"),
    ("tpu_vm.sh", ["stop", "my-tpu"], "--zone= is missing, as in --zone=us-central1-a"),
    ("tpu_vm.sh", ["create", *TPU], "--type= is missing, as in --type=v5litepod-16"),
    ("tpu_vm.sh", ["create", *TPU, "--type=a100"], "--type is 'a100': v2-N, v3-N"),
    ("tpu_vm.sh", ["run", *TPU, V5E], "nothing to run"),
    ("gke.sh", [], "ACTION is '': choose from create list logs delete"),
    ("gke.sh", ["delete", "--cluster=c"], "one NAME is needed, as in launch/gke.sh delete"),
    ("gke.sh", ["create", "run-1", V5E], "--cluster= is missing"),
    ("gke.sh", [*GKE, "--num-slices=0"], "--num-slices is '0'"),
    ("gke.sh", [*GKE, "--", "a\nb"], "has a line break"),
  ],
)
def test_wrong_usage_is_one_line_and_status_2(house, script, args, words):
  out, err = house.run(script, *args, status=2)
  assert not out and err.startswith("error: ") and len(err.splitlines()) == 1 and words in err
  assert house.calls() == [] and not (house.root / "x").exists()


# local.sh

SAVES = """
echo "$JAXKD_PROCESSES $JAXKD_PROCESS $JAXKD_COORDINATOR $JAX_PLATFORMS $JAX_NUM_CPU_DEVICES" \
  >"$STAND_IN/env.$JAXKD_PROCESS"
trap 'echo saved by TERM; exit 143' TERM
trap 'echo saved by INT; exit 130' INT
"""
FOREVER = "touch $STAND_IN/up.$JAXKD_PROCESS; while true; do sleep 0.05; done\n"


def ready(house, count: int) -> list[pathlib.Path]:
  return [house.root / f"up.{i}" for i in range(count)]


def test_local_processes_get_their_environment_and_arguments(house):
  house.does("python", SAVES + "echo out; echo err >&2; sleep 0.$((5 - JAXKD_PROCESS)); printf end")
  out, err = house.run("local.sh", "3", "--devices=4", "--", *ARGS)
  assert sorted(out.splitlines()) == ["[1] end", "[1] out", "[2] end", "[2] out", "end", "out"]
  assert sorted(err.splitlines()) == ["[1] err", "[2] err", "err"]
  assert house.calls() == [["python", "-m", "jaxkd.main", *ARGS]] * 3
  found = [(house.root / f"env.{i}").read_text().split() for i in range(3)]
  address = found[0][2]
  assert found == [["3", str(i), address, "cpu", "4"] for i in range(3)]
  assert address.startswith("127.0.0.1:") and 20_000 <= int(address.split(":")[1]) < 32_000


def test_local_dry_run(house):
  out, _ = house.run("local.sh", "2", "--dry-run", "--", *ARGS)
  for i, line in enumerate(lines(out)):
    env = f"JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 JAXKD_PROCESSES=2 JAXKD_PROCESS={i}"
    assert line[:5] == ["env", *env.split()]
    assert line[5].startswith("JAXKD_COORDINATOR=127.0.0.1:")
    assert line[6:] == ["python", "-m", "jaxkd.main", *ARGS]
  assert len(lines(out)) == 2 and house.calls() == []


@pytest.mark.parametrize(
  "death, status, words",
  [("kill -9 $$", 137, "status 137 (killed by signal 9)"), ("exit 3", 3, "status 3")],
)
def test_local_death_of_one_process_stops_the_others(house, death, status, words):
  dies = f"[[ $JAXKD_PROCESS != 2 ]] || {{ sleep 0.3; {death}; }}\n"
  house.does("python", SAVES + dies + FOREVER)
  began = time.monotonic()
  out, err = house.run("local.sh", "3", "--", "x", status=status)
  assert err.splitlines() == [f"process 2 ended with {words}: stopping the others"]
  assert sorted(out.splitlines()) == ["[1] saved by TERM", "saved by TERM"]
  assert time.monotonic() - began < 5


def test_local_kills_what_does_not_stop(house):
  hang = f"[[ $JAXKD_PROCESS != 1 ]] || {{ trap '' TERM; echo $$ >$STAND_IN/hangs; {FOREVER} }}\n"
  wait = "until [[ -e $STAND_IN/up.1 ]]; do sleep 0.05; done"
  fail = f"[[ $JAXKD_PROCESS != 0 ]] || {{ {wait}; exit 1; }}\n"
  house.does("python", SAVES + hang + fail + FOREVER)
  _, err = house.run("local.sh", "3", "--grace=1", "--", "x", status=1)
  assert err.splitlines() == ["process 0 ended with status 1: stopping the others"]
  with pytest.raises(ProcessLookupError):
    os.kill(int((house.root / "hangs").read_text()), 0)


def test_local_status_of_a_users_mistake_wins(house):
  """Process 0 reports it; another process may have ended for another reason before."""
  first = "trap '' TERM; touch $STAND_IN/up; sleep 0.5; echo 'error: x' >&2; exit 2"
  other = "until [[ -e $STAND_IN/up ]]; do sleep 0.05; done; exit 134"
  house.does("python", f"if ((JAXKD_PROCESS)); then {other}; else {first}; fi")
  _, err = house.run("local.sh", "2", "--", "x", status=2)
  assert err.splitlines()[-1] == "error: x"


@pytest.mark.parametrize("name, status", [("TERM", 143), ("INT", 130)])
def test_local_signals_are_passed_on(house, name, status):
  house.does("python", SAVES + FOREVER)
  process = house.start("local.sh", "2", "--", "x")
  wait_for(*ready(house, 2))
  process.send_signal(getattr(signal, f"SIG{name}"))
  out, err = process.communicate(timeout=10)
  assert process.returncode == status and not err
  assert sorted(out.splitlines()) == [f"[1] saved by {name}", f"saved by {name}"]


def test_local_without_python(house):
  _, err = house.run("local.sh", "2", "--", "x", status=2, PYTHON="no-such-python")
  assert err.startswith("error: no-such-python: no such command; activate the environment or set")


def test_local_without_jaxkd(house, tmp_path):
  other = tmp_path / "python-without"
  other.write_text("#!/bin/sh\nexit 1\n")
  other.chmod(0o755)
  _, err = house.run("local.sh", "2", "--", "x", status=2, PYTHON=str(other))
  assert (
    err == f"error: {other} has no jaxkd: pip install -e . in it, or set PYTHON=.venv/bin/python\n"
  )


def test_local_takes_the_checkouts_own_environment(house):
  own = house.root / "repo/.venv/bin/python"
  own.parent.mkdir(parents=True)
  own.symlink_to(house.root / "bin/python")
  out, _ = house.run("local.sh", "1", "--dry-run", "--", "x")
  assert f"{own} -m jaxkd.main x" in out


# slurm.sbatch

SRUN = "srun --ntasks-per-node=4 --cpus-per-task=6 --gpu-bind=none --kill-on-bad-exit=0 --wait=120"
SRUN = f"{SRUN} env JAXKD_PROCESSES=auto JAXKD_STOPPED_STATUS=143 python -m jaxkd.main".split()
JOB = dict(SLURM_JOB_ID="77", SLURM_NTASKS_PER_NODE="4", SLURM_CPUS_PER_TASK="6")
JOB |= dict(SLURM_GPUS_ON_NODE="4")


@pytest.mark.parametrize(
  "behaviour, status, requeued",
  [
    ("exit 0", 0, False),
    ("exit 2", 2, False),
    ("exit 137", 137, False),
    ("exit 143", 143, True),
    ("kill -TERM $PPID; exit 143", 143, False),  # scancel, which signals the batch shell too
  ],
)
def test_slurm_runs_and_goes_back_into_the_queue(house, behaviour, status, requeued):
  house.does("srun", behaviour)
  # Slurm runs a copy of the script from elsewhere.
  (house.root / "repo/spool").mkdir()
  shutil.copy(LAUNCH / "slurm.sbatch", house.root / "repo/spool/job00077")
  job = JOB | dict(SLURM_SUBMIT_DIR=str(house.root / "repo"))
  house.run("../spool/job00077", *ARGS, status=status, **job)
  assert house.calls() == [[*SRUN, *ARGS], *([["scontrol", "requeue", "77"]] if requeued else [])]


def test_slurm_wants_a_task_for_each_gpu(house):
  _, err = house.run("slurm.sbatch", "x", status=2, **JOB | dict(SLURM_GPUS_ON_NODE="8"))
  assert err.startswith("error: 8 GPUs and 4 tasks on a node") and len(err.splitlines()) == 1
  assert err.endswith("sbatch --gpus-per-node=8 --ntasks-per-node=8\n") and house.calls() == []


def test_slurm_dry_run(house):
  wanted = [[*SRUN, *ARGS]]
  wanted[0][1:3] = ["--ntasks-per-node=1", "--cpus-per-task=8"]
  for more in ([], ["--"]):
    out, _ = house.run("slurm.sbatch", "--dry-run", *more, *ARGS)
    assert lines(out) == wanted and house.calls() == []


# tpu_vm.sh

VM = ["gcloud", "compute", "tpus", "tpu-vm"]
WHERE = ["--zone=us-central1-a", "--quiet"]
KIND = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"]
CREATE = [*VM, "create", "my-tpu", *KIND, *WHERE]
LIST = [*VM, "list", "--filter=name~/my-tpu$", "--format=value(state)", *WHERE]
DELETE = [*VM, "delete", "my-tpu", *WHERE]
ARCHIVE = ["git", "archive", "--output=build/my-tpu.tar.gz", COMMIT]
SCP = [*VM, "scp", "build/my-tpu.tar.gz", "my-tpu:jaxkd.tar.gz", "--worker=all", *WHERE]


def ssh(command: str) -> list[str]:
  return [*VM, "ssh", "my-tpu", "--worker=all", f"--command={command}", *WHERE]


def remote(call: list[str]) -> str:
  """What the workers' shells get."""
  assert call[:7] == [*VM, "ssh", "my-tpu", "--worker=all"] and call[8:] == WHERE
  return call[7].removeprefix("--command=")


UNPACK = ssh("mkdir -p jaxkd && tar -xzf jaxkd.tar.gz -C jaxkd")
APT = "sudo apt-get -qq -o DPkg::Lock::Timeout=600"
INSTALL = ssh(
  "{ mount it; } && cd jaxkd && { python3.11 -m venv .venv 2>/dev/null || "
  f"{{ {APT} update && {APT} install -y python3.11-venv && python3.11 -m venv .venv; }}; }} "
  "&& .venv/bin/pip install -q -e '.[hf,tfds]' 'jax[tpu]'"
)
STOP = (
  'cd jaxkd || exit; p=$(cat jaxkd.pid 2>/dev/null); alive="grep -qs jaxkd.main /proc/$p/cmdline"; '
  '$alive && kill "$p"; while $alive; do sleep 1; done; '
)
RUN = ssh(
  STOP + "echo $$ >jaxkd.pid; exec env JAXKD_PROCESSES=auto JAXKD_STOPPED_STATUS=143 "
  ".venv/bin/python -m jaxkd.main "
  f"{MAIN_LINE}"
)
RUN_ARGS = [*TPU, V5E, "--spot", "--setup=mount it", *MAIN]
# States and statuses in the order in which they come; READY and 0 when there are no more.
GCLOUD = """
case $* in
  *" list "*) now=$(next states); [[ $now != error ]] || exit 1; echo "$now" ;;
  *" create "*) status=$(next creates); exit "${status:-0}" ;;
  *"exec env"*) status=$(next runs); exit "${status:-0}" ;;
esac
"""


@pytest.fixture
def cloud(house) -> House:
  house.does("gcloud", GCLOUD)
  house.writes("states")
  house.writes("creates")
  house.writes("runs")
  return house


def test_tpu_all_is_create_copy_install_run(cloud):
  cloud.run("tpu_vm.sh", "all", *RUN_ARGS)
  assert cloud.calls("gcloud") == [CREATE, SCP, UNPACK, INSTALL, RUN]
  assert ARCHIVE in cloud.calls("git")


def test_tpu_dry_run(cloud):
  out, _ = cloud.run("tpu_vm.sh", "all", "--dry-run", "--project=p", *RUN_ARGS)
  archive = [["mkdir", "-p", "build"], [*ARCHIVE[:-1], "HEAD"]]
  wanted = [CREATE, *archive, SCP, UNPACK, INSTALL, RUN]
  assert lines(out) == [[*c, "--project=p"] if c[0] == "gcloud" else c for c in wanted]
  assert cloud.calls() == [] and not (cloud.root / "repo/build").exists()


def test_tpu_preempted_is_made_again_until_the_run_ends(cloud):
  cloud.writes("runs", "255", "143", "0")
  # Ready for a moment, gone; no room at first. Then gone without a trace.
  states = ["READY", "error", "PREEMPTED", "PREEMPTED", "", "", "READY", "", "", "READY"]
  cloud.writes("states", *states)
  cloud.writes("creates", "1")
  _, err = cloud.run("tpu_vm.sh", "run", *RUN_ARGS)
  setup = [SCP, UNPACK, INSTALL]
  first = [RUN, LIST, LIST, LIST, LIST, DELETE, LIST, CREATE, LIST, CREATE, LIST, *setup]
  assert cloud.calls("gcloud") == [*first, RUN, LIST, LIST, CREATE, LIST, *setup, RUN]
  assert [c for c in cloud.calls("git") if c[1] == "archive"] == [ARCHIVE] * 2
  assert "my-tpu is PREEMPTED" in err and "my-tpu is absent" in err


@pytest.mark.parametrize("status", [1, 143, 255])
def test_tpu_that_is_still_there_is_not_made_again(cloud, status):
  cloud.writes("runs", str(status))
  cloud.writes("states", *["READY"] * 8)
  _, err = cloud.run("tpu_vm.sh", "run", *RUN_ARGS, status=status)
  last = f"error: the run ended with status {status}, and my-tpu is still there"
  assert err.splitlines()[-1] == last
  assert cloud.calls("gcloud") == [RUN] + [LIST] * 8


def test_tpu_users_mistake_ends_the_run(cloud):
  cloud.writes("runs", "2")
  cloud.run("tpu_vm.sh", "run", *RUN_ARGS, status=2)
  assert cloud.calls("gcloud") == [RUN]


def test_tpu_all_ends_where_a_step_fails(cloud):
  cloud.writes("creates", "7")
  cloud.run("tpu_vm.sh", "all", *RUN_ARGS, status=7)
  assert cloud.calls("gcloud") == [CREATE]


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_tpu_signal_lets_the_workers_save(cloud, name):
  run = "touch $STAND_IN/up; until [[ -e $STAND_IN/stopped ]]; do sleep 0.05; done; exit 143"
  cloud.does("gcloud", f'case $* in *"exec env"*) {run} ;; *) touch $STAND_IN/stopped ;; esac')
  process = cloud.start("tpu_vm.sh", "run", *RUN_ARGS)
  wait_for(cloud.root / "up")
  process.send_signal(getattr(signal, f"SIG{name}"))
  process.communicate(timeout=10)
  assert process.returncode == 143
  assert cloud.calls("gcloud") == [RUN, ssh(STOP + "true")]


def test_tpu_other_actions(cloud):
  cloud.run("tpu_vm.sh", "stop", *TPU)
  cloud.run("tpu_vm.sh", "delete", *TPU)
  cloud.run("tpu_vm.sh", "create", *TPU, "--type=v9-8", "--version=new")
  create = [*VM, "create", "my-tpu", "--accelerator-type=v9-8", "--version=new", *WHERE]
  assert cloud.calls() == [ssh(STOP + "true"), DELETE, create]


def test_tpu_without_shared_workdir_says_so(cloud):
  _, err = cloud.run("tpu_vm.sh", "run", *TPU, V5E, "--", "--config=x.py")
  assert err.startswith("note: without --workdir=DIR")


def worker(house) -> pathlib.Path:
  """The home of a worker, whose Python is the stand-in."""
  home = house.root / "home"
  (home / "a dir/.venv/bin").mkdir(parents=True)
  shutil.copy(house.root / "bin/python", home / "a dir/.venv/bin/python")
  return home


def test_tpu_workers_shell_gives_main_its_arguments(cloud):
  cloud.run("tpu_vm.sh", "run", *TPU, V5E, "--dir=a dir", "--", *ARGS)
  (call,) = cloud.calls("gcloud")
  cloud.does("python", 'echo "$JAXKD_PROCESSES" >$STAND_IN/env')
  assert cloud.shell(remote(call), worker(cloud)) == 0
  assert cloud.calls("python") == [["python", "-m", "jaxkd.main", *ARGS]]
  assert (cloud.root / "env").read_text() == "auto\n"


def test_tpu_worker_asks_an_earlier_process_to_save_first(cloud):
  cloud.run("tpu_vm.sh", "run", *TPU, V5E, "--dir=a dir", "--", "x")
  cloud.run("tpu_vm.sh", "stop", *TPU, "--dir=a dir")
  run, stop = map(remote, cloud.calls("gcloud"))
  home = worker(cloud)
  work = "cd $STAND_IN; trap 'echo saved >>log; exit 143' TERM; echo up >>log; touch up"
  cloud.does("python", f"{work}; while true; do sleep 0.05; done")

  def start() -> subprocess.Popen:
    process = subprocess.Popen(["sh", "-c", run], cwd=home, env=cloud.environ)
    wait_for(cloud.root / "up")
    (cloud.root / "up").unlink()
    return process

  first = start()
  second = start()
  assert first.wait(timeout=5) == 143 and second.poll() is None
  assert cloud.shell(stop, home) == 0
  assert second.wait(timeout=5) == 143
  assert (cloud.root / "log").read_text().split() == ["up", "saved", "up", "saved"]
  assert cloud.shell(stop, home) == 0  # nothing runs


# gke.sh


def xpk(image: str, command: str) -> list[str]:
  found = "xpk workload create --workload=run-1 --cluster=c --tpu-type=v5litepod-16 --num-slices=2"
  found += " --max-restarts=5 --restart-on-exit-codes=1 --termination-grace-period-seconds=300"
  found += f" --base-docker-image={image} --script-dir=build/run-1"
  return [*found.split(), f"--command={command}"]


def test_gke_create(house):
  plain = f"exec env JAXKD_PROCESSES=auto JAXKD_STOPPED_STATUS=143 python -m jaxkd.main {MAIN_LINE}"
  more = ["--num-slices=2", "--restarts=5"]
  house.run("gke.sh", *GKE, *more, *MAIN)
  house.run("gke.sh", *GKE, *more, "--base-docker-image=mine", *MAIN)
  installing = f"pip install -q -e '.[hf,tfds]' 'jax[tpu]' && {plain}"
  assert house.calls("xpk") == [xpk("python:3.11", installing), xpk("mine", plain)]
  assert ["tar", "-xzf", "build/run-1.tar.gz", "-C", "build/run-1"] in house.calls()
  out, _ = house.run("gke.sh", *GKE, *more, "--dry-run", *MAIN)
  assert lines(out) == [
    ["mkdir", "-p", "build"],
    ["git", "archive", "--output=build/run-1.tar.gz", "HEAD"],
    ["rm", "-rf", "build/run-1"],
    ["mkdir", "build/run-1"],
    ["tar", "-xzf", "build/run-1.tar.gz", "-C", "build/run-1"],
    xpk("python:3.11", installing),
  ]


def test_gke_container_gives_main_its_arguments_and_signals(house):
  house.run("gke.sh", *GKE, "--", *ARGS)
  command = house.calls("xpk")[0][-1].removeprefix("--command=")
  house.does("python", 'echo "$JAXKD_PROCESSES" >$STAND_IN/env; kill -TERM $$; sleep 5')
  # As xpk starts it.
  wrapped = f"({command}) & PID=$!; wait $PID; exit $?"
  assert house.shell(wrapped, house.root, shell=("bash", "-c")) == 143
  assert house.calls("pip") == [["pip", "install", "-q", "-e", ".[hf,tfds]", "jax[tpu]"]]
  assert house.calls("python") == [["python", "-m", "jaxkd.main", *ARGS]]
  assert (house.root / "env").read_text() == "auto\n"


def test_gke_other_actions(house):
  house.run("gke.sh", "list", "--cluster=c", "--zone=z")
  house.run("gke.sh", "logs", "run-1")
  house.run("gke.sh", "delete", "run-1", "--cluster=c", "--project=p")
  zero = "jobset.sigs.k8s.io/jobset-name=run-1,jobset.sigs.k8s.io/job-index=0"
  zero += ",batch.kubernetes.io/job-completion-index=0"
  assert house.calls() == [
    ["xpk", "workload", "list", "--cluster=c", "--zone=z"],
    ["kubectl", "logs", "--follow", "--tail=-1", f"--selector={zero}"],
    ["xpk", "workload", "delete", "--workload=run-1", "--cluster=c", "--project=p", "--force"],
  ]


def test_gke_failure_of_xpk_is_the_status(house):
  house.does("xpk", "exit 9")
  house.run("gke.sh", *GKE, "--", *ARGS, status=9)
