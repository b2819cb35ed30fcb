"""launch/tpu_vm.sh against a stand-in of gcloud that records its calls."""

import pathlib
import shlex
import shutil
import signal
import subprocess

import pytest

from stand_ins import ARGS, COMMIT, MAIN, MAIN_LINE, TPU, V5E, House, lines, wait_for

VM = ["gcloud", "compute", "tpus", "tpu-vm"]
WHERE = ["--zone=us-central1-a", "--quiet"]
KIND = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"]
VERSION = KIND.pop(1)
CREATE = [*VM, "create", "my-tpu", VERSION, *KIND, *WHERE]
QUEUE = [*VM[:3], "queued-resources"]
LIST = [*VM, "list", "--filter=name~/my-tpu$", "--format=value(state)", *WHERE]
DELETE = [*VM, "delete", "my-tpu", *WHERE]
ARCHIVE = ["git", "archive", "--output=build/my-tpu.tar.gz", COMMIT]
SCP = [*VM, "scp", "build/my-tpu.tar.gz", "my-tpu:jaxkd.tar.gz", "--worker=all", *WHERE]


def ssh(command: str, worker: str = "all") -> list[str]:
  return [*VM, "ssh", "my-tpu", f"--worker={worker}", f"--command={command}", *WHERE]


def remote(call: list[str]) -> str:
  """What the workers' shells get."""
  assert call[:6] == [*VM, "ssh", "my-tpu"] and call[8:] == WHERE
  return call[7].removeprefix("--command=")


UNPACK = ssh("mkdir -p jaxkd && tar -xzf jaxkd.tar.gz -C jaxkd")
APT = "sudo apt-get -qq -o DPkg::Lock::Timeout=600"
INSTALL = ssh(
  "{ mount it; } && cd jaxkd && { python3.11 -m venv .venv 2>/dev/null || "
  f"{{ {APT} update && {APT} install -y python3.11-venv && python3.11 -m venv .venv; }}; }} "
  "&& .venv/bin/pip install -q -e '.[tpu,hf,tfds]'"
)
STOP = (
  'cd jaxkd || exit; p=$(cat jaxkd.pid 2>/dev/null); alive="grep -qs jaxkd.main /proc/$p/cmdline"; '
  '$alive && kill "$p"; while $alive; do sleep 1; done; '
)
DETACHED = (
  "env JAX_PLATFORMS=tpu JAXKD_PROCESSES=auto JAXKD_STOPPED_STATUS=143 .venv/bin/python -m "
  f"jaxkd.main {MAIN_LINE} & echo $! >jaxkd.pid; wait $!; echo $? >jaxkd.status"
)
RUN = ssh(
  f"{STOP}rm -f jaxkd.status jaxkd.pid; nohup setsid sh -c {shlex.quote(DETACHED)} "
  ">jaxkd.log 2>&1 </dev/null &".replace("'\"'\"'", "'\\''")
)
WAIT = "n=0; until [ -s jaxkd.{} ] || [ $n = {} ]; do sleep 1; n=$((n+1)); done; "


def follow(lines: str = "+1", worker: str = "0") -> list[str]:
  show = f"tail -n {lines} -F --pid=$(cat jaxkd.pid) jaxkd.log; "
  shows = WAIT.format("pid", 30) + show + WAIT.format("status", 5)
  return ssh(f"cd jaxkd || exit; {shows}exit $(cat jaxkd.status || echo 255)", worker)


FOLLOW = follow()
RUN_ARGS = [*TPU, V5E, "--spot", "--setup=mount it", *MAIN]
# States and statuses in the order in which they come; READY and 0 when there are no more.
GCLOUD = """
case $* in
  *" list "*) now=$(next states); [[ $now != error ]] || exit 1; echo "$now" ;;
  *" create "*)
    status=$(next creates)
    [[ ${status:-0} == 0 ]] || echo "ERROR: There is no more capacity in the zone" >&2
    exit "${status:-0}"
    ;;
  *" describe "*) next queue ;;
  *"tail -n"*) status=$(next runs); exit "${status:-0}" ;;
esac
"""


@pytest.fixture
def cloud(house) -> House:
  house.does("gcloud", GCLOUD)
  house.writes("states")
  house.writes("creates")
  house.writes("runs")
  house.writes("queue")
  return house


