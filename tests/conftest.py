"""Eight virtual CPU devices, set before JAX starts."""

import ctypes
import gc
import os
import tempfile

import jax
import psutil
import pytest
from jax.experimental.compilation_cache import compilation_cache

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", ".pytest_cache/hypothesis")
if jax.__version_info__ < (0, 11):  # newer ones do not know these, which halve the time to compile
  os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
  )
jax.config.update("jax_platforms", os.environ.get("JAXKD_TEST_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
PROGRAMS = "JAXKD_TEST_PROGRAMS"
MUCH_MEMORY = 3 * 2**29
LONGEST_FIRST = ("test_resume.py", "test_processes.py", "test_train.py", "test_grid.py")


def give_back_memory():
  """Lets go of what was compiled, and of what the compilers have freed, which stays otherwise."""
  jax.clear_caches()
  gc.collect()
  if hasattr(ctypes.CDLL(None), "malloc_trim"):
    ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_kept_for_the_next_file():
  """Of 1.5 GB after test_models.py, 0.35 GB are left."""
  yield
  give_back_memory()


@pytest.fixture(scope="session")
def bytes_that_stay():
  """Bytes that stay whatever is given back: libraries, mostly."""
  return [0]


@pytest.fixture(autouse=True)
def a_worker_stays_small(bytes_that_stay):
  """Around 3 GB with what the next test takes: a machine runs many workers."""
  yield
  memory = lambda: psutil.Process().memory_info().rss
  if memory() > max(MUCH_MEMORY, bytes_that_stay[0] + MUCH_MEMORY // 3):
    give_back_memory()
    bytes_that_stay[0] = memory()


@pytest.fixture(scope="session", autouse=True)
def heads_say_anything_first():
  """Runs of a few updates end while a model that says blank first still says nothing else."""
  from jaxkd.models import registry  # not before JAX has its devices

  registry._BLANK_FIRST = 0.0


@pytest.fixture(scope="module")
def quick_to_compile():
  """Programs compile twice as fast and run slower: for tests that compile more than they run."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def pytest_configure(config):
  """What several test files, workers and commands compile is kept for the whole session."""
  if PROGRAMS not in os.environ:
    folder = tempfile.TemporaryDirectory(prefix="jaxkd-programs-")
    os.environ[PROGRAMS] = os.environ["JAXKD_PROGRAMS"] = folder.name  # of commands, too
    config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(items):
  """Files that take minutes begin first, so that no worker waits for another at the end."""
  place = {name: number for number, name in enumerate(LONGEST_FIRST)}
  items.sort(key=lambda item: place.get(item.path.name, len(LONGEST_FIRST)))


@pytest.fixture(scope="module")
def compiled_once():
  """Whole runs share their programs, and have two devices: more take longer to compile for."""
  options = {
    "jax_compilation_cache_dir": os.environ[PROGRAMS],
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  before = {name: getattr(jax.config, name) for name in options}
  devices = jax.devices
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "devices", lambda *given: devices(*given)[:2])
    for values in (options, before):
      for name, value in values.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()
      if values is options:
        yield
