"""Folders and objects in buckets, `gs://` and `s3://`, by way of local copies.

A bucket has no renames, no locks and no appending. So a folder in one is worked on in a copy in
the user's cache, where all of that is there: `place` says where it lies, `fetch` makes it what the
bucket has, `publish` uploads what has changed in it, as whole objects and an index of them last.
What a kill leaves half uploaded is in no index, and nobody reads it.

A path of the local file system goes through all of these functions as it is.
"""

import contextlib
import errno
import functools
import hashlib
import io
import json
import logging
import os
import pathlib
import posixpath
import re
from collections.abc import Iterator

from jaxkd import files
from jaxkd.errors import TryAgain, UserError

log = logging.getLogger(__name__)
INDEX = "jaxkd-index.json"
# Scheme → the extra of this package that brings its driver.
EXTRAS = {"gs": "gs", "s3": "s3"}
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.I | re.S)
# Only training reads these, and they are most of a workdir's bytes.
RESUMED_FROM = ("checkpoints/last/", "checkpoints/best/")
# A folder whose files belong together and are written anew under the same names.
_REPLACED = "checkpoints/final/"
_HEADER_BLOCK = 1 << 18  # bytes that are fetched at a time where only a header is wanted
# In the names of what drivers raise where a connection fails or ends: "ConnectTimeoutError".
_OF_NETWORK = ("Connect", "Timeout", "Disconnected", "Payload", "Incomplete", "Streaming")
_fetched: set[str] = set()
_outputs: list[pathlib.Path] = []


def is_url(name: str | os.PathLike) -> bool:
  """Whether a name is no local path; of whatever scheme."""
  return isinstance(name, str) and bool(_URL.match(name))


def check_scheme(name: str) -> None:
  """Raises UserError for a name of another scheme than those of buckets, or without a bucket."""
  scheme, rest = _URL.fullmatch(name).groups()
  if scheme not in EXTRAS:
    known = " and ".join(f"{scheme}://" for scheme in EXTRAS)
    raise UserError(f"{name}: only local paths, {known} can be read and written here")
  if not rest.strip("/") or rest.startswith("/"):
    raise UserError(f"{name}: no bucket in it: {scheme}://BUCKET/PATH")


def place(name: str | os.PathLike) -> pathlib.Path:
  """The local path of a name: where its copy lies, or itself without a ~.

  Raises:
    UserError: another scheme than those of buckets.
  """
  if not is_url(name):
    return files.expanded(name)
  check_scheme(name)
  scheme, rest = _URL.fullmatch(name).groups()
  rest = posixpath.normpath(rest)
  if rest.startswith(".."):
    raise UserError(f"{name}: leads out of its bucket")
  return _root() / scheme / rest


def url(path: pathlib.Path) -> str | None:
  """What a local path is the copy of; None for one that is none."""
  inside = os.path.relpath(os.path.abspath(path), _root())
  scheme, _, rest = inside.partition("/")
  return f"{scheme}://{rest}" if scheme in EXTRAS and rest else None


def name(path: pathlib.Path) -> str:
  """As a person would call it."""
  return url(path) or str(path)


def shown(text: str) -> str:
  """A text with the names of what lies in buckets in the place of their copies' paths."""
  root = re.escape(str(_root()))
  return re.sub(rf"{root}/({'|'.join(EXTRAS)})/", r"\1://", text)


def join(folder: str, path: str) -> str:
  """A path that a file of a bucket's folder names: of another object, or a local one."""
  if is_url(path) or os.path.isabs(path):
    return path
  scheme, rest = _URL.fullmatch(folder).groups()
  return f"{scheme}://{posixpath.normpath(posixpath.join(rest, path))}"


def _root() -> pathlib.Path:
  return files.cache_folder() / "buckets"


def here(name: str | os.PathLike) -> pathlib.Path:
  """The local path of a name, whose copy is up to date; without what a run resumes from.

  Raises:
    UserError: a bucket that cannot be read.
  """
  return fetch(place(name))


def output(name: str | os.PathLike) -> pathlib.Path:
  """The local path of a folder that a command writes, to be uploaded by `publish_outputs`.

  What is there already is not fetched: it may be much, and what has other names stays there.
  """
  path = place(name)
  if url(path) and path not in _outputs:
    check_writable(path)
    _outputs.append(path)
  return path


