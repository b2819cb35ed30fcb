"""Every end of a command is a status, and at most one line where it is no bug."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest

import corpus
from jaxkd.commands import guard
from jaxkd.errors import Interrupted, TryAgain, UserError


@pytest.fixture(autouse=True)
def keep_the_handler():
  before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def environment(*folders) -> dict[str, str]:
  """Of a process that takes jaxkd from this checkout, and modules from `folders` before others."""
  path = os.pathsep.join(map(str, [*folders, corpus.ROOT]))
  return os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


@pytest.mark.parametrize(
  ("raised", "status", "words"),
  [
    (UserError("config.x is 1"), 2, "error: config.x is 1"),
    (TryAgain("a worker has died"), 75, "error: a worker has died"),
    (OSError(errno.ENOSPC, "No space left on device"), 2, "error: no space left on device"),
    (RuntimeError("write failed: No space left on device"), 2, "error: no space left"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (Interrupted(signal.SIGINT), 130, "the same command resumes"),
    (Interrupted(signal.SIGTERM), 0, "the same command resumes"),
  ],
)
def test_a_line_and_a_status(monkeypatch, capfd, raised, status, words):
  monkeypatch.setattr(guard, "_leave_at_once", lambda status: status)

  def command():
    raise raised

  assert guard.guard(command) == status
  printed = capfd.readouterr()
  assert words in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize(
  ("said", "status", "words"),
  [
    ("UNAVAILABLE: Connection reset by\npeer", 75, "error: another process of this run is gone (U"),
    ("INVALID_ARGUMENT: shapes", 1, "Traceback"),
  ],
)
def test_a_peer_that_is_gone_may_come_back(monkeypatch, capfd, said, status, words):
  monkeypatch.setenv("JAXKD_PROCESSES", "2")
  monkeypatch.setattr(guard, "_leave_at_once", lambda status: status)

  def command():
    raise type("JaxRuntimeError", (RuntimeError,), {})(said)

  assert guard.guard(command) == status
  printed = capfd.readouterr().err
  assert printed.startswith(words) and (status == 1 or printed.count("\n") == 1)


def test_a_launcher_can_tell_a_stopped_run(monkeypatch, capfd):
  monkeypatch.setenv("JAXKD_STOPPED_STATUS", "143")

  def command():
    raise Interrupted(signal.SIGTERM)

  assert guard.guard(command) == 143 and "stopped and saved" in capfd.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError, BrokenPipeError])
def test_other_errors_keep_their_traceback(error):
  """A pipe that breaks is none of the user's either, as long as somebody reads the output."""

  def command():
    raise error

  with pytest.raises(error):
    guard.guard(command)


def test_letters_that_the_locale_lacks_are_replaced(monkeypatch):
  stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
  monkeypatch.setattr(sys, "stdout", stream)
  assert guard.guard(lambda: print("1 – 2 é") or 0) == 0
  assert stream.buffer.getvalue() == "1 ? 2 é\n".encode("latin-1")


def test_statuses_pass():
  assert guard.guard(lambda: 1) == 1
  assert guard.guard(lambda: sys.exit(0)) == 0


def test_where_ctrl_c_is_ignored_it_stays_so():
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup leaves it
  assert guard.guard(lambda: os.kill(os.getpid(), signal.SIGINT) or 0) == 0


def test_the_guard_is_on_before_anything_is_loaded():
  code = "import sys, jaxkd.main, jaxkd.__main__; print(*sys.modules)"
  line = [sys.executable, "-c", code]
  done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment())
  loaded = set(done.stdout.split())
  assert "jaxkd.commands.guard" in loaded
  assert not loaded & {"argparse", "rich", "absl", "ml_collections", "numpy", "jax"}


@pytest.mark.parametrize("module", ["argparse", "absl", "jax"])
@pytest.mark.parametrize("program", [["jaxkd.main"], ["jaxkd", "train"]])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_while_modules_are_loaded(tmp_path, program, module, name):
  """They come in the middle of an import that would swallow an exception."""
  swallow = f"try:\n  os.kill(os.getpid(), signal.{name})\nexcept BaseException:\n  pass\n"
  (tmp_path / f"{module}.py").write_text(f"import os, signal\n{swallow}raise ImportError('late')\n")
  done = subprocess.run(
    [sys.executable, "-m", *program, "--config=symmetric:demo"],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=environment(tmp_path),
    # Where the tests run in a shell's background, Ctrl-C is ignored by all that they start.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  )
  status, word = {"SIGINT": (130, "interrupted;"), "SIGTERM": (143, "terminated;")}[name]
  assert done.returncode == status, done.stderr
  assert done.stderr.startswith(word) and done.stderr.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [[], ["train", "--help"]])
def test_a_closed_pipe_is_quiet(tmp_path, arguments, unbuffered):
  """As in `jaxkd train --help | head -1`."""
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run(
    [sys.executable, "-m", "jaxkd", *arguments],
    stdout=write,
    stderr=subprocess.PIPE,
    text=True,
    cwd=tmp_path,
    env=environment() | {"PYTHONUNBUFFERED": unbuffered},
  )
  os.close(write)
  assert (done.returncode, done.stderr) == (1, "")
