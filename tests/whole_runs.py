"""Whole runs as commands of their own, to be killed, stopped and compared."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np

import corpus
from jaxkd.devices import mesh as mesh_lib
from jaxkd.models import kept

MORE = (
  "--config.training.epochs=4",
  "--config.training.spec_augment=True",
  "--config.checkpoint.every_steps=1",
)


def command(lab: pathlib.Path, variant: str, name: str, *flags: str) -> list[str]:
  more = [] if variant == "ctc" else [*MORE, f"--config.teacher.source={lab / 'teacher'}"]
  data = [f"--config.data.train={lab / 'train.jsonl'}"] if variant == "ctc" else []
  return [sys.executable, "-m", *corpus.flags(lab, variant, lab / name, *data, *more, *flags)]


def environment() -> dict[str, str]:
  """One device, and programs that runs side by side share."""
  return {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": os.environ["JAXKD_TEST_PROGRAMS"],
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def start(line: list[str]) -> subprocess.Popen:
  settings = os.environ | environment()
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  return subprocess.Popen(line, env=settings, cwd=corpus.ROOT, **pipes)


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
  return kept.read(folder).load(mesh_lib.make_mesh()).params


def metrics(folder: pathlib.Path) -> list[dict]:
  return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(a: pathlib.Path, b: pathlib.Path) -> None:
  """Equal parameters, and the same rows in metrics.jsonl, none missing and none twice."""
  jax.tree.map(np.testing.assert_array_equal, final_params(a), final_params(b))
  assert metrics(a) == metrics(b)


def prepare(folder: pathlib.Path) -> pathlib.Path:
  """A corpus, a finished teacher, and in straight/ a run that nothing interrupted."""
  corpus.make(folder)
  finish(command(folder, "ctc", "teacher"))
  finish(command(folder, "symmetric", "straight"))
  return folder
