"""An index of utterances: one row each, in columns that are looked at where they lie (mmap).

A row takes 57 bytes and its strings, of files that all processes of a host share; nothing but the
header is read when an index is opened.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxkd import files
from jaxkd.errors import UserError

FORMAT, VERSION = "jaxkd-shards", 1
HEADER, COLUMNS = "index.json", "columns"
_FORMAT_WITHIN = 100  # bytes of a header
_NUMBERS = {
  "seconds": "<f8",
  "start": "<f8",
  "shard": "<i4",
  "offset": "<i8",
  "bytes": "<i8",
  "crc": "<u4",
  "told": "|b1",
}
_STRINGS = {"ids": "id", "texts": "text"}
_ROWS = 65_536  # at a time


class Row(NamedTuple):
  """One utterance of an index.

  Attributes:
    id: unique in it.
    seconds: of its audio.
    text: transcript; None for none.
    start: seconds into the recording.
    shard: number of the file that it lies in.
    offset: where: number of its record, or of its first byte.
    bytes, crc: length and CRC-32 of the encoded recording.
  """

  id: str
  seconds: float
  text: str | None
  start: float
  shard: int
  offset: int
  bytes: int
  crc: int

  @property
  def told(self) -> bool:
    """Whether there is a transcript."""
    return self.text is not None


def is_one(path: str | os.PathLike) -> bool:
  """Whether a folder holds an index: other programs have an index.json, too."""
  try:
    with open(os.path.join(path, HEADER), "rb") as file:
      return f'"{FORMAT}"'.encode() in file.read(_FORMAT_WITHIN)
  except OSError:
    return False


def write(folder: pathlib.Path, rows: Iterable[Row], facts: dict) -> "Index":
  """Writes the columns, and last the header that makes an index of them.

  Columns of other content lie in another folder, so that whoever has the old header reads what it
  tells of; where nothing is new nothing is written.

  Args:
    folder: of the index.
    rows: in the order of the utterances.
    facts: JSON-able, for the header; "shards" lists {"path", "bytes", …}.
  """
  unfinished = folder / f"{COLUMNS}.tmp"
  shutil.rmtree(unfinished, ignore_errors=True)
  unfinished.mkdir(parents=True)
  _write_columns(unfinished, iter(rows))
  written = sorted(unfinished.iterdir())
  header = {"format": FORMAT, "version": VERSION}
  header["columns"] = {path.name: path.stat().st_size for path in written}
  header["sha256"] = {path.name: digest(path) for path in written}
  header["utterances"] = header["columns"]["shard.bin"] // 4
  header["folder"] = _name(header["sha256"])
  columns = folder / header["folder"]
  if _changed(columns, header["sha256"]):
    shutil.rmtree(columns, ignore_errors=True)
    unfinished.rename(columns)
  else:
    shutil.rmtree(unfinished)
  found = Index(folder, header | facts)
  old = files.read_json(folder / HEADER, dict) if is_one(folder) else {}
  if old.get("sha256") == header["sha256"]:
    found.header["fingerprint"] = old["fingerprint"]
  else:
    ids, texts = found.strings("ids"), found.strings("texts")
    found.header["fingerprint"] = fingerprint(ids, found.seconds, texts)
  if old != json.loads(json.dumps(found.header)):
    files.write_json(folder / HEADER, found.header)
  for other in folder.glob(f"{COLUMNS}*"):
    if other != columns:
      shutil.rmtree(other)
  return found


def _name(digests: dict[str, str]) -> str:
  return f"{COLUMNS}-{hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:12]}"


def _changed(columns: pathlib.Path, digests: dict[str, str]) -> list[pathlib.Path]:
  """Columns that are not there, or whose content is another."""
  paths = {columns / name: wanted for name, wanted in digests.items()}
  return [path for path, wanted in paths.items() if not path.exists() or digest(path) != wanted]


def digest(path: pathlib.Path) -> str:
  """SHA-256 of a file, 64 hexadecimal digits."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _write_columns(columns: pathlib.Path, rows: Iterator[Row]) -> None:
  ends = dict.fromkeys(_STRINGS, 0)
  with contextlib.ExitStack() as stack:
    open_ = lambda name: stack.enter_context((columns / name).open("wb"))
    numbers = {name: open_(f"{name}.bin") for name in _NUMBERS}
    starts = {name: open_(f"{name}.starts") for name in _STRINGS}
    bytes_ = {name: open_(f"{name}.utf8") for name in _STRINGS}
    for file in starts.values():
      file.write(bytes(8))
    while part := list(itertools.islice(rows, _ROWS)):
      for name, dtype in _NUMBERS.items():
        numbers[name].write(np.array([getattr(row, name) for row in part], dtype).tobytes())
      for name, field in _STRINGS.items():
        written = [(getattr(row, field) or "").encode() for row in part]
        there = ends[name] + np.cumsum([len(x) for x in written], dtype=np.int64)
        ends[name] = int(there[-1])
        starts[name].write(there.astype("<i8").tobytes())
        bytes_[name].write(b"".join(written))
    for file in bytes_.values():
      file.write(b"\0")  # an empty file cannot be mapped