def test_tpu_all_is_create_copy_install_run(cloud):
  cloud.run("tpu_vm.sh", "all", *RUN_ARGS)
  assert cloud.calls("gcloud") == [CREATE, SCP, UNPACK, INSTALL, RUN, FOLLOW]
  assert ARCHIVE in cloud.calls("git")


def test_tpu_dry_run(cloud):
  out, _ = cloud.run("tpu_vm.sh", "all", "--dry-run", "--project=p", *RUN_ARGS)
  archive = [["mkdir", "-p", "build"], [*ARCHIVE[:-1], "HEAD"]]
  wanted = [CREATE, *archive, SCP, UNPACK, INSTALL, RUN, FOLLOW]
  assert lines(out) == [[*c, "--project=p"] if c[0] == "gcloud" else c for c in wanted]
  assert cloud.calls() == [] and not (cloud.root / "repo/build").exists()


def test_tpu_preempted_is_made_again_until_the_run_ends(cloud):
  cloud.writes("runs", "255", "134", "0")
  # Ready for a moment, gone; no room at first. Then gone without a trace.
  states = ["READY", "error", "PREEMPTED", "PREEMPTED", "", "", "READY", "", "", "READY"]
  cloud.writes("states", *states)
  cloud.writes("creates", "1")
  _, err = cloud.run("tpu_vm.sh", "run", *RUN_ARGS)
  setup = [SCP, UNPACK, INSTALL]
  run = [RUN, FOLLOW]
  # It asks once more where there was no room.
  first = [*run, LIST, LIST, LIST, LIST, DELETE, LIST, CREATE, CREATE, LIST, CREATE, LIST]
  second = [*setup, *run, LIST, LIST, CREATE, LIST, *setup, *run]
  assert cloud.calls("gcloud") == [*first, *second]
  assert [c for c in cloud.calls("git") if c[1] == "archive"] == [ARCHIVE] * 2
  assert "my-tpu is PREEMPTED" in err and "my-tpu is absent" in err


@pytest.mark.parametrize("status", [1, 137, 143])
def test_tpu_that_is_still_there_is_not_made_again(cloud, status):
  cloud.writes("runs", str(status))
  cloud.writes("states", *["READY"] * 8)
  _, err = cloud.run("tpu_vm.sh", "run", *RUN_ARGS, status=status)
  last = f"error: the run ended with status {status}, and my-tpu is still there; launch/tpu_vm.sh"
  assert err.splitlines()[-1].startswith(last)
  assert cloud.calls("gcloud") == [RUN, FOLLOW] + [LIST] * 8


def test_tpu_what_may_pass_is_run_again_and_a_lost_connection_is_made_again(cloud):
  cloud.writes("runs", "75", "255", "75")
  cloud.writes("states", *["READY"] * 24)
  cloud.run("tpu_vm.sh", "run", *RUN_ARGS[:-5], "--restarts=2", *RUN_ARGS[-5:], status=75)
  calls = [call for call in cloud.calls("gcloud") if call != LIST]
  assert calls == [RUN, FOLLOW, RUN, FOLLOW, follow("20")]


def test_tpu_can_be_asked_for_no_restarts(cloud):
  cloud.writes("runs", "75")
  cloud.writes("states", *["READY"] * 8)
  cloud.run("tpu_vm.sh", "run", *RUN_ARGS[:-5], "--restarts=0", *RUN_ARGS[-5:], status=75)
  assert [call for call in cloud.calls("gcloud") if call != LIST] == [RUN, FOLLOW]


def test_tpu_detached(cloud):
  cloud.run("tpu_vm.sh", "run", "--detach", "--env=A=b c", *RUN_ARGS)
  cloud.run("tpu_vm.sh", "logs", *TPU, "--worker=3")
  begun, shown = cloud.calls("gcloud")
  assert "JAXKD_STOPPED_STATUS=143 '\\''A=b c'\\'' .venv" in begun[7]
  assert shown == follow(worker="3")


