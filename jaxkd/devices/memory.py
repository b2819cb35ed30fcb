"""How this process asks the system for memory."""

import ctypes
import importlib.util
import os
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_LARGEST = 2**31 - 1  # bytes; more than that at the end of the heap is given back


def keep() -> None:
  """Freed memory stays with the process and is used again; called before JAX starts its threads.

  On CPU an update's temporary arrays are freed after it, and glibc gives large ones back to the
  system: the next update waits for the system to clear the same pages anew. Other C libraries
  are left as they are. So is a process that may compute on an accelerator: there one heap for the
  many threads of the compiler is what all of them wait for.
  """
  if sys.platform != "linux" or not _on_cpu():
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:
    return
  # One arena, since glibc maps large blocks of the others whatever it is told.
  for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST)):
    mallopt(option, value)


def _on_cpu() -> bool:
  """Whether JAX, which has not started, will compute on CPU."""
  asked = os.environ.get("JAX_PLATFORMS", "")
  return asked == "cpu" or not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
