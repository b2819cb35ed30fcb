"""Compiled programs that are kept from run to run, by JAX's own persistent cache."""

import contextlib
import fcntl
import hashlib
import logging
import os
import pathlib
import platform
import secrets
import tempfile
import time
from collections.abc import Callable

from jaxkd.errors import UserError

log = logging.getLogger(__name__)
_OF_JAX = "JAX_COMPILATION_CACHE_DIR"
_MOST_BYTES = 4 * 2**30
_LONGEST_WAIT_SECONDS = 180.0  # for another process to compile
_LOCK = ".lock"
_ours = False  # whether `keep` has said where


def keep(cache: Callable[[], pathlib.Path]) -> None:
  """Says where, by the environment; called before JAX is loaded.

  JAXKD_PROGRAMS: a folder, a bucket such as gs://mine/programs, or off. What JAX itself was told
  stays. A folder that cannot be written is a line in the log, and nothing is kept.

  Args:
    cache: the user's cache, whose folder programs/ is taken where nothing is said.
  """
  global _ours
  given = os.environ.get("JAXKD_PROGRAMS", "")
  if given == "off" or _OF_JAX in os.environ:
    return
  if "://" in given:
    os.environ[_OF_JAX], _ours = given, True
    return
  try:
    folder = pathlib.Path(given).expanduser() if given else cache() / "programs"
    folder = folder.absolute() / _machine()
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    _tidy(folder)
  except (OSError, RuntimeError, UserError) as error:
    reason = error.strerror if isinstance(error, OSError) else error
    log.warning(
      "compiled programs are not kept (%s): JAXKD_PROGRAMS=FOLDER says where they can be, "
      "JAXKD_PROGRAMS=off that they need not",
      reason,
    )
    return
  os.environ[_OF_JAX], _ours = str(folder), True


def _machine() -> str:
  """A name for this kind of processor: programs for its CPU run on no other."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  features = next((x for x in lines if x.startswith(("flags", "Features"))), platform.processor())
  return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def _tidy(folder: pathlib.Path) -> None:
  """Removes the oldest programs where there is more than enough of them."""
  found = []
  for entry in os.scandir(folder):
    with contextlib.suppress(FileNotFoundError):  # another process tidies, too
      if entry.is_file() and not entry.name.endswith(_LOCK):  # which one may hold
        found.append((entry.stat(), entry.path))
  total = sum(stat.st_size for stat, _ in found)
  for stat, path in sorted(found, key=lambda x: x[0].st_mtime):
    if total <= _MOST_BYTES:
      return
    pathlib.Path(path).unlink(missing_ok=True)
    total -= stat.st_size


def compiled(lowered):
  """The program of a lowered function; whoever wants the same one on this machine waits for it.

  Runs that are started side by side would otherwise all compile it at once, each more slowly; so
  one does, and the others read what it kept. They wait for a few minutes: it may hang, or be
  stopped.

  Args:
    lowered: a `jax.stages.Lowered`.
  """
  import jax

  folder = jax.config.jax_compilation_cache_dir or ""
  with contextlib.ExitStack() as stack:
    # The processes of one run compile together.
    if folder and "://" not in folder and jax.process_count() == 1:
      name = hashlib.sha256(lowered.as_text().encode()).hexdigest()[:3]  # not too many files
      with contextlib.suppress(OSError):  # not ours to write, or no locks there
        _wait(stack.enter_context(pathlib.Path(folder, f".{name}{_LOCK}").open("a")))
    return lowered.compile()


def _wait(file) -> None:
  """Locks a file; not where another process holds it for too long."""
  began, told = time.monotonic(), False
  while time.monotonic() - began < _LONGEST_WAIT_SECONDS:
    try:
      return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      if not told:
        log.info("another process is compiling this program, or one like it: waiting for it")
      told = True
      time.sleep(0.2)


def check_shared(gather: Callable[[object], list], *, is_first: bool) -> None:
  """Keeps nothing where the processes of a run do not see one folder, nor on several CPUs.

  The first alone writes. If it found what the others must compile, it would not take part in what
  compilers of several hosts do together; on CPU, where it alone finds it again, it would wait for
  the others in its first update for 30 s and give up. What JAX itself was told stays.

  Args:
    gather: a value of each process → those of all.
    is_first: whether this is the first process.
  """
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  place = (jax.config.jax_compilation_cache_dir or "") if _ours else ""
  if jax.default_backend() == "cpu":
    if place:
      jax.config.update("jax_compilation_cache_dir", None)
      compilation_cache.reset_cache()
    return
  places = gather(place)
  if not any(places) or all("://" in place for place in places):
    return
  token = pathlib.Path(place) / f".shared-{gather(secrets.token_hex(8))[0]}"
  if is_first and place:
    token.touch()
  gather(None)
  shared = all(gather(bool(place) and token.exists()))
  if is_first and place:
    token.unlink(missing_ok=True)
  if not shared:
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    log.info(
      "compiled programs are not kept: not all processes see %s; JAXKD_PROGRAMS can be a folder "
      "that they share, or a bucket",
      place,
    )