def publish_outputs() -> None:
  """Uploads what has changed in folders that were given to `output`."""
  while _outputs:
    publish(_outputs.pop())


def fetch(path: pathlib.Path, *, mine: bool = False) -> pathlib.Path:
  """Makes a copy what its bucket has; returns its path. Once a process, but for one's own.

  Args:
    path: of a folder or a file; nothing is done for what is no copy.
    mine: this process holds the lock of the folder, and goes on in it: all of it is fetched. Else
      what a run resumes from stays away, and a folder in which a process works stays as it is.

  Raises:
    UserError: the bucket cannot be read.
  """
  source = url(path)
  if source is None or (source in _fetched and not mine):
    return path
  path = pathlib.Path(os.path.abspath(path))
  _fetched.add(source)
  if not mine and _is_held(path):
    return path
  with _told(source), _transfer(path):
    _fetch(source, path, () if mine else RESUMED_FROM)
  return path


def _fetch(source: str, path: pathlib.Path, without: tuple[str, ...]) -> None:
  there = _listed(source)
  if "" in there:  # an object
    if not _same(there[""], _state(path).get(""), path):
      _download(source, {"": there[""]}, path)
      _keep_state(path, {"": there[""]})
    return
  index = _index(source) if INDEX in there else None
  wanted = {rel: tag for rel, tag in there.items() if index is None or rel in index}
  before = _state(path)
  skipped = {rel: tag for rel, tag in wanted.items() if rel.startswith(without)} if without else {}
  wanted = {rel: tag for rel, tag in wanted.items() if rel not in skipped}
  changed = {r: tag for r, tag in wanted.items() if not _same(tag, before.get(r), path / r)}
  _download(source, changed, path)
  for rel in _files(path):
    if rel not in wanted and not (without and rel.startswith(without)):
      (path / rel).unlink()
  _drop_empty(path)
  _keep_state(path, wanted)


def _download(source: str, tags: dict[str, str], path: pathlib.Path) -> None:
  if not tags:
    return
  if len(tags) > 1:
    log.info("fetching %d objects of %s", len(tags), source)
  targets = [path / rel if rel else path for rel in tags]
  fresh = [f"{target}.{os.getpid()}.tmp" for target in targets]
  for target in targets:
    target.parent.mkdir(parents=True, exist_ok=True)
  _system(source).get([f"{source}/{rel}" if rel else source for rel in tags], fresh)
  for made, target in zip(fresh, targets, strict=True):
    os.replace(made, target)


def publish(path: pathlib.Path, *, exact: bool = False) -> None:
  """Uploads what has changed in a copy; the index last, then what is gone is removed.

  Args:
    path: of a folder; nothing is done for what is no copy.
    exact: the copy is all that there is, as its lock's holder knows it: else nothing is removed.

  Raises:
    UserError: the bucket cannot be written.
  """
  source = url(path)
  if source is None or not path.exists():
    return
  path = pathlib.Path(os.path.abspath(path))
  with _told(source), _transfer(path):
    _publish(source, path, exact)


def _publish(source: str, path: pathlib.Path, exact: bool) -> None:
  system, before, mine = _system(source), _state(path), _files(path)
  changed = [rel for rel in mine if not _same(None, before.get(rel), path / rel)]
  index = _index(source)
  if not changed and index is not None and (not exact or set(mine) == set(index)):
    return
  old = index or {}
  if exact and any(rel in old and rel.startswith(_REPLACED) for rel in changed):
    # Until all of it is new, there is none.
    old = {rel: size for rel, size in old.items() if not rel.startswith(_REPLACED)}
    system.pipe_file(f"{source}/{INDEX}", _encoded(old))
  # What says of other files that they are whole goes behind them.
  for names in ([r for r in changed if not _tells(r)], [r for r in changed if _tells(r)]):
    if names:
      system.put([str(path / rel) for rel in names], [f"{source}/{rel}" for rel in names])
  sizes = {rel: (path / rel).stat().st_size for rel in mine}
  now = sizes if exact else old | sizes
  if index is not None or exact:
    system.pipe_file(f"{source}/{INDEX}", _encoded(now))
  there = _listed(source)
  if exact:
    known = lambda rel: rel in old or rel.startswith("checkpoints/")
    if gone := [rel for rel in there if rel not in now and rel != INDEX and known(rel)]:
      system.rm([f"{source}/{rel}" for rel in gone])
  _keep_state(path, {rel: there[rel] for rel in mine if rel in there})


