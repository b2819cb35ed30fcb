"""Shards are written: of any source packed, or an index of tar files as they lie."""

import collections
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import NamedTuple

import numpy as np

from jaxkd import console, files
from jaxkd.data import audio, index, listings, manifest, tars
from jaxkd.data.audio import BrokenAudio
from jaxkd.data.index import Index, Row
from jaxkd.data.shards import ARRAY_RECORD, LOCK, SHARDS, TAR, fault, is_teacher
from jaxkd.errors import UserError

log = logging.getLogger(__name__)
_SHARD_SECONDS = 36_000.0  # of audio in a shard: about 1 GB of FLAC
# Recordings that are read ahead of the writer, and seconds of them, which memory holds encoded.
_AHEAD, _AHEAD_SECONDS = 64, 14_400.0
_RULES = 2  # by which tar files are listed; what others have listed is other data


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
    UserError: the folder holds shards of other data, or has a name that array_record cannot write.
  """
  if (name := manifest.printable(str(folder))) != str(folder):
    raise UserError(f"--out={name}: its name must be UTF-8, for array_record: give another --out")
  ranges = list(_ranges(source, shard_seconds, longest))
  names = [name for _, _, name in ranges]
  with (
    _alone(folder, names),
    console.progress(f"packing {source.name}", len(source)) as update,
    futures.ThreadPoolExecutor(audio.cores(), "pack") as pool,
  ):
    for first, end, name in ranges:
      if listed(folder, name) is None:
        _write_shard(folder / SHARDS / name, source, range(first, end), longest, pool, update)
      else:
        update(end - first)
    return _write_index(folder, names, ARRAY_RECORD, source.name, source.skipped)


def _ranges(source, shard_seconds: float, longest: float) -> Iterator[tuple[int, int, str]]:
  """(first, end, name) of each shard; the name is another where its utterances or files are."""
  totals = np.cumsum(source.durations)
  first = number = 0
  while first < len(source):
    limit = (totals[first - 1] if first else 0.0) + shard_seconds
    end = max(first + 1, int(np.searchsorted(totals, limit, side="right")))
    digest = hashlib.sha256(f"{longest:g}".encode())
    places = np.arange(first, end)
    ids, texts = index.taken(source.ids, places), index.taken(source.texts, places)
    digest.update(json.dumps([*zip(ids, source.durations[first:end].tolist(), texts)]).encode())  # noqa: B905
    digest.update(json.dumps([source.stamp(place) for place in range(first, end)]).encode())
    yield first, end, f"{number:06}-{digest.hexdigest()[:12]}"
    first, number = end, number + 1


@contextlib.contextmanager
def _alone(folder: pathlib.Path, names: list[str]) -> Iterator[None]:
  """Holds the lock of a folder that these shards may be written in."""
  try:
    _check_same(folder, set(names))  # before anything is made there
  except OSError as error:
    raise _unwritable(folder, error) from error
  with _locked(folder):
    _check_same(folder, set(names))  # what another process has written since
    yield


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """While one process writes a folder, others wait."""
  with contextlib.ExitStack() as stack:
    try:
      (folder / SHARDS).mkdir(parents=True, exist_ok=True)
      waits = f"waiting for another process that writes {folder}"
      stack.enter_context(files.locked(folder / SHARDS / LOCK, waits=waits))
    except OSError as error:
      raise _unwritable(folder, error) from error
    yield


def _unwritable(folder: pathlib.Path, error: OSError) -> UserError:
  return UserError(f"--out={folder} cannot be written: {error.strerror}")


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
  if is_teacher(folder):
    raise UserError(f"{folder} holds a stored teacher: give another --out")
  if not there and (folder / index.HEADER).exists():
    raise UserError(f"{folder / index.HEADER} is of something else: give another --out")


def listed(folder: pathlib.Path, name: str) -> dict | None:
  """The facts of a shard that is whole, the first line of its list; None where it is not."""
  path = folder / SHARDS / f"{name}.jsonl"
  if not path.exists():
    return None
  with path.open(encoding="utf-8") as lines:
    facts = json.loads(next(lines))
  return None if fault(folder, facts) else facts


def _write_shard(path: pathlib.Path, source, places: range, longest: float, pool, update) -> None:
  """The records, then their list: a file without a list was cut off by a kill."""
  from array_record.python.array_record_module import ArrayRecordWriter

  shard = path.with_suffix(".array_record")
  path.with_suffix(".jsonl").unlink(missing_ok=True)
  writer = ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
  rows, left_out = [], []
  seconds = lambda place: float(source.durations[place])
  for place, found in _in_order(pool, lambda i: _pieces(source, i, longest), places, seconds):
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
  facts |= {"sha256": index.digest(shard), "list": path.name, "left_out": left_out}
  files.write_jsonl(path.with_suffix(".jsonl"), [facts, *rows])


def _in_order(pool, work: Callable, given, seconds: Callable = lambda _: 0.0) -> Iterator[tuple]:
  """(what was given, what was made of it), made some ahead by the threads of a pool."""
  waiting, ahead = collections.deque(), 0.0
  for one in given:
    waiting.append((one, pool.submit(work, one)))
    ahead += seconds(one)
    while waiting and (len(waiting) >= _AHEAD or ahead > _AHEAD_SECONDS):
      first, future = waiting.popleft()
      yield first, future.result()
      ahead -= seconds(first)
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
  Index(folder)  # raises before anything is made there
  with _locked(folder) if drop else contextlib.nullcontext():
    return _verified(folder, drop)


def _verified(folder: pathlib.Path, drop: bool) -> tuple[dict, list[str]]:
  there = Index(folder)
  problems, whole = there.damaged(), []
  if problems and drop:
    raise UserError(f"{problems[0]}: the same jaxkd shard writes the index again")
  for number, shard in enumerate(there.header["shards"]):
    reason = fault(folder, shard)
    if not reason and index.digest(folder / shard["path"]) != shard["sha256"]:
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


def is_tars(given: pathlib.Path) -> bool:
  """Whether it is a tar file, or a folder that holds some and no audio of its own.

  Raises:
    UserError: they are all compressed.
  """
  if index.is_one(given):
    return False
  there = tars.found(given)
  unread = {} if there else tars.compressed(given)
  names = manifest.walked(given) if there or unread else ()
  if any(os.path.splitext(name)[1].lower() in audio.EXTENSIONS for name in names):
    return False
  if unread:
    raise UserError(f"{given}: no plain tar file: {_compressed(unread)}")
  return bool(there)


def _compressed(unread: dict[pathlib.Path, str]) -> str:
  """A line about compressed tar files."""
  first, cure = next(iter(unread.items()))
  return (
    f"{len(unread)} compressed tar files are not read, {first.name} the first: {cure} makes plain "
    "ones, which are read by offset"
  )


def write_of_tars(given: pathlib.Path, folder: pathlib.Path, *, drop: bool) -> dict:
  """An index of tar files as they lie; those that an earlier call has read are not read again.

  Args:
    given: a tar file, or a folder of them.
    folder: of the index.
    drop: tar files that are cut short are left out, and Lhotse's whose cuts are lost.

  Returns:
    The header of the index.

  Raises:
    UserError: a tar file that is cut short, none or without its cuts, or no utterance at all.
  """
  there, unread = tars.found(given), tars.compressed(given)
  told = listings.manifests(given, there)
  if unread:
    log.warning("%s: %s", given, _compressed(unread))
  if others := listings.unheard(given, there, told):
    line = "%s: not read: %d manifests, %s the first: one is for the tar files of its own folder, "
    log.warning(line + "or where that has none for those below", given, len(others), others[0])
  names = [_tar_name(number, path, told.get(path)) for number, path in enumerate(there)]
  read = lambda pair: _read_tar(*pair, folder, told.get(pair[1]), drop)
  kept, left_out = [], listings.without_tar(told) if given.is_dir() else []
  left_out += [(manifest.printable(str(p)), f"compressed: {cure}") for p, cure in unread.items()]
  with (
    _alone(folder, names),
    console.progress(f"reading {given}", len(there)) as update,
    futures.ThreadPoolExecutor(audio.cores(), "tar") as pool,
  ):
    for (name, path), wrong in _in_order(pool, read, zip(names, there, strict=True)):
      kept += [] if wrong else [name]
      left_out += [(manifest.printable(str(path)), wrong)] if wrong else []
      update()
    return _write_index(folder, kept, TAR, str(given), left_out)


def _tar_name(number: int, path: pathlib.Path, told: listings.Told | None) -> str:
  """Another one where the file, or what is said about its recordings, is another."""
  beside = [p for p in (path, listings.cuts_beside(path)) if p is not None]
  if lost := [p for p in beside if not p.is_file()]:
    raise UserError(f"{lost[0]} is no file, or a link that leads nowhere: remove it")
  facts = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in beside]
  said = (facts, told and told.digest, _RULES)
  return f"{number:06}-{hashlib.sha256(repr(said).encode()).hexdigest()[:12]}"


def _read_tar(
  name: str, path: pathlib.Path, folder: pathlib.Path, told: listings.Told | None, drop: bool
) -> str:
  """Lists a tar file where that was not done before; why it is left out, "" where it is not."""
  if listed(folder, name) is not None:
    return ""
  why = "its cuts are not there or cannot be read"
  try:
    said = listings.of_tar(told, path)
    why = "a tar file that is cut short, compressed or none"
    found = tars.contents(path, said)
  except UserError as error:
    if not drop:
      raise
    log.warning("%s", error)
    return why
  list_ = folder / SHARDS / f"{name}.jsonl"
  facts = {"path": os.path.abspath(path), "bytes": path.stat().st_size, "sha256": found.sha256}
  facts |= {"list": list_.name, "left_out": found.left_out}
  lines = [[part.id, part.seconds, part.text, part.start, *where] for part, *where in found.rows]
  files.write_jsonl(list_, [facts, *lines])
  return ""
