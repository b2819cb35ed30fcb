"""Freed memory is used again, and not asked for anew."""

import os
import subprocess
import sys

import pytest

PAGES = 64_000_000 // 4096
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
  assert faults("kept") < PAGES < 10 * PAGES < faults("given back")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_where_an_accelerator_may_compute_nothing_is_changed(tmp_path):
  (tmp_path / "jax_plugins").mkdir()
  assert faults("kept", PYTHONPATH=str(tmp_path), JAX_PLATFORMS="") > 10 * PAGES
  assert faults("kept", PYTHONPATH=str(tmp_path), JAX_PLATFORMS="cpu") < PAGES


def faults(how: str, **environment: str) -> int:
  """Pages that were asked of the system in 20 rounds."""
  run = [sys.executable, "-c", SCRIPT, how]
  path = os.pathsep.join(filter(None, (environment.pop("PYTHONPATH", ""), os.getcwd())))
  environment = {**os.environ, **environment, "PYTHONPATH": path}
  done = subprocess.run(run, check=True, capture_output=True, text=True, env=environment)
  return int(done.stdout)
