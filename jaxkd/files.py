"""Small files that are read whole, and written whole or not at all."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import re

from jaxkd.errors import UserError

log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_IS_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {dict: "a JSON object", list: "a JSON list"}


def cache_folder() -> pathlib.Path:
  """The user's own: JAXKD_CACHE, or jaxkd/ in XDG_CACHE_HOME or ~/.cache.

  One that is in a bucket is no such place: what is copied from there needs one, too.

  Raises:
    UserError: there is no home folder.
  """
  given = os.environ.get("JAXKD_CACHE")
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  try:
    if given and "://" not in given:
      return pathlib.Path(given).expanduser()
    return pathlib.Path(base).expanduser() / "jaxkd"
  except RuntimeError as error:
    raise UserError("there is no home folder: set JAXKD_CACHE to a folder that may grow") from error


def expanded(given: str | os.PathLike) -> pathlib.Path:
  """A path with the home folder in the place of its ~, or as it is where nobody is called so."""
  return pathlib.Path(os.path.expanduser(given))


def write_bytes(path: pathlib.Path, data: bytes) -> None:
  """Writes a file that is the old one or the whole new one whenever a kill comes.

  A file that holds the same bytes already is not touched; folders above are made. What a kill
  leaves beside it ends in `.tmp` and is read by nobody.
  """
  with contextlib.suppress(OSError):
    if path.read_bytes() == data:
      return
  path.parent.mkdir(parents=True, exist_ok=True)
  # Its own name, since several processes may write the same file at the same time.
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)  # on a full disk its space is needed
    raise


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes UTF-8 as `write_bytes` does."""
  write_bytes(path, text.encode())


def write_json(path: pathlib.Path, value) -> None:
  """Writes JSON as `write_bytes` does."""
  write_text(path, _json(value, indent=2) + "\n")


def write_jsonl(path: pathlib.Path, rows: list[dict]) -> None:
  """Writes one JSON object a line as `write_bytes` does."""
  write_text(path, "".join(_json(row) + "\n" for row in rows))


def _json(value, indent: int | None = None) -> str:
  text = json.dumps(value, indent=indent, ensure_ascii=False)
  # Names of files in other encodings hold lone surrogates, which UTF-8 cannot write.
  return text if text.isascii() or not SURROGATE.search(text) else json.dumps(value, indent=indent)


def read_json(path: pathlib.Path, kind: type | None = None):
  """Reads JSON.

  Args:
    path: of the file.
    kind: dict or list, what it must hold; None for anything.

  Raises:
    UserError: absent, damaged or of another kind.
  """
  try:
    found = json.loads(_bytes(path))
  except ValueError as error:
    raise UserError(f"{path} cannot be read: {error}") from error
  if kind is not None and not isinstance(found, kind):
    raise UserError(f"{path} must hold {_KINDS[kind]}")
  return found


def read_jsonl(path: pathlib.Path, *, growing: bool = False) -> list:
  """Reads a JSON value a line.

  Args:
    path: of the file.
    growing: a kill may have cut the last line short; that one is left out.

  Raises:
    UserError: absent or damaged.
  """
  # Only "\n" ends a line: texts hold what str.splitlines takes for an end, such as U+2028.
  *lines, last = _bytes(path).split(b"\n")
  if last and not (growing and _is_cut(last)):
    lines.append(last)
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      rows.append(json.loads(line))
    except ValueError as error:
      raise UserError(f"{path}, line {number}: {error}") from error
  return rows


def _bytes(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _is_cut(line: bytes) -> bool:
  try:
    json.loads(line)
  except ValueError:
    return True
  return False


class Held(Exception):
  """Another process holds a lock."""


@contextlib.contextmanager
def locked(path: pathlib.Path, *, waits: str = ""):
  """Holds the lock of a file, which is made; its folder must be there.

  Yields whether it is held: a file system without locks is warned of.

  Args:
    path: of the file.
    waits: what is logged where another process holds it and this one waits; "" to raise instead.

  Raises:
    Held: another process holds it.
    OSError: the file cannot be opened or locked.
  """
  held = True
  with path.open("a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno in _NO_LOCKS:
        held = False
        log.warning("%s: its file system has no locks: let no other process use it", path.parent)
      elif error.errno not in _IS_HELD:
        raise
      elif not waits:
        raise Held from error
      else:
        log.info("%s", waits)
        fcntl.flock(file, fcntl.LOCK_EX)
    yield held