def test_tpu_by_queue_with_disk_and_bucket(cloud):
  cloud.writes("queue", "WAITING_FOR_RESOURCES", "ACTIVE")
  disk = "projects/p/zones/z/disks/d"
  more = ["--queued", f"--disk={disk}", "--bucket=b"]
  cloud.run("tpu_vm.sh", "create", *TPU, V5E, "--reserved", *more)
  cloud.run("tpu_vm.sh", "install", *TPU, *more)
  cloud.run("tpu_vm.sh", "delete", *TPU, "--queued")
  describe = [*QUEUE, "describe", "my-tpu", "--format=value(state.state)", *WHERE]
  create, *waits, install, delete = cloud.calls("gcloud")
  kind = ["--runtime-version=v2-alpha-tpuv5-lite", KIND[0], "--reserved"]
  kind.append(f"--data-disk=source={disk},mode=read-only")
  assert create == [*QUEUE, "create", "my-tpu", "--node-id=my-tpu", *kind, *WHERE]
  assert waits == [describe] * 2 and delete == [*QUEUE, "delete", "my-tpu", "--force", *WHERE]
  mounts = "{ mountpoint -q /mnt/data || { sudo mkdir -p /mnt/data && sudo mount -o ro,noload "
  mounts += "/dev/disk/by-id/google-persistent-disk-1 /mnt/data; }; } && mkdir -p bucket && "
  mounts += "{ mountpoint -q bucket || gcsfuse --implicit-dirs b bucket; } && cd jaxkd"
  assert remote(install).startswith(mounts)


def test_tpu_users_mistake_ends_the_run(cloud):
  cloud.writes("runs", "2")
  cloud.run("tpu_vm.sh", "run", *RUN_ARGS, status=2)
  assert cloud.calls("gcloud") == [RUN, FOLLOW]


def test_tpu_all_ends_where_a_step_fails(cloud):
  cloud.does("gcloud", "exit 7")
  cloud.run("tpu_vm.sh", "all", *RUN_ARGS, status=7)
  assert cloud.calls("gcloud") == [CREATE]


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_tpu_signal_lets_the_workers_save(cloud, name):
  run = "touch $STAND_IN/up; until [[ -e $STAND_IN/stopped ]]; do sleep 0.05; done; exit 143"
  others = "*nohup*) ;; *) touch $STAND_IN/stopped ;;"
  cloud.does("gcloud", f'case $* in *"tail -n"*) {run} ;; {others} esac')
  process = cloud.start("tpu_vm.sh", "run", *RUN_ARGS)
  wait_for(cloud.root / "up")
  process.send_signal(getattr(signal, f"SIG{name}"))
  process.communicate(timeout=10)
  assert process.returncode == 143
  assert cloud.calls("gcloud") == [RUN, FOLLOW, ssh(STOP + "true")]


def test_tpu_other_actions(cloud):
  cloud.run("tpu_vm.sh", "stop", *TPU)
  cloud.run("tpu_vm.sh", "delete", *TPU)
  cloud.run("tpu_vm.sh", "create", *TPU, "--type=v9-8", "--version=new")
  create = [*VM, "create", "my-tpu", "--version=new", "--accelerator-type=v9-8", *WHERE]
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
  cloud.run("tpu_vm.sh", "run", *TPU, V5E, "--dir=a dir", "--env=A=$b 'c'", "--", *ARGS)
  begin, follow = map(remote, cloud.calls("gcloud"))
  cloud.does("python", 'echo "$JAXKD_PROCESSES $A" >$STAND_IN/env; echo heard; exit 3')
  home = worker(cloud)
  assert cloud.shell(begin, home) == 0
  shown = subprocess.run(
    ["sh", "-c", follow], cwd=home, env=cloud.environ, capture_output=True, timeout=20
  )
  assert (shown.returncode, shown.stdout) == (3, b"heard\n"), shown
  assert cloud.calls("python") == [["python", "-m", "jaxkd.main", *ARGS]]
  assert (cloud.root / "env").read_text() == "auto $b 'c'\n"


def test_tpu_worker_asks_an_earlier_process_to_save_first(cloud):
  cloud.run("tpu_vm.sh", "run", *TPU, V5E, "--dir=a dir", "--detach", "--", "x")
  cloud.run("tpu_vm.sh", "stop", *TPU, "--dir=a dir")
  run, stop = map(remote, cloud.calls("gcloud"))
  home = worker(cloud)
  work = "cd $STAND_IN; trap 'echo saved >>log; exit 143' TERM; echo up >>log; touch up"
  cloud.does("python", f"{work}; while true; do sleep 0.05; done")

  for _ in range(2):
    assert cloud.shell(run, home) == 0
    wait_for(cloud.root / "up")
    (cloud.root / "up").unlink()
  assert not (home / "a dir/jaxkd.status").exists()
  assert cloud.shell(stop, home) == 0
  wait_for(home / "a dir/jaxkd.status")
  assert (cloud.root / "log").read_text().split() == ["up", "saved", "up", "saved"]
  assert cloud.shell(stop, home) == 0  # nothing runs
