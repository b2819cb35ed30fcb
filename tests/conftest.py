"""Eight virtual CPU devices, set before JAX starts."""

import ctypes
import gc
import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", ".pytest_cache/hypothesis")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back():
  """A worker that runs many files does not keep what those before have compiled."""
  yield
  jax.clear_caches()
  gc.collect()
  # What a compiler has freed stays with the process: 1.1 GB after test_models.py.
  if hasattr(ctypes.CDLL(None), "malloc_trim"):
    ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="module")
def quick_to_compile():
  """Programs compile twice as fast and run slower: for tests that compile more than they run."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
  """Runs of one model share their programs."""
  options = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for values in (options, before):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    if values is options:
      yield
