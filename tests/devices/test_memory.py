"""Freed memory is used again, and not asked for anew."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys
from jaxkd.devices import memory
if sys.argv[1] == "kept":
  memory.keep()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for round in range(21):
  if round == 1:
    before = faults()
  place = ctypes.c_void_p(libc.malloc(64_000_000))
  libc.memset(place, 1, 64_000_000)
  libc.free(place)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_large_arrays_fault_once():
  def faults(how: str) -> int:
    run = [sys.executable, "-c", SCRIPT, how]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)

  pages = 64_000_000 // 4096
  assert faults("kept") < pages < 10 * pages < faults("given back")
