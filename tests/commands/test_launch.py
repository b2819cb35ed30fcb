"""Launch scripts against stand-ins of gcloud, xpk, srun and python, which record their calls."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jaxkd import config as config_lib
from jaxkd.config import overrides
from stand_ins import ARGS, LAUNCH, MAIN, MAIN_LINE, TPU, V5E, lines, wait_for

# pip puts it beside Python, which need not be in PATH.
SHELLCHECK = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.defpath}")
SCRIPTS = ["gke.sh", "local.sh", "slurm.sbatch", "tpu_vm.sh"]


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
def test_shellcheck():
  files = sorted(str(p.relative_to(LAUNCH.parent)) for p in LAUNCH.iterdir())
  files.remove("launch/Dockerfile")
  assert files == [f"launch/{name}" for name in sorted([*SCRIPTS, "common.sh"])]
  subprocess.run([SHELLCHECK, "-x", *files], cwd=LAUNCH.parent, check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(house, script):
  out, err = house.run(script, "--help")
  assert out.startswith("usage: ") and "example: " in out and "--dry-run" in out and not err
  assert max(map(len, out.splitlines())) <= 100
  assert house.calls() == []


GKE = ["create", "run-1", "--cluster=c", V5E, "--image=mine"]


@pytest.mark.parametrize(
  "script, args, words",
  [
    ("local.sh", [], "the number of processes comes first, and once: launch/local.sh 2"),
    ("local.sh", ["two", "--", "x"], "N is 'two': it must be a whole number, 1 or more"),
    ("local.sh", ["0", "--", "x"], "N is '0'"),
    (
      "local.sh",
      ["2", "--restarts=-1", "--", "x"],
      "--restarts is '-1': it must be a whole number, 0",
    ),
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
    ("tpu_vm.sh", ["run", *TPU, V5E, "--env=1=2", "--", "x"], "--env=1=2: it must be NAME=VALUE"),
    ("tpu_vm.sh", ["run", *TPU, V5E, "--env=NOT_SET", "--", "x"], "NOT_SET is not set here"),
    ("tpu_vm.sh", ["create", *TPU, V5E, "--spot", "--reserved"], "choose one of them"),
    ("tpu_vm.sh", ["create", *TPU, V5E, "--disk=data"], "it must be projects/PROJECT/zones/ZONE"),
    ("tpu_vm.sh", ["logs", *TPU, "--worker=first"], "--worker is 'first'"),
    ("gke.sh", [], "ACTION is '': choose from image create list logs delete"),
    ("gke.sh", ["create", "run-1", "--cluster=c", V5E], "--image= is missing, as in --image=us-"),
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


def test_options_to_choose_from_are_listed_by_other_systems_tools(house):
  """BSD's paste has no default for its operand."""
  paste = shutil.which("paste")
  house.does("paste", f'[[ ${{@: -1}} == - ]] || exit 1\nexec {paste} "$@"')
  _, err = house.run("local.sh", "--devces=3", status=2)
  assert "choose from --devices= --dry-run --grace= --restarts=, and put" in err


def test_an_old_bash_is_named_before_it_meets_what_it_cannot_do():
  code = [x for x in (LAUNCH / "common.sh").read_text().splitlines() if not x.startswith("#")]
  place = lambda word: next(i for i, x in enumerate(code) if word in x)
  assert place("fail() {") < place("BASH_VERSINFO") < place("declare -A")


def pasted() -> list[str]:
  """The lines of the pages whose scripts are here."""
  pages = [LAUNCH.parent / "README.md", *sorted((LAUNCH.parent / "docs").glob("*.md"))]
  found = [line for page in pages for line in page.read_text().splitlines()]
  return [line for line in found if line.startswith(("launch/", "sbatch "))]


@pytest.mark.parametrize("line", pasted())
def test_lines_of_the_pages_are_understood(house, line):
  words = shlex.split(line, comments=True)
  if words[0] == "sbatch":
    place = words.index("launch/slurm.sbatch")
    flags = "--(nodes|gpus-per-node|ntasks-per-node|time)=[0-9:]+"
    assert all(re.fullmatch(flags, word) for word in words[1:place])
    script, args = "slurm.sbatch", ["--dry-run", *words[place + 1 :]]
  else:
    script = words[0].removeprefix("launch/")
    args = [words[1], "--dry-run", *words[2:]]
  out, err = house.run(script, *args)
  assert out and not err  # no note that a run could not resume, either
  if "--config=" in line:
    main = words[next(i for i, word in enumerate(words) if word.startswith("--config=")) :]
    config, folder = overrides.parse(["", *main])
    config_lib.check(config)
    assert folder and (config.recipe == "demo" or config.data.root)


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


def test_local_starts_again_after_what_may_pass(house):
  house.writes("runs", "75", "134", "0")
  house.does("python", "exit $(next runs)")
  _, err = house.run("local.sh", "1", "--", "x")
  again = [line for line in err.splitlines() if line.startswith("note: ")]
  assert again == [
    f"note: status {status} may pass: all processes start again, {left} restarts are left"
    for status, left in ((75, 2), (134, 1))
  ]
  assert len(house.calls("python")) == 3
  house.writes("runs", "75", "75")
  house.run("local.sh", "1", "--restarts=1", "--", "x", status=75)
  house.writes("runs", "75")
  assert house.run("local.sh", "1", "--restarts=0", "--", "x", status=75) == ("", "")


