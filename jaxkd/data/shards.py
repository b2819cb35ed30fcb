"""Shards of encoded recordings with one index, packed or tar files as they lie, are read."""

import collections
import hashlib
import logging
import os
import pathlib
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxkd.data import audio, encoded, index
from jaxkd.data.index import Index, Strings
from jaxkd.errors import UserError

log = logging.getLogger(__name__)
SHARDS, LOCK = "shards", ".lock"
ARRAY_RECORD, TAR = "array_record", "tar"
_OPEN_FILES = 128  # of shards, in each process
_MUCH = 300_000  # utterances; of fewer, the fingerprint is that of the same manifest


class Opened(NamedTuple):
  """What a Source is made of.

  Attributes:
    ids, durations, texts: of the utterances.
    skipped: (id, reason) of those that are left out.
    read: index → f32[S] at 16 kHz, or audio.BrokenAudio; can be pickled.
    fingerprint: where it is known; else "".
  """

  ids: Strings
  durations: np.ndarray
  texts: Strings
  skipped: list[tuple[str, str]]
  read: "Recordings"
  fingerprint: str


def is_teacher(folder: pathlib.Path) -> bool:
  """Whether a folder holds what a teacher said (`teacher.store`), which lies in shards, too."""
  return (folder / "store.json").exists()


def is_unfinished(folder: pathlib.Path) -> bool:
  """Whether a kill ended what writes shards there, or an index of tar files, before the index."""
  shards = folder / SHARDS
  began = (shards / LOCK).exists() or any(shards.glob("*.array_record"))
  return began and not index.is_one(folder)


def opened(folder: pathlib.Path, limits) -> Opened:
  """The utterances of an index within limits of their lengths (`sources.Limits`).

  Raises:
    UserError: damaged, not complete, or with shards that are cut short or gone.
  """
  there = Index(folder)
  _check_shards(there)
  skipped = [tuple(pair) for pair in there.header.get("left_out", ())]
  rows, starts, seconds, beyond = _within(there, limits)
  strings = lambda name: Strings(there, name, rows, starts if name == "ids" else None)
  return Opened(
    strings("ids"),
    seconds,
    strings("texts"),
    [*skipped, *beyond],
    Recordings(there, rows, starts, seconds),
    _fingerprint(there, rows, starts),
  )


def _fingerprint(there: Index, rows: np.ndarray | None, starts: np.ndarray | None) -> str:
  """The fingerprint of the whole, or of what is left of much; "" where rows are to tell it.

  Making one of 2.5 million rows takes ten seconds or more.
  """
  whole = there.header["fingerprint"]
  if rows is None or len(there) < _MUCH:
    return whole if rows is None else ""
  parts = (rows.tobytes(), b"" if starts is None else starts.tobytes())
  return hashlib.sha256(b"".join((whole.encode(), *parts))).hexdigest()[:16]


def _within(there: Index, limits):
  """(rows, starts, seconds, skipped) of what is heard; (None, None, all, []) where it is all."""
  seconds = there.seconds
  longer = seconds > limits.max_seconds
  out = (seconds < limits.min_seconds) | (longer & there.told)
  if not (longer | out).any():
    return None, None, seconds, []
  rows = np.flatnonzero(out)
  reasons = map(limits.reason, seconds[rows].tolist())
  skipped = list(zip(there.some("ids", rows), reasons, strict=True))
  counts = np.where(out, 0, 1)
  cut = {i: limits.pieces(float(seconds[i]), None) for i in np.flatnonzero(longer & ~out).tolist()}
  for row, pieces in cut.items():
    counts[row] = len(pieces)
  rows = np.repeat(np.arange(len(seconds)), counts)
  starts, lengths = np.full(len(rows), np.nan), seconds[rows]
  for row, pieces in cut.items():
    first = int(np.searchsorted(rows, row))
    starts[first : first + len(pieces)] = [start for start, _ in pieces]
    lengths[first : first + len(pieces)] = [length for _, length in pieces]
  if cut:
    told = "%s: %d of %d recordings are longer than config.data.max_seconds, %g s: they are heard "
    told += "in pieces; jaxkd shard --longest=%g cuts at silences"
    log.info(told, there.folder, len(cut), len(there), limits.max_seconds, limits.max_seconds)
  return rows, starts if cut else None, lengths, skipped


def _check_shards(there: Index) -> None:
  """One look at each shard, and none at their utterances."""
  wrong = [reason for shard in there.header["shards"] if (reason := fault(there.folder, shard))]
  if wrong:
    more = f" (and {len(wrong) - 1} others)" if len(wrong) > 1 else ""
    raise UserError(
      f"{wrong[0]}{more}: the jaxkd shard that wrote it writes it again, and jaxkd shard "
      f"--verify={there.folder} --drop leaves its utterances out"
    )


def fault(folder: pathlib.Path, shard: dict) -> str:
  """What is seen to be wrong with a shard without reading it; "" for nothing."""
  path = folder / shard["path"]
  try:
    size = os.stat(path).st_size
  except OSError as error:
    return f"{path}: {error.strerror}"
  if size < shard["bytes"]:
    return f"{path} is cut short: {size:,} of {shard['bytes']:,} bytes"
  if size > shard["bytes"]:
    return f"{path} is not what was indexed: {size:,} bytes, not {shard['bytes']:,}"
  return ""


