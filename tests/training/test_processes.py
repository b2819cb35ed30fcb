"""Several processes train as one does, die with a line, and resume in other numbers."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import psutil
import pytest

import corpus
import whole_runs
from jaxkd.devices import mesh
from jaxkd.errors import TryAgain, UserError

pytestmark = pytest.mark.slow
# With 4, two cores take minutes: JAXKD_TEST_PROCESSES=4 python -m pytest tests/test_processes.py
RESUMED = int(os.environ.get("JAXKD_TEST_PROCESSES", "1"))
EVERY = ["--config.training.epochs=3", "--config.checkpoint.every_steps=1"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  folder = tmp_path_factory.mktemp("processes")
  corpus.make(folder)
  return folder


def line(lab, name: str, *more: str) -> list[str]:
  data = f"--config.data.train={lab / 'train.jsonl'}"
  return corpus.flags(lab, "ctc", lab / name, data, *EVERY, *more)[1:]


def start(lab, name: str, count: int, *more: str) -> subprocess.Popen:
  """launch/local.sh, in a process group of its own."""
  script = [str(corpus.ROOT / "launch" / "local.sh"), str(count), "--"]
  environment = whole_runs.environment() | {"PYTHON": sys.executable}
  return subprocess.Popen(
    [*script, *line(lab, name, *more)],
    env=os.environ | environment,
    cwd=corpus.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def finish(process: subprocess.Popen) -> str:
  log, _ = process.communicate(timeout=400)
  assert process.returncode == 0, log
  return log


def of(script: subprocess.Popen) -> list[psutil.Process]:
  """The processes of a run, by number."""
  found = [
    child
    for child in psutil.Process(script.pid).children(recursive=True)
    if "jaxkd.main" in child.cmdline() and child.environ().get("JAXKD_PROCESS")
  ]
  return sorted(found, key=lambda child: int(child.environ()["JAXKD_PROCESS"]))


def assert_close(a: pathlib.Path, b: pathlib.Path) -> None:
  """Other sums, other roundings, which the optimiser carries on."""
  for x, y in zip(*(jax.tree.leaves(whole_runs.final_params(p)) for p in (a, b)), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-3)
  losses = [[row["loss"] for row in whole_runs.metrics(p) if "loss" in row] for p in (a, b)]
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
  steps = [[row["step"] for row in whole_runs.metrics(p)] for p in (a, b)]
  assert steps[0] == steps[1]


def wait_for_step(script: subprocess.Popen, folder: pathlib.Path, step: int) -> None:
  while not any(found >= step for found in whole_runs.steps(folder)):
    assert script.poll() is None, script.communicate()[0]
    time.sleep(0.02)


def test_one_of_two_is_told_and_both_stop_after_the_same_update(lab):
  folder = lab / "stopped"
  # JAX looks once a second whether there is a signal.
  script = start(lab, "stopped", 2, "--config.training.epochs=400")
  wait_for_step(script, folder, 3)
  of(script)[1].terminate()
  log = finish(script)
  assert log.count("stopped and saved") == 2 and not (folder / "results.json").exists()


@pytest.mark.exhaustive
def test_two_die_and_another_number_resumes_to_where_one_ends(lab):
  whole_runs.finish([sys.executable, "-m", "jaxkd.main", *line(lab, "one")])
  folder = lab / "several"
  script = start(lab, "several", 2)
  wait_for_step(script, folder, 6)
  of(script)[1].kill()
  died = time.monotonic()
  log, _ = script.communicate(timeout=120)
  assert time.monotonic() - died < 60
  assert script.returncode == 137
  assert "process 1 ended with status 137 (killed by signal 9)" in log
  log = finish(start(lab, "several", RESUMED))
  assert re.search("resumed at epoch", log)
  assert log.count("results: ") == 1  # one process speaks
  assert_close(lab / "one", folder)


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({"JAXKD_PROCESSES": "two"}, "JAXKD_PROCESSES is 'two': it must be a whole number"),
    ({"JAXKD_PROCESSES": "2", "JAXKD_PROCESS": "2"}, "JAXKD_PROCESS is '2'.* from 0 to 1"),
    (
      {"JAXKD_PROCESSES": "2", "JAXKD_PROCESS": "1", "JAXKD_COORDINATOR": "here"},
      "JAXKD_COORDINATOR is 'here': it must be HOST:PORT",
    ),
  ],
)
def test_wrong_variables_are_one_line(monkeypatch, given, words):
  for name, value in given.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match=words) as caught:
    mesh.start_processes()
  assert not isinstance(caught.value, TryAgain)


def test_a_coordinator_that_is_not_there_may_come(lab):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    place = f"localhost:{free.getsockname()[1]}"
  given = {"JAXKD_PROCESSES": "2", "JAXKD_PROCESS": "1", "JAXKD_COORDINATOR": place}
  found = subprocess.run(
    [sys.executable, "-m", "jaxkd.main", *line(lab, "alone")],
    env=os.environ | whole_runs.environment() | given | {"JAXKD_TIMEOUT": "3"},
    cwd=corpus.ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert found.returncode == 75, found.stderr
  words = "error: the other processes at localhost:.* were not reached in 3 s .JAXKD_TIMEOUT."
  assert re.search(words, found.stderr) and not (lab / "alone").exists()
