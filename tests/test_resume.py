"""A run that is killed or stopped goes on to the same parameters, bit for bit."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import corpus
import jax
import numpy as np
import pytest

from jaxkd import blueprint
from jaxkd import mesh as mesh_lib

pytestmark = pytest.mark.slow

MORE = (
  "--config.training.epochs=4",
  "--config.training.spec_augment=True",
  "--config.checkpoint.every_steps=1",
)


def command(lab: pathlib.Path, variant: str, name: str) -> list[str]:
  more = [] if variant == "ctc" else [*MORE, f"--config.teacher.source={lab / 'teacher'}"]
  data = [f"--config.data.train={lab / 'train.jsonl'}"] if variant == "ctc" else []
  return [sys.executable, "-m", *corpus.flags(lab, variant, lab / name, *data, *more)]


def start(line: list[str]) -> subprocess.Popen:
  environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  return subprocess.Popen(line, env=os.environ | environment, cwd=corpus.ROOT, **pipes)


def finish(line: list[str]) -> str:
  """Runs to the end; what was logged."""
  process = start(line)
  _, log = process.communicate(timeout=300)
  assert process.returncode == 0, log
  return log


def steps(folder: pathlib.Path) -> list[int]:
  """Steps of the whole checkpoints in a workdir."""
  return sorted(int(p.name) for p in (folder / "checkpoints/last").glob("*") if p.name.isdigit())


def start_and_wait_for_step(line: list[str], folder: pathlib.Path, step: int) -> subprocess.Popen:
  process = start(line)
  while not any(s >= step for s in steps(folder)):
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.005)
  return process


def final_params(folder: pathlib.Path):
  return blueprint.load_finished(folder, mesh_lib.make_mesh())[1].params


def assert_same(a: pathlib.Path, b: pathlib.Path) -> None:
  jax.tree.map(np.testing.assert_array_equal, final_params(a), final_params(b))
  rows = [(path / "metrics.jsonl").read_text().splitlines() for path in (a, b)]
  losses = [[json.loads(r)["loss"] for r in found if "loss" in r] for found in rows]
  assert len(losses[0]) and losses[0][-1] == losses[1][-1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  """A corpus, a finished teacher, and a run that nothing interrupted."""
  folder = tmp_path_factory.mktemp("resume")
  corpus.make(folder)
  finish(command(folder, "ctc", "teacher"))
  finish(command(folder, "symmetric", "straight"))
  return folder


def test_killed_run_goes_on_to_the_same_parameters(lab):
  line, folder = command(lab, "symmetric", "killed"), lab / "killed"
  process = start_and_wait_for_step(line, folder, 6)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (folder / "results.json").exists()
  assert "resumed at epoch" in finish(line)
  assert_same(lab / "straight", folder)


def test_stopped_run_says_how_to_go_on_even_with_a_cut_checkpoint(lab):
  line, folder = command(lab, "symmetric", "stopped"), lab / "stopped"
  process = start_and_wait_for_step(line, folder, 4)
  process.send_signal(signal.SIGINT)
  _, log = process.communicate(timeout=120)
  assert process.returncode == 130, log
  assert log.rstrip().endswith("stopped and saved; the same command resumes"), log
  newest = steps(folder)[-1]
  for path in (folder / "checkpoints/last" / str(newest)).rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert f"checkpoint {newest} cannot be read" in finish(line)
  assert_same(lab / "straight", folder)