class Files:
  """Reads recordings out of shards; a process keeps some of their files open.

  All access to shards is here: `_open` and what it returns, offset and length → bytes.
  """

  def __init__(self, folder: pathlib.Path, kind: str, paths: list[str]):
    """Takes the folder of the index, what kind of files its shards are, and their paths."""
    self.folder, self.kind, self.paths = folder, kind, paths
    self._readers: collections.OrderedDict[int, Callable] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __reduce__(self):
    return Files, (self.folder, self.kind, self.paths)  # each process opens its own

  def read(self, shard: int, offset: int, size: int) -> bytes:
    """A recording; UserError where the file is not readable."""
    with self._lock:
      reader = self._readers.pop(shard, None) or self._open(shard)
      self._readers[shard] = reader
      if len(self._readers) > _OPEN_FILES:
        self._readers.popitem(last=False)  # a thread that reads from it holds it still
    try:
      return reader(offset, size)
    except (RuntimeError, ValueError, IndexError, OSError) as error:
      raise _damaged(self.folder, self.paths[shard], error) from error

  def _open(self, shard: int) -> Callable[[int, int], bytes]:
    path = self.folder / self.paths[shard]
    try:
      return _TarFile(path) if self.kind == TAR else _array_record(path)
    except (RuntimeError, ValueError, OSError) as error:
      raise _damaged(self.folder, self.paths[shard], error) from error


def _damaged(folder: pathlib.Path, path: str, error: Exception) -> UserError:
  """About a shard of the index in a folder; tar files lie elsewhere."""
  text = " ".join(str(error).split())
  return UserError(f"{folder / path} cannot be read ({text}): jaxkd shard --verify={folder}")


def _array_record(path: pathlib.Path) -> Callable[[int, int], bytes]:
  from array_record.python.array_record_module import ArrayRecordReader

  reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0")
  return lambda number, _: reader.read([number])[0]


class _TarFile:
  """Bytes of an uncompressed file by their place; several threads may read."""

  def __init__(self, path: pathlib.Path):
    self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

  def __call__(self, offset: int, size: int) -> bytes:
    return os.pread(self._file, size, offset)

  def __del__(self, close=os.close):  # the names of a module may be gone when Python ends
    if hasattr(self, "_file"):
      close(self._file)


class Recordings:
  """Utterance → samples."""

  def __init__(self, there: Index, rows, starts, seconds):
    """Takes an index, and of utterances rows, starts (NaN for whole) and seconds; None for all."""
    self._index, self._rows, self._starts, self._seconds = there, rows, starts, seconds
    paths = [shard["path"] for shard in there.header["shards"]]
    self._files = Files(there.folder, there.header["kind"], paths)

  def __getstate__(self) -> dict:
    """What is mapped is mapped again, and not copied to every process."""
    whole = self._rows is None
    return self.__dict__ | ({"_seconds": None} if whole else {})

  def __setstate__(self, state: dict) -> None:
    self.__dict__ |= state
    if self._rows is None:
      self._seconds = self._index.seconds

  def _row(self, utterance: int) -> int:
    return utterance if self._rows is None else int(self._rows[utterance])

  def record(self, utterance: int) -> bytes:
    """The recording that an utterance is in.

    Raises:
      UserError: it is not the one that was indexed, or its shard cannot be read.
    """
    there = self._index
    row = self._row(utterance)
    shard, size = int(there.shard[row]), int(there.bytes[row])
    found = self._files.read(shard, int(there.offset[row]), size)
    if len(found) != size or zlib.crc32(found) != there.crc[row]:
      path = there.folder / self._files.paths[shard]
      raise UserError(
        f"{path}: {there.string('ids', row)} is not the recording that {there.folder} was made "
        f"of: its shards were replaced or damaged: jaxkd shard --verify={there.folder} says which"
      )
    return found

  def _part(self, utterance: int) -> tuple[bytes, float, float]:
    """(recording, start, seconds) of an utterance."""
    start = float(self._index.start[self._row(utterance)])
    if self._starts is not None:
      start += float(np.nan_to_num(self._starts[utterance]))
    return self.record(utterance), start, float(self._seconds[utterance])

  def __call__(self, utterance: int) -> np.ndarray:
    """f32[S], 16 kHz; audio.BrokenAudio or UserError where it cannot be."""
    return audio.read(*self._part(utterance))

  def stamp(self, utterance: int) -> list:
    """As `Source.stamp`."""
    row = self._row(utterance)
    return [int(self._index.crc[row]), int(self._index.bytes[row])]

  def encoded(self, utterance: int) -> bytes:
    """The part of a recording that an utterance is; raises as a call does."""
    return encoded.part(*self._part(utterance))

  def pieces(self, utterance: int, longest: float) -> Iterator[tuple[float, float, bytes]]:
    """(start, seconds, bytes) of its parts, cut at silences."""
    return encoded.pieces(*self._part(utterance), longest)