def test_local_without_python(house):
  _, err = house.run("local.sh", "2", "--", "x", status=2, PYTHON="no-such-python")
  assert err.startswith("error: no-such-python: no such command; activate the environment or set")


def test_local_without_jaxkd(house, tmp_path):
  other = tmp_path / "python-without"
  other.write_text("#!/bin/sh\nexit 1\n")
  other.chmod(0o755)
  _, err = house.run("local.sh", "2", "--", "x", status=2, PYTHON=str(other))
  cure = "pip install -e '.[hf]' in it, or set PYTHON=.venv/bin/python"
  assert err == f"error: {other} has no jaxkd: {cure}\n"


def test_local_takes_the_checkouts_own_environment(house):
  own = house.root / "repo/.venv/bin/python"
  own.parent.mkdir(parents=True)
  own.symlink_to(house.root / "bin/python")
  out, _ = house.run("local.sh", "1", "--dry-run", "--", "x")
  assert f"{own} -m jaxkd.main x" in out


# slurm.sbatch

SRUN = "srun --ntasks-per-node=4 --cpus-per-task=6 --gpu-bind=none --kill-on-bad-exit=0 --wait=120"
SRUN = f"{SRUN} env JAX_PLATFORMS=cuda JAXKD_PROCESSES=auto JAXKD_STOPPED_STATUS=143"
SRUN = f"{SRUN} python -m jaxkd.main".split()
JOB = dict(SLURM_JOB_ID="77", SLURM_NTASKS_PER_NODE="4", SLURM_CPUS_PER_TASK="6")
JOB |= dict(SLURM_GPUS_ON_NODE="4")


@pytest.mark.parametrize(
  "behaviour, status, restarts, requeued",
  [
    ("exit 0", 0, 0, False),
    ("exit 2", 2, 0, False),
    ("exit 75", 75, 0, True),
    ("exit 134", 134, 19, True),
    ("exit 75", 75, 20, False),
    ("exit 137", 137, 0, False),
    ("exit 143", 143, 40, True),
    ("kill -TERM $PPID; exit 143", 143, 0, False),  # scancel, which signals the batch shell too
  ],
)
def test_slurm_runs_and_goes_back_into_the_queue(house, behaviour, status, restarts, requeued):
  house.does("srun", behaviour)
  # Slurm runs a copy of the script from elsewhere.
  (house.root / "repo/spool").mkdir()
  shutil.copy(LAUNCH / "slurm.sbatch", house.root / "repo/spool/job00077")
  job = JOB | dict(SLURM_SUBMIT_DIR=str(house.root / "repo"), SLURM_RESTART_COUNT=str(restarts))
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


# gke.sh


def xpk(*more: str) -> list[str]:
  found = "xpk workload create --workload=run-1 --cluster=c --tpu-type=v5litepod-16 --num-slices=2"
  found += " --max-restarts=5 --restart-on-exit-codes=75 --termination-grace-period-seconds=300"
  found += " --docker-image=mine --env=JAX_PLATFORMS=tpu --env=JAXKD_PROCESSES=auto"
  found += " --env=JAXKD_STOPPED_STATUS=143"
  return [*found.split(), *more, f"--command=exec python -m jaxkd.main {MAIN_LINE}"]


def test_gke_create(house):
  more = ["--num-slices=2", "--restarts=5", "--env=HF_TOKEN", "--env=A=b c"]
  house.run("gke.sh", *GKE, *more, *MAIN, HF_TOKEN="hf")
  wanted = xpk("--env=HF_TOKEN=hf", "--env=A=b c")
  assert house.calls("xpk") == [wanted]
  out, _ = house.run("gke.sh", *GKE, *more, "--dry-run", *MAIN, HF_TOKEN="hf")
  assert lines(out) == [wanted]


def test_gke_can_be_asked_for_no_restarts(house):
  out, _ = house.run("gke.sh", *GKE, "--restarts=0", "--dry-run", *MAIN)
  assert "--max-restarts=0" in lines(out)[0]


def test_gke_image_is_of_the_commit(house):
  out, _ = house.run("gke.sh", "image", "run-1", "--image=mine", "--dry-run")
  wanted = [
    ["mkdir", "-p", "build"],
    ["git", "archive", "--output=build/run-1.tar.gz", "HEAD"],
    ["rm", "-rf", "build/run-1"],
    ["mkdir", "build/run-1"],
    ["tar", "-xzf", "build/run-1.tar.gz", "-C", "build/run-1"],
    ["docker", "build", "--tag=mine", "--file=launch/Dockerfile", "build/run-1"],
    ["docker", "push", "mine"],
  ]
  assert lines(out) == wanted
  house.run("gke.sh", "image", "run-1", "--image=mine")
  assert house.calls("docker") == wanted[-2:]


def test_gke_container_gives_main_its_arguments_and_signals(house):
  house.run("gke.sh", *GKE, "--", *ARGS)
  command = house.calls("xpk")[0][-1].removeprefix("--command=")
  house.does("python", "kill -TERM $$; sleep 5")
  # As xpk starts it.
  wrapped = f"({command}) & PID=$!; wait $PID; exit $?"
  assert house.shell(wrapped, house.root, shell=("bash", "-c")) == 143
  assert house.calls("python") == [["python", "-m", "jaxkd.main", *ARGS]]


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
