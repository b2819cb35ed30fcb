"""Processes agree on where to stop after a signal, without waiting for their devices."""

import ctypes
import signal
from collections.abc import Callable

from jax.experimental import multihost_utils

_notice: Callable[[int], None] | None = None
_asked = 0


def listen() -> None:
  """Puts this process's handler of SIGTERM back, which JAX has replaced while processes met.

  JAX's own handler tells the other processes of the signal and does no more: it is kept for
  `notice`. Python can neither see nor call a handler that is written in C.
  """
  global _notice
  c_signal = ctypes.CDLL(None).signal
  c_signal.restype, c_signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
  of_jax = c_signal(signal.SIGTERM, int(signal.SIG_IGN))
  _notice = ctypes.CFUNCTYPE(None, ctypes.c_int)(of_jax)
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def notice() -> None:
  """Tells all processes of the run that this one has a signal; nothing where it is alone."""
  if _notice is not None:
    _notice(signal.SIGTERM)


def reached() -> bool:
  """Whether all processes stop here, after a `notice` in one of them.

  Each must call it as often as the others and at the same places. It costs some microseconds.
  """
  global _asked
  _asked += 1
  return multihost_utils.reached_preemption_sync_point(_asked)