def _header(folder: pathlib.Path) -> dict:
  header = files.read_json(folder / HEADER, dict)
  if header.get("format") != FORMAT or header.get("version") != VERSION:
    raise UserError(f"{folder / HEADER} is no index of version {VERSION}: jaxkd shard")
  if lacking := {"columns", "fingerprint", "shards"} - header.keys():
    raise UserError(
      f"{folder / HEADER} lacks {', '.join(sorted(lacking))}: the same jaxkd shard writes it again"
    )
  return header


class Index:
  """An index that is opened; pickled as the name of its folder.

  Attributes:
    folder: where it lies.
    header: its facts.
    seconds: f64[utterances], and so on for start, shard, offset, bytes, crc and told.
  """

  def __init__(self, folder: str | os.PathLike, header: dict | None = None):
    """Maps the columns.

    Args:
      folder: of the index.
      header: of one that is being written; None reads it.

    Raises:
      UserError: none there, of a newer version, not complete, or with columns that are cut short.
    """
    self.folder = pathlib.Path(folder)
    self.header = _header(self.folder) if header is None else header
    self._columns = self.folder / self.header.get("folder", COLUMNS)
    for name, size in self.header["columns"].items():
      path = self._columns / name
      there = path.stat().st_size if path.exists() else 0
      if there != size:
        raise UserError(
          f"{path} has {there:,} bytes and {size:,} were written: the same jaxkd shard writes the "
          "index again"
        )
    self._strings = {}
    for name, dtype in _NUMBERS.items():
      setattr(self, name, self._map(f"{name}.bin", dtype))

  def _map(self, name: str, dtype: str) -> np.ndarray:
    path = self._columns / name
    try:
      return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
    except OSError as error:
      raise UserError(
        f"{path} is gone: the index was written again while it was read: start again"
      ) from error

  def damaged(self) -> list[str]:
    """What is wrong with the columns by their checksums; older indices have none."""
    changed = _changed(self._columns, self.header.get("sha256", {}))
    return [f"{path} has other bytes than were written" for path in changed]

  def __len__(self) -> int:
    return len(self.seconds)

  def __reduce__(self):
    return Index, (self.folder,)

  def string(self, name: str, row: int) -> str | None:
    """The id or the text of a row."""
    if name == "texts" and not self.told[row]:
      return None
    return self._decoded(name, self._starts(name)[row : row + 2])[0]

  def _starts(self, name: str) -> np.ndarray:
    return self._mapped(f"{name}.starts", "<i8")

  def _bytes(self, name: str):
    return self._mapped(f"{name}.utf8", "|u1")

  def _mapped(self, name: str, dtype: str) -> np.ndarray:
    if name not in self._strings:
      self._strings[name] = self._map(name, dtype)
    return self._strings[name]

  def some(self, name: str, rows: np.ndarray) -> list[str | None]:
    """The ids or the texts of rows, many at a time."""
    starts = self._starts(name)
    found = self._decoded(name, np.stack([starts[rows], starts[rows + 1]], -1).ravel())
    if name == "ids":
      return found
    told = self.told[rows].tolist()
    return [text if there else None for text, there in zip(found, told, strict=True)]

  def _decoded(self, name: str, bounds: np.ndarray) -> list[str]:
    """Strings that lie from every first to every second of i64[2 n] bytes."""
    blob = memoryview(self._bytes(name))
    starts, ends = bounds[::2].tolist(), bounds[1::2].tolist()
    try:
      return [str(blob[start:end], "utf-8") for start, end in zip(starts, ends, strict=True)]
    except UnicodeDecodeError as error:
      path = self._columns / f"{name}.utf8"
      raise UserError(f"{path} is damaged: jaxkd shard --verify={self.folder}") from error

  def strings(self, name: str) -> "Strings":
    """All ids or texts."""
    return Strings(self, name)