def _tells(rel: str) -> bool:
  return rel.endswith((".json", ".jsonl"))


def _encoded(index: dict[str, int]) -> bytes:
  return json.dumps({"files": index}, indent=0).encode()


def _index(source: str) -> dict[str, int] | None:
  """Name → size of what is whole in a folder; None where nothing says so."""
  try:
    found = json.loads(_system(source).cat_file(f"{source}/{INDEX}"))
    return dict(found["files"])
  except FileNotFoundError:
    return None
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{source}/{INDEX} is damaged: remove it") from error


def _listed(source: str) -> dict[str, str]:
  """Name below a folder → what is another where its content is; "" for an object itself."""
  found = {}
  inside = _URL.fullmatch(source)[2]
  for key, info in _system(source).find(source, detail=True).items():
    if key.endswith("/") and not info["size"]:
      continue  # what consoles make for an empty folder
    tag = next((info[k] for k in ("ETag", "etag", "md5Hash", "generation") if info.get(k)), "")
    if key == inside or key.startswith(f"{inside}/"):  # not of a folder run-2 beside run
      found[key[len(inside) :].strip("/")] = f"{tag}{info['size']}"
  return found


def _files(path: pathlib.Path) -> list[str]:
  """Names below a copy of all that is uploaded: neither locks nor what is half written."""
  found = []
  for folder, folders, names in os.walk(path):
    folders[:] = [f for f in folders if not f.startswith(".") and not f.endswith(_UNFINISHED)]
    found += [os.path.relpath(os.path.join(folder, n), path) for n in names]
  return sorted(f for f in found if not os.path.basename(f).startswith(".") and _is_whole(f))


_UNFINISHED = (".tmp", ".old", ".new", ".unfinished", ".orbax-checkpoint-tmp")


def _is_whole(rel: str) -> bool:
  return not rel.endswith(_UNFINISHED) and rel != INDEX


def _drop_empty(path: pathlib.Path) -> None:
  """Folders whose files are gone: an empty one would be taken for a checkpoint."""
  for folder, _, _ in os.walk(path, topdown=False):
    if folder != str(path):
      with contextlib.suppress(OSError):
        os.rmdir(folder)


def _same(tag: str | None, before: list | None, path: pathlib.Path) -> bool:
  """Whether a file of a copy is what was last exchanged with the bucket, under this tag."""
  if before is None or (tag is not None and tag != before[0]):
    return False
  try:
    found = path.stat()
  except OSError:
    return False
  return [found.st_size, found.st_mtime_ns] == before[1:]


def _state_file(path: pathlib.Path) -> pathlib.Path:
  digest = hashlib.sha256(url(path).encode()).hexdigest()[:16]
  return _root() / ".state" / f"{digest}.json"


def _state(path: pathlib.Path) -> dict[str, list]:
  """Name → tag, size and time of a copy's files as they were last exchanged."""
  try:
    return json.loads(_state_file(path).read_bytes())
  except (OSError, ValueError):
    return {}


def _keep_state(path: pathlib.Path, tags: dict[str, str]) -> None:
  found = {}
  for rel, tag in tags.items():
    stat = (path / rel if rel else path).stat()
    found[rel] = [tag, stat.st_size, stat.st_mtime_ns]
  files.write_json(_state_file(path), found)


@contextlib.contextmanager
def _transfer(path: pathlib.Path) -> Iterator[None]:
  """One process of this machine at a time exchanges a copy with its bucket."""
  lock = _state_file(path).with_suffix(".lock")
  lock.parent.mkdir(parents=True, exist_ok=True)
  with files.locked(lock, waits=f"waiting for another process that copies {url(path)}"):
    yield


def _is_held(path: pathlib.Path) -> bool:
  """Whether a process of this machine works in a copy, which is newer than the bucket then."""
  lock = path / ".lock"
  if not lock.exists():
    return False
  try:
    with files.locked(lock):
      return False
  except files.Held:
    return True


