"""The user's cache: corpora that are made once and kept."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable

from jaxkd.errors import UserError


def folder() -> pathlib.Path:
  """JAXKD_CACHE, or jaxkd/ in XDG_CACHE_HOME or ~/.cache."""
  if given := os.environ.get("JAXKD_CACHE"):
    return pathlib.Path(given).expanduser()
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(base).expanduser() / "jaxkd"


def made(name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
  """The folder `name` of the cache, made by `make(folder)` where it is absent.

  It appears by a rename when it is whole: a killed or failed `make` leaves nothing behind that a
  later call would take for the corpus. A second process waits for the first.

  Args:
    name: one path component; it must tell apart whatever `make` would make differently.
    make: fills an empty folder.

  Raises:
    UserError: no space left, or the cache cannot be written.
  """
  target = folder() / name
  if target.exists():
    return target
  unfinished = target.with_name(f".{name}.unfinished")
  with _no_space_is_an_error(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{name}.lock").open("w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if target.exists():
        return target
      shutil.rmtree(unfinished, ignore_errors=True)
      unfinished.mkdir()
      try:
        make(unfinished)
        os.replace(unfinished, target)
      finally:
        shutil.rmtree(unfinished, ignore_errors=True)
  return target


@contextlib.contextmanager
def _no_space_is_an_error(target: pathlib.Path):
  try:
    yield
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise UserError(
        f"no space left for {target}: free some, or set JAXKD_CACHE to a folder with room"
      ) from error
    if error.errno in (errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR):
      raise UserError(
        f"the cache {target.parent} cannot be written: set JAXKD_CACHE to a folder that can"
      ) from error
    raise