class Strings(Sequence):
  """Ids or texts of utterances, each made when it is asked for."""

  def __init__(
    self,
    index: Index,
    name: str,
    rows: np.ndarray | None = None,
    starts: np.ndarray | None = None,
  ):
    """Takes what they are of.

    Args:
      index: where they lie.
      name: "ids" or "texts".
      rows: i64[n] of the index; None for all.
      starts: f64[n], seconds at which parts of recordings begin, which their ids say; NaN for
        whole ones. None for no parts.
    """
    self._index, self._name, self._rows, self._starts = index, name, rows, starts

  def __len__(self) -> int:
    return len(self._index if self._rows is None else self._rows)

  def __getitem__(self, place):
    if isinstance(place, slice):
      return list(self.take(np.arange(len(self))[place]))
    if not -len(self) <= place < len(self):
      raise IndexError(place)
    place %= len(self)
    row = place if self._rows is None else self._rows[place]
    found = self._index.string(self._name, int(row))
    return found if self._starts is None else _named(found, self._starts[place])

  def __iter__(self) -> Iterator[str | None]:
    for first in range(0, len(self), _ROWS):
      places = np.arange(first, min(first + _ROWS, len(self)))
      found = self._index.some(self._name, places if self._rows is None else self._rows[places])
      if self._starts is not None:
        found = map(_named, found, self._starts[places].tolist())
      yield from found

  def __contains__(self, wanted) -> bool:
    if self._name == "texts" and wanted is None:
      told = self._index.told
      return not (told if self._rows is None else told[self._rows]).all()
    return any(string == wanted for string in self)

  def __eq__(self, other) -> bool:
    if not isinstance(other, Sequence) or isinstance(other, str) or len(self) != len(other):
      return False
    return all(a == b for a, b in zip(self, other, strict=True))

  __hash__ = None

  def take(self, places: np.ndarray) -> "Strings":
    """Those at some places."""
    rows = places if self._rows is None else self._rows[places]
    return Strings(
      self._index, self._name, rows, None if self._starts is None else self._starts[places]
    )


def _named(string: str | None, start: float) -> str | None:
  return string if start != start else f"{string}@{start:.2f}s"


def taken(strings: Sequence, places: np.ndarray) -> Sequence:
  """Those of a list, or of `Strings`, at some places."""
  if isinstance(strings, Strings):
    return strings.take(places)
  return [strings[i] for i in places.tolist()]


def fingerprint(ids: Sequence[str], seconds: np.ndarray, texts: Sequence[str | None]) -> str:
  """16 hexadecimal digits that are others where ids, durations or transcripts are.

  Where ids are absolute paths, the folder that they share does not count: data may be moved.
  """
  shared = _shared_folder(ids)
  digest, rows = hashlib.sha256(b"["), zip(ids, texts, strict=True)
  for first in range(0, len(ids), _ROWS):
    rounded = np.asarray(seconds[first : first + _ROWS]).round(3).tolist()
    part = [
      (_relative(name, shared), second, text)
      for second, (name, text) in zip(rounded, itertools.islice(rows, len(rounded)), strict=True)
    ]
    digest.update((", " * (first > 0) + json.dumps(part)[1:-1]).encode())
  digest.update(b"]")
  return digest.hexdigest()[:16]


def _shared_folder(ids: Iterable[str]) -> str | None:
  """The folder of absolute paths; None where one is none."""
  shared = None
  for name in ids:
    if not os.path.isabs(name):
      return None
    if shared is None:
      shared = os.path.commonpath([name])
    elif not name.startswith(f"{shared}/"):
      shared = os.path.commonpath([shared, name])
  return shared


def _relative(name: str, shared: str | None) -> str:
  if shared is None:
    return name
  return os.path.relpath(name, shared)
