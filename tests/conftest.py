"""Eight virtual CPU devices, set before JAX starts."""

import os

import jax
import pytest

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", ".pytest_cache/hypothesis")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module")
def quick_to_compile():
  """Programs compile twice as fast and run slower: for tests that compile more than they run."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