def exists(source: str) -> str:
  """ "object", "folder", or "" for what is not there.

  Raises:
    UserError: the bucket cannot be read.
  """
  check_scheme(source)
  with _told(source):
    try:
      kind = _system(source).info(source)["type"]
    except FileNotFoundError:
      _system(source).find(source)  # raises where there is no such bucket either
      return ""
  return "object" if kind == "file" else "folder"


def listed(source: str) -> list[str]:
  """Names of all objects below a folder, sorted.

  Raises:
    UserError: the bucket cannot be read.
  """
  check_scheme(source)
  with _told(source):
    return sorted(_listed(source.rstrip("/")))


def folders(path: pathlib.Path, beginning: str) -> list[pathlib.Path]:
  """Copies' paths of the folders in a bucket's folder whose names begin so; [] for a local path.

  Raises:
    UserError: the bucket cannot be read.
  """
  if (source := url(path)) is None:
    return []
  with _told(source):
    try:
      found = _system(source).ls(source, detail=False)
    except FileNotFoundError:
      return []
  names = (posixpath.basename(key.rstrip("/")) for key in found)
  return [path / name for name in sorted(names) if name.startswith(beginning)]


def read(source: str) -> io.BytesIO:
  """An object's bytes.

  Raises:
    FileNotFoundError: it is not there.
    UserError: it cannot be read all the same.
  """
  with _told(source, absent=False):
    return io.BytesIO(_system(source).cat_file(source))


def opened(source: str):
  """An object as a file with a `size`, of which only what is read is fetched; raises as `read`."""
  with _told(source, absent=False):
    return _system(source).open(source, "rb", block_size=_HEADER_BLOCK)


def check_writable(path: pathlib.Path) -> None:
  """Tries whether objects can be written where a copy's bucket is, and leaves none behind.

  Raises:
    UserError: they cannot.
  """
  if (source := url(path)) is None:
    return
  probe = f"{source}/.jaxkd-{os.getpid()}.tmp"
  with _told(source):
    _system(source).pipe_file(probe, b"")
    _system(source).rm_file(probe)


@functools.cache
def _driver(scheme: str):
  """fsspec, with the driver of a scheme behind it."""
  import fsspec

  fsspec.get_filesystem_class(scheme)
  return fsspec


def _system(source: str):
  # Not kept: fsspec keeps one itself, and makes another one behind a fork. Other processes write
  # to the bucket, too, so that no listing may be remembered.
  scheme = source.partition("://")[0]
  return _driver(scheme).filesystem(scheme, use_listings_cache=False)


@contextlib.contextmanager
def _told(source: str, *, absent: bool = True) -> Iterator[None]:
  """Makes one line of what a driver raises; with `absent` False not of an object's absence."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # each driver, and each network below it, has many kinds
    if isinstance(error, FileNotFoundError) and not absent and "does not exist" not in str(error):
      raise
    may_pass = _is_of_network(error)
    raise (TryAgain if may_pass else UserError)(f"{source}: {_reason(source, error)}") from error


def _is_of_network(error: Exception) -> bool:
  """Whether trying again may help: drivers have many types, and s3fs makes EBUSY of SlowDown."""
  kind = type(error).__name__
  return (
    any(word in kind for word in _OF_NETWORK)
    or isinstance(error, (ConnectionError, TimeoutError))
    or getattr(error, "errno", None) in (errno.EBUSY, errno.EREMOTEIO)
  )


def _reason(source: str, error: Exception) -> str:
  scheme, rest = _URL.fullmatch(source).groups()
  bucket, kind = rest.partition("/")[0], type(error).__name__
  said = " ".join(str(error).split())[:200]
  if isinstance(error, ImportError):
    return f"its driver is not there: pip install 'jaxkd[{EXTRAS[scheme]}]'"
  if "Credentials" in kind:
    login = {"s3": "aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"}
    return f"no credentials: {login.get(scheme, 'gcloud auth application-default login')}"
  refused = said.startswith("Forbidden") or getattr(error, "code", None) in (401, 403)
  if isinstance(error, PermissionError) or refused:
    return f"these credentials may not do that in the bucket '{bucket}' ({said or kind})"
  if isinstance(error, FileNotFoundError):
    return f"there is no bucket '{bucket}', or nothing of that name in it ({said})"
  if _is_of_network(error):
    return f"the server cannot be reached: {said or kind}"
  return f"{kind}: {said}"
