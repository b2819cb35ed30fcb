"""Shards of encoded recordings with one index: any source packed, or tar files as they lie."""

import collections
import hashlib
import json
import logging
import os
import pathlib
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import NamedTuple

import numpy as np

from jaxkd import console, files
from jaxkd.data import audio, encoded, index, manifest, tars
from jaxkd.data.audio import BrokenAudio
from jaxkd.data.index import Index, Row, Strings
from jaxkd.errors import UserError

log = logging.getLogger(__name__)
SHARDS = "shards"
ARRAY_RECORD, TAR = "array_record", "tar"
_SHARD_SECONDS = 36_000.0  # of audio in a shard: about 1 GB of FLAC
_OPEN_FILES = 128  # of shards, in each process
_MUCH = 300_000  # utterances; of fewer, the fingerprint is that of the same manifest
_AHEAD = 64  # recordings that are read ahead of the writer


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


def is_unfinished(folder: pathlib.Path) -> bool:
  """Whether a kill ended what writes shards there before their index."""
  return not index.is_one(folder) and any((folder / SHARDS).glob("*.array_record"))


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
  """Of the whole, or by what is left of much; "" where it is to be made of the rows themselves.

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
  wrong = [reason for shard in there.header["shards"] if (reason := _wrong(there.folder, shard))]
  if wrong:
    more = f" (and {len(wrong) - 1} others)" if len(wrong) > 1 else ""
    raise UserError(
      f"{wrong[0]}{more}: the jaxkd shard that wrote it writes it again, and jaxkd shard "
      f"--verify={there.folder} --drop leaves its utterances out"
    )


def _wrong(folder: pathlib.Path, shard: dict) -> str:
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
      raise _damaged(self.folder / self.paths[shard], error) from error

  def _open(self, shard: int) -> Callable[[int, int], bytes]:
    path = self.folder / self.paths[shard]
    try:
      return _TarFile(path) if self.kind == TAR else _array_record(path)
    except (RuntimeError, ValueError, OSError) as error:
      raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
  text = " ".join(str(error).split())
  return UserError(f"{path} cannot be read ({text}): jaxkd shard --verify={path.parents[1]}")


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

  def __del__(self):
    if hasattr(self, "_file"):
      os.close(self._file)


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

  def encoded(self, utterance: int) -> bytes:
    """The part of a recording that an utterance is; raises as a call does."""
    return encoded.part(*self._part(utterance))

  def pieces(self, utterance: int, longest: float) -> Iterator[tuple[float, float, bytes]]:
    """(start, seconds, bytes) of its parts, cut at silences."""
    return encoded.pieces(*self._part(utterance), longest)


class _Piece(NamedTuple):
  """What goes into a shard as one record."""

  id: str
  seconds: float
  text: str | None
  recording: bytes


def write(
  source, folder: pathlib.Path, *, longest: float, shard_seconds: float = _SHARD_SECONDS
) -> dict:
  """Packs the utterances of a source; what a kill left whole is not written again.

  Args:
    source: of the utterances (`sources.Source`).
    folder: of the shards and their index.
    longest: seconds; recordings without a transcript that are longer are cut at silences.
    shard_seconds: of audio in a shard.

  Returns:
    The header of the index.

  Raises:
    UserError: the folder holds shards of other data.
  """
  ranges = list(_ranges(source, shard_seconds, longest))
  _check_same(folder, {name for _, _, name in ranges})
  (folder / SHARDS).mkdir(parents=True, exist_ok=True)
  with (
    console.progress(f"packing {source.name}", len(source)) as update,
    futures.ThreadPoolExecutor(audio.cores(), "pack") as pool,
  ):
    for first, end, name in ranges:
      if listed(folder, name) is None:
        _write_shard(folder / SHARDS / name, source, range(first, end), longest, pool, update)
      else:
        update(end - first)
  names = [name for _, _, name in ranges]
  return _write_index(folder, names, ARRAY_RECORD, source.name, source.skipped)


def _ranges(source, shard_seconds: float, longest: float) -> Iterator[tuple[int, int, str]]:
  """(first, end, name) of each shard; the name is another where its utterances are."""
  totals = np.cumsum(source.durations)
  first = number = 0
  while first < len(source):
    limit = (totals[first - 1] if first else 0.0) + shard_seconds
    end = max(first + 1, int(np.searchsorted(totals, limit, side="right")))
    digest = hashlib.sha256(f"{longest:g}".encode())
    places = np.arange(first, end)
    ids, texts = index.taken(source.ids, places), index.taken(source.texts, places)
    digest.update(json.dumps([*zip(ids, source.durations[first:end].tolist(), texts)]).encode())  # noqa: B905
    yield first, end, f"{number:06}-{digest.hexdigest()[:12]}"
    first, number = end, number + 1


def _check_same(folder: pathlib.Path, names: set[str]) -> None:
  """A folder of other data, or of more than is wanted now, is left as it is."""
  if folder.exists() and not folder.is_dir():
    raise UserError(f"--out={folder} is a file: it must be a folder")
  there = {path.stem for path in (folder / SHARDS).glob("*.jsonl")}
  # Under a changed source those before the change have the same names; the rest is of other data.
  if other := sorted(there - names):
    raise UserError(
      f"{folder} holds shards of other data or settings ({len(other)} of {len(there)}, the first "
      f"{other[0]}): give another --out, or remove it; new recordings can be a folder of their own"
    )
  if not there and index.is_one(folder):
    raise UserError(f"{folder} is an index of other shards: give another --out")


def listed(folder: pathlib.Path, name: str) -> dict | None:
  """The facts of a shard that is whole, the first line of its list; None where it is not."""
  path = folder / SHARDS / f"{name}.jsonl"
  if not path.exists():
    return None
  with path.open(encoding="utf-8") as lines:
    facts = json.loads(next(lines))
  return None if _wrong(folder, facts) else facts


def _write_shard(path: pathlib.Path, source, places: range, longest: float, pool, update) -> None:
  """The records, then their list: a file without a list was cut off by a kill."""
  from array_record.python.array_record_module import ArrayRecordWriter

  shard = path.with_suffix(".array_record")
  path.with_suffix(".jsonl").unlink(missing_ok=True)
  writer = ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
  rows, left_out = [], []
  for place, found in _in_order(pool, lambda i: _pieces(source, i, longest), places):
    for piece in found:
      if isinstance(piece, str):
        left_out.append([source.ids[place], piece])
        continue
      writer.write(piece.recording)
      crc = zlib.crc32(piece.recording)
      size = len(piece.recording)
      rows.append([piece.id, piece.seconds, piece.text, 0.0, len(rows), size, crc])
    update()
  writer.close()
  facts = {"path": f"{SHARDS}/{shard.name}", "bytes": shard.stat().st_size}
  facts |= {"sha256": _digest(shard), "list": path.name, "left_out": left_out}
  files.write_jsonl(path.with_suffix(".jsonl"), [facts, *rows])


def _in_order(pool, work: Callable, given) -> Iterator[tuple]:
  """(what was given, what was made of it), made some ahead by the threads of a pool."""
  waiting = collections.deque()
  for one in given:
    waiting.append((one, pool.submit(work, one)))
    if len(waiting) >= _AHEAD:
      first, future = waiting.popleft()
      yield first, future.result()
  for first, future in waiting:
    yield first, future.result()


def _pieces(source, place: int, longest: float) -> list[_Piece | str]:
  """The records of an utterance; a reason in the place of what is broken."""
  name, seconds, text = source.ids[place], float(source.durations[place]), source.texts[place]
  found = []
  try:
    if text is not None or seconds <= longest:
      return [_Piece(name, seconds, text, source.encoded(place))]
    for start, length, recording in source.pieces(place, longest):
      found.append(_Piece(f"{name}@{start:.2f}s", length, None, recording))
  except BrokenAudio as error:
    found.append(str(error))
  return found


def _write_index(folder: pathlib.Path, names: list[str], kind: str, source: str, skipped) -> dict:
  """The index of listed shards; returns its header."""
  found = [listed(folder, name) for name in names]
  left_out = [list(pair) for pair in skipped]
  left_out += [pair for shard in found for pair in shard.pop("left_out")]
  facts = {"kind": kind, "source": source, "left_out": left_out, "shards": found}

  def rows() -> Iterator[list]:
    for number, name in enumerate(names):
      for row in files.read_jsonl(folder / SHARDS / f"{name}.jsonl")[1:]:
        yield [number, *row]

  unique = [row[1] for row in rows()]
  if kind == TAR:  # two of which may have members of one name
    unique = manifest.numbered(unique)
  if not unique:
    first = f"; the first: {': '.join(left_out[0])}" if left_out else ""
    raise UserError(f"{source}: no usable utterance in it{first}")
  made = (
    Row(name, seconds, text, start, number, *where)
    for name, (number, _, seconds, text, start, *where) in zip(unique, rows(), strict=True)
  )
  return index.write(folder, made, facts).header


def totals(folder: pathlib.Path, header: dict) -> dict:
  """What a command prints of an index."""
  there = Index(folder)
  return {
    "utterances": len(there),
    "hours": round(float(there.seconds.sum()) / 3600, 4),
    "transcribed": int(there.told.sum()),
    "shards": len(header["shards"]),
    "bytes": sum(shard["bytes"] for shard in header["shards"]),
    "left_out": len(header["left_out"]),
    "fingerprint": header["fingerprint"],
  }


def verify(folder: pathlib.Path, drop: bool = False) -> tuple[dict, list[str]]:
  """Totals of an index, and what is wrong with its shards by their checksums.

  Args:
    folder: of the index.
    drop: the index is written again without the utterances of shards that are damaged.
  """
  there = Index(folder)
  problems, whole = [], []
  for number, shard in enumerate(there.header["shards"]):
    reason = _wrong(folder, shard)
    if not reason and _digest(folder / shard["path"]) != shard["sha256"]:
      reason = f"{folder / shard['path']} has other bytes than were indexed"
    if reason:
      problems.append(reason)
    else:
      whole.append(number)
  if problems and drop:
    for number in set(range(len(there.header["shards"]))) - set(whole):
      # The next `write` packs it again.
      (folder / SHARDS / there.header["shards"][number]["list"]).unlink(missing_ok=True)
    there = _without(there, whole, problems)
  return totals(folder, there.header), problems


def _without(there: Index, whole: list[int], problems: list[str]) -> Index:
  """The index of some shards alone."""
  if not whole:
    raise UserError(f"{there.folder}: every shard is damaged; the first: {problems[0]}")
  kept = np.flatnonzero(np.isin(there.shard, whole))
  number = {old: new for new, old in enumerate(whole)}
  ids, texts = there.strings("ids").take(kept), there.strings("texts").take(kept)
  facts = {name: there.header[name] for name in ("kind", "source")}
  facts["shards"] = [there.header["shards"][old] for old in whole]
  lost = set(range(len(there))) - set(kept.tolist())
  left_out = [[there.string("ids", row), "its shard is damaged"] for row in sorted(lost)]
  facts["left_out"] = there.header["left_out"] + left_out
  numbers = zip(
    there.seconds[kept].tolist(),
    there.start[kept].tolist(),
    there.shard[kept].tolist(),
    there.offset[kept].tolist(),
    there.bytes[kept].tolist(),
    there.crc[kept].tolist(),
    strict=True,
  )
  rows = (
    Row(unique, seconds, text, start, number[shard], *rest)
    for unique, text, (seconds, start, shard, *rest) in zip(ids, texts, numbers, strict=True)
  )
  return index.write(there.folder, rows, facts)


def _digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def is_tars(given: pathlib.Path) -> bool:
  """Whether it is a tar file, or a folder that holds some and no audio of its own."""
  if index.is_one(given) or not tars.found(given):
    return False
  return given.is_file() or not any(
    path.suffix.lower() in audio.EXTENSIONS for path in given.rglob("*")
  )


def write_of_tars(given: pathlib.Path, folder: pathlib.Path, *, drop: bool) -> dict:
  """An index of tar files as they lie; those that an earlier call has read are not read again.

  Args:
    given: a tar file, or a folder of them.
    folder: of the index.
    drop: tar files that are cut short are left out.

  Returns:
    The header of the index.

  Raises:
    UserError: a tar file that is cut short or none, or no utterance at all.
  """
  there, told = tars.found(given), tars.manifests(given)
  said = hashlib.sha256(json.dumps(told).encode()).hexdigest()
  names = [_tar_name(number, path, said) for number, path in enumerate(there)]
  _check_same(folder, set(names))
  (folder / SHARDS).mkdir(parents=True, exist_ok=True)
  read = lambda pair: _read_tar(*pair, folder, told, drop)
  kept = []
  with (
    console.progress(f"reading {given}", len(there)) as update,
    futures.ThreadPoolExecutor(audio.cores(), "tar") as pool,
  ):
    for (name, _), whole in _in_order(pool, read, zip(names, there, strict=True)):
      kept += [name] * whole
      update()
  return _write_index(folder, kept, TAR, str(given), [])


def _tar_name(number: int, path: pathlib.Path, said: str) -> str:
  """Another one where the file, or what is said about its recordings, is another."""
  beside = [p for p in (path, tars.cuts_beside(path)) if p is not None]
  facts = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in beside]
  return f"{number:06}-{hashlib.sha256(repr((facts, said)).encode()).hexdigest()[:12]}"


def _read_tar(name: str, path: pathlib.Path, folder: pathlib.Path, told: dict, drop: bool) -> bool:
  """Lists a tar file where that was not done before; whether it is whole."""
  if listed(folder, name) is not None:
    return True
  try:
    found = tars.contents(path, tars.parts_of(told, path))
  except UserError as error:
    if not drop:
      raise
    log.warning("%s", error)
    return False
  list_ = folder / SHARDS / f"{name}.jsonl"
  facts = {"path": os.path.abspath(path), "bytes": path.stat().st_size, "sha256": found.sha256}
  facts |= {"list": list_.name, "left_out": found.left_out}
  lines = [[part.id, part.seconds, part.text, part.start, *where] for part, *where in found.rows]
  files.write_jsonl(list_, [facts, *lines])
  return True
