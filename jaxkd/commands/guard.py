"""The one place where errors and signals become a line and an exit status.

Imports nearly nothing until it is on, and what it needs at the end only then.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable

from jaxkd.errors import TRY_AGAIN, Interrupted, TryAgain, UserError

_AGAIN = "the same command starts again, a training from its last save"
_TERMINATED = f"terminated; {_AGAIN}"
_INTERRUPTED = f"interrupted; {_AGAIN}"
# What JAX's errors say where a process does not answer any more.
_LOST = (
  "UNAVAILABLE",
  "DEADLINE_EXCEEDED",
  "ABORTED",
  "Connection closed by peer",
  "Connection reset by peer",
  "coordination service",
)


def guard(command: Callable[[], int]) -> int:
  """Runs a command and returns its exit status.

  A user's mistake and a full disk become one line on standard error and 2, what may pass one line
  and 75, Ctrl-C becomes 130, a training that SIGTERM ended 0 or JAXKD_STOPPED_STATUS (SIGTERM at
  other times 143), a closed pipe (`| head`) nothing and 1.
  """
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored: nohup
    signal.signal(signal.SIGINT, _interrupt)
  if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    process = os.getpid()
    signal.signal(signal.SIGTERM, lambda *_: _terminate(process))
  for stream in (sys.stdout, sys.stderr):  # of a terminal or locale that lacks a letter
    if hasattr(stream, "reconfigure") and not stream.encoding.lower().startswith("utf"):
      stream.reconfigure(errors="replace")
  try:
    status = _status_of(command)
    sys.stdout.flush()
    return status
  except TryAgain as error:
    return _end(TRY_AGAIN, f"error: {error}")
  except UserError as error:
    return _end(2, f"error: {error}")
  except KeyboardInterrupt:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # pressed again while threads end
    return _end(130, _INTERRUPTED)
  except Interrupted as stop:
    line = "stopped and saved; the same command resumes"
    if stop.signum != signal.SIGTERM:
      return _end(128 + stop.signum, line)
    # Who sends SIGTERM wants it saved: that is success, unless a launcher asks to tell it apart.
    return _end(int(os.environ.get("JAXKD_STOPPED_STATUS", "0")), line)
  except Exception as error:
    return _unexpected(error)


def _status_of(command: Callable[[], int]) -> int:
  try:
    return command()
  except SystemExit as leave:  # after --help, and by rich where the pipe is closed
    return int(leave.code or 0)


def _unexpected(error: Exception) -> int:
  """The status for what is no user's mistake as such; raises the error again where it is a bug."""
  if isinstance(error, BrokenPipeError) and _nobody_reads():
    # Python flushes once more at its end, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  if _disk_full(error):
    # Its writers in the background would each report the full disk once more.
    _say("error: no space left on device: free some and run the same command to resume")
    return _leave_at_once(2)
  if "JAXKD_PROCESSES" in os.environ:
    if _peer_is_gone(error):
      # JAX says it once for each call that it was passed through.
      reason = " ".join(str(error).split()).replace("Error dispatching computation: ", "")[:200]
      return _end(TRY_AGAIN, f"error: another process of this run is gone ({reason}): {_AGAIN}")
    import traceback

    traceback.print_exception(error)
    return _end(1)
  raise error


def _interrupt(signum, frame) -> None:
  """Ctrl-C: an exception; during imports, where one may crash or be swallowed, the end at once."""
  while frame is not None:
    if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
      _say(_INTERRUPTED)
      _leave_at_once(130)
    frame = frame.f_back
  raise KeyboardInterrupt


def _terminate(process: int) -> None:
  """SIGTERM where no training runs that could be saved: a word, and the end; of workers the end."""
  if os.getpid() == process:
    _say(_TERMINATED)
  os._exit(128 + signal.SIGTERM)


def _end(status: int, line: str = "") -> int:
  """The status; in a run of several processes it is left at once, not after waiting for them."""
  if line:
    _say(line)
  return _leave_at_once(status) if "JAXKD_PROCESSES" in os.environ else status


def _say(line: str) -> None:
  """Past Python's buffers, in which a signal may have come."""
  os.write(2, f"{line}\n".encode(errors="replace"))


def _leave_at_once(status: int) -> int:
  """Ends the process without waiting for its threads."""
  sys.stderr.flush()
  os._exit(status)


def _nobody_reads() -> bool:
  """Whether standard output is a pipe that is closed at its other end."""
  import select

  poll = select.poll()
  poll.register(1, 0)
  return any(event & select.POLLERR for _, event in poll.poll(0))


def _peer_is_gone(error: Exception) -> bool:
  """Whether JAX says that another process of the run, or the network, does not answer."""
  ours = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
  return ours and any(word in str(error) for word in _LOST)


def _disk_full(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    if "No space left on device" in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False
