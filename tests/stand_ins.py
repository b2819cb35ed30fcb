"""A copy of launch/ in which gcloud, xpk, srun and others are stand-ins that record their calls."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
COMMIT = "0123456789"
LR = "--config.training.lr=(1e-4, 1e-3, 1e-4, 1e-6)"
# What shells like to take apart.
ARGS = ["--config=x.py:tedlium", LR, "--workdir=/mnt/it's $HOME", 'a"b', "*", "a\\b"]
MAIN = ["--", "--config=x.py", LR, "--workdir=/mnt/runs"]
MAIN_LINE = f"--config=x.py '{LR}' --workdir=/mnt/runs"
TPU = ["my-tpu", "--zone=us-central1-a"]
V5E = "--type=v5litepod-16"

# A command of the same name: writes a line with its arguments, then does what the test says.
STAND_IN = """#!/usr/bin/env bash
name=${0##*/}
if [[ ${1-} == -c ]]; then exit 0; fi # a script looks whether jaxkd is there
printf -v line '%q ' "$name" "$@"
echo "$line" >>"$STAND_IN/calls"
next() { head -n 1 "$STAND_IN/$1"; sed -i 1d "$STAND_IN/$1"; }
if [[ -e $STAND_IN/$name.sh ]]; then source "$STAND_IN/$name.sh"; fi
"""


class House:
  """A copy of launch/ with stand-ins first in PATH."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    shutil.copytree(LAUNCH, root / "repo/launch")
    self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PYTHON"))}
    self.environ |= {
      "PATH": f"{root}/bin:{os.environ['PATH']}",
      "STAND_IN": str(root),
      "JAXKD_PAUSE_SECONDS": "0.01",
    }
    (root / "bin").mkdir()
    (root / "calls").touch()
    for name in ("gcloud", "xpk", "kubectl", "srun", "scontrol", "python", "docker", "tar"):
      self.does(name, "")
    self.does("git", f"if [[ $1 == rev-parse ]]; then echo {COMMIT}; fi")

  def does(self, name: str, behaviour: str):
    path = self.root / "bin" / name
    path.write_text(STAND_IN)
    path.chmod(0o755)
    (self.root / f"{name}.sh").write_text(behaviour)

  def writes(self, name: str, *lines: str):
    (self.root / name).write_text("".join(f"{line}\n" for line in lines))

  def start(self, script: str, *args: str, **environ: str) -> subprocess.Popen:
    return subprocess.Popen(
      ["bash", self.root / "repo/launch" / script, *args],
      cwd=self.root,
      env=self.environ | environ,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      # A shell cannot catch what was ignored when it started, as SIGINT is in the background.
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )

  def run(self, script: str, *args: str, status: int = 0, **environ: str) -> tuple[str, str]:
    """Standard output and error of a script that must end with `status`."""
    process = self.start(script, *args, **environ)
    out, err = process.communicate(timeout=20)
    assert process.returncode == status, err
    return out, err

  def calls(self, *names: str) -> list[list[str]]:
    """Commands so far, those of `names` only if there are any."""
    found = [shlex.split(line) for line in (self.root / "calls").read_text().splitlines()]
    return [call for call in found if not names or call[0] in names]

  def shell(self, command: str, folder: pathlib.Path, shell=("sh", "-c")) -> int:
    """Runs what a remote shell would get."""
    return subprocess.run([*shell, command], cwd=folder, env=self.environ, timeout=20).returncode


def wait_for(*paths: pathlib.Path):
  """Until there are such files, for ten seconds."""
  limit = time.monotonic() + 10
  while not all(p.exists() for p in paths):
    assert time.monotonic() < limit, paths
    time.sleep(0.02)


def lines(text: str) -> list[list[str]]:
  """The words of each line, as a shell has them."""
  return [shlex.split(line) for line in text.splitlines()]
