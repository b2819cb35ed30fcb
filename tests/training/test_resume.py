"""A run that is killed or stopped goes on to the same parameters, bit for bit."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import numpy as np
import psutil
import pytest

import whole_runs

pytestmark = pytest.mark.slow
# More by hand: JAXKD_TEST_KILLS=20 python -m pytest tests/test_resume.py
KILLS = int(os.environ.get("JAXKD_TEST_KILLS", "1"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  return whole_runs.prepare(tmp_path_factory.mktemp("resume"))


def test_killed_run_goes_on_to_the_same_parameters(lab):
  line, folder = whole_runs.command(lab, "symmetric", "killed"), lab / "killed"
  process = whole_runs.start_and_wait_for_step(line, folder, 6)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not (folder / "results.json").exists()
  assert "resumed at epoch" in whole_runs.finish(line)
  whole_runs.assert_same(lab / "straight", folder)


def test_a_finished_run_goes_on_for_more_epochs(lab):
  """Killed on its way, too."""
  folder = lab / "longer"
  shutil.copytree(lab / "teacher", folder)
  first, before = results(folder), whole_runs.metrics(folder)
  prior = (folder / "log_prior.json").read_text()
  (folder / "search.json").write_text("{}")  # what a search said of the model before
  line = whole_runs.command(lab, "ctc", "longer", "--config.training.epochs=4")
  process = whole_runs.start_and_wait_for_step(line, folder, whole_runs.steps(folder)[-1] + 1)
  process.send_signal(signal.SIGKILL)
  log = process.communicate()[1]
  assert "4 epochs instead of 2: goes on from epoch 2 with the learning rate of a run of 4" in log
  assert "resumed at epoch 2" in log
  assert results(folder) == first
  whole_runs.finish(line)
  rows = whole_runs.metrics(folder)
  assert rows[: len(before)] == before and results(folder)["epochs"] == 4
  trained = [row for row in rows if "lr" in row]
  assert [row["epoch"] for row in trained] == [0, 1, 2, 3]
  assert [row["step"] for row in trained] == [n * trained[0]["step"] for n in (1, 2, 3, 4)]
  assert trained[1]["lr"] < trained[2]["lr"]  # the short run's rate had come down
  assert (folder / "log_prior.json").read_text() != prior
  assert not (folder / "search.json").exists()


def test_stopped_run_says_how_to_go_on_even_with_a_cut_checkpoint(lab):
  line, folder = whole_runs.command(lab, "symmetric", "stopped"), lab / "stopped"
  process = whole_runs.start_and_wait_for_step(line, folder, 4)
  process.send_signal(signal.SIGINT)
  _, log = process.communicate(timeout=120)
  assert process.returncode == 130, log
  assert log.rstrip().endswith("stopped and saved; the same command resumes"), log
  newest = whole_runs.steps(folder)[-1]
  for path in (folder / "checkpoints/last" / str(newest)).rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert f"checkpoint {newest} cannot be read" in whole_runs.finish(line)
  whole_runs.assert_same(lab / "straight", folder)


@pytest.mark.exhaustive
def test_sigkills_at_random_moments_cost_nothing(lab):
  """While it imports, compiles, trains, evaluates or writes."""
  line, folder = whole_runs.command(lab, "symmetric", "unlucky"), lab / "unlucky"
  started = time.monotonic()
  whole_runs.finish(whole_runs.command(lab, "symmetric", "timed"))
  whole = time.monotonic() - started
  rng = np.random.default_rng(0)
  for _ in range(KILLS):
    process = whole_runs.start(line)
    time.sleep(rng.uniform(0.1, 0.9) * whole)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  whole_runs.finish(line)
  whole_runs.assert_same(lab / "straight", folder)


def test_sigterm_saves_and_is_success(lab):
  line, folder = whole_runs.command(lab, "symmetric", "preempted"), lab / "preempted"
  process = whole_runs.start_and_wait_for_step(line, folder, 4)
  process.send_signal(signal.SIGTERM)
  _, log = process.communicate(timeout=120)
  assert process.returncode == 0 and "stopped and saved" in log, log
  assert not (folder / "results.json").exists()
  whole_runs.finish(line)
  whole_runs.assert_same(lab / "straight", folder)


def test_killed_worker_process_ends_the_run_which_resumes(lab):
  workers = ["--config.data.workers=1", "--config.training.epochs=40"]
  line, folder = whole_runs.command(lab, "symmetric", "orphaned", *workers), lab / "orphaned"
  process = whole_runs.start_and_wait_for_step(line, folder, 2)
  children = []
  while not children:
    children = [
      c for c in psutil.Process(process.pid).children() if "spawn_main" in str(c.cmdline())
    ]
    time.sleep(0.01)
  children[0].kill()
  _, log = process.communicate(timeout=120)
  assert process.returncode == 75, log
  assert "error: a process that decodes audio (config.data.workers) has died" in log
  assert "Traceback" not in log and whole_runs.steps(folder)


@pytest.mark.exhaustive
def test_full_disk_is_one_line_and_resumes(lab, tmp_path):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("a small file system cannot be mounted here")
  try:
    line = whole_runs.command(lab, "symmetric", "full", f"--workdir={disk / 'full'}")
    _, log = (process := whole_runs.start(line)).communicate(timeout=300)
    assert process.returncode == 2, log
    assert log.strip().splitlines()[-1].startswith("error: no space left on device"), log
    subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
    whole_runs.finish(line)
    whole_runs.assert_same(lab / "straight", disk / "full")
  finally:
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.exhaustive
def test_audio_that_breaks_while_it_runs_is_counted(lab):
  audio = lab / "audio" / "unlabelled-03.flac"
  whole = audio.read_bytes()
  line, folder = whole_runs.command(lab, "symmetric", "rotten"), lab / "rotten"
  process = whole_runs.start(line)
  try:
    while not (folder / "data.json").exists():
      assert process.poll() is None, process.communicate()[1]
      time.sleep(0.005)
    audio.write_bytes(b"no longer audio")
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    assert results(folder)["train"]["broken"] == 1
  finally:
    audio.write_bytes(whole)


def results(folder: pathlib.Path) -> dict:
  return json.loads((folder / "results.json").read_text())
