"""The user's cache: corpora and converted weights, which are made once and kept."""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Callable

from jaxkd import buckets, files
from jaxkd.errors import UserError


def folder() -> pathlib.Path:
  """As `files.cache_folder`, or the copy of one in a bucket.

  Raises:
    UserError: there is no home folder.
  """
  given = os.environ.get("JAXKD_CACHE", "")
  return buckets.place(given) if buckets.is_url(given) else files.cache_folder()


def made(name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
  """The folder `name` of the cache, made by `make(folder)` where it is absent.

  It appears by a rename when it is whole: a killed or failed `make` leaves nothing behind that a
  later call would take for a whole one. A second process waits for the first; where the file system
  has no locks both make it, and the first to be ready wins.

  Args:
    name: one path component; it must tell apart whatever `make` would make differently.
    make: fills an empty folder.

  Raises:
    UserError: no space left, or the cache cannot be written.
  """
  target = buckets.fetch(folder() / name)
  if target.exists():
    return target
  with _one_line(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    waits = f"waiting for another process that makes {target}"
    with files.locked(target.parent / f".{name}.lock", waits=waits) as alone:
      if not target.exists():
        _make(target, make, alone)
        buckets.publish(target)
  return target


def _make(target: pathlib.Path, make: Callable[[pathlib.Path], None], alone: bool) -> None:
  for left in target.parent.glob(f".{target.name}.*unfinished") if alone else ():
    shutil.rmtree(left, ignore_errors=True)
  unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
  unfinished.mkdir()
  try:
    make(unfinished)
    try:
      os.rename(unfinished, target)
    except OSError:
      if alone or not target.exists():
        raise
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _one_line(target: pathlib.Path):
  try:
    yield
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise UserError(
        f"no space left for {target}: free some, or set JAXKD_CACHE to a folder with room"
      ) from error
    place = pathlib.Path(os.fsdecode(error.filename or target))
    if target.parent in place.parents or place in target.parents:
      raise UserError(
        f"the cache {target.parent} cannot be written ({error.strerror}): set JAXKD_CACHE to a "
        "folder that can"
      ) from error
    raise
