"""Stored teachers: what a CTC model says of every frame of some audio, kept in a folder.

Any toolkit can write one: this file needs NumPy and array_record alone, and works where it is
copied to. docs/stored-teachers.md has the layout of the folder and of its records.
"""

import hashlib
import json
import logging
import operator
import os
import pathlib
import struct
import threading
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

log = logging.getLogger(__name__)
FORMAT, VERSION = "jaxkd-store", 1
HEADER, LABELS, SHARDS = "store.json", "labels.json", "shards"
_OTHERS = ("config.json", "results.json", "export.json", "index.json")  # runs, models, shards
# Frames whose blank is more probable than this at the temperature of training keep two numbers. At
# temperature 1 it would not do: 1e-3 that 28 classes share is 5 % at temperature 2.
_SURE = 0.99
# Beside the blank no class is worth its bytes below this probability.
_LEAST = 1e-4
WHOLE_CLASSES, TOP = 100, 8
# Below any posterior that matters, and finite, so that it can be multiplied by 0.
_LOWEST = -1e4
_SHARD_SAMPLES = 3600 * 16_000
_COUNTS = struct.Struct("<II")
_OPEN_FILES = 128  # opening one again takes a fraction of a millisecond


class StoreError(ValueError):
  """A folder that cannot be used as it is; the message is one line."""


class Settings(NamedTuple):
  """How frames are kept.

  Attributes:
    classes: V, the blank included.
    blank_id: its class.
    temperature: of the training that they are for: the sum over classes that are not kept is kept
      at this temperature, too, since it does not follow from that at 1.
    top: most classes of a frame that are kept beside the blank, of those above 1e-4; 0 for all of
      them.
    dtype: of log probabilities, "float16" or "float32". All of them in float32 are exact.
  """

  classes: int
  blank_id: int
  temperature: float = 2.0
  top: int = 0
  dtype: str = "float16"

  @property
  def exact(self) -> bool:
    """Whether nothing is rounded or left out."""
    return self.top == 0 and self.dtype == "float32"

  @property
  def slots(self) -> int:
    """S: log probabilities of a frame; that of the blank is in `blank_slot`."""
    return self.top + 1 if self.top else self.classes

  @property
  def blank_slot(self) -> int:
    return 0 if self.top else self.blank_id


def top_of(classes: int) -> int:
  """`Settings.top` unless it is said: all of up to WHOLE_CLASSES, TOP of more."""
  return TOP if classes > WHOLE_CLASSES else 0


class Frames(NamedTuple):
  """What a teacher says of an utterance.

  Attributes:
    samples: of the audio at 16 kHz.
    log_probs: f32[T, S]; -inf in slots that were not kept.
    ids: i32[T, S], their classes, the blank first; None where slot i is class i.
    tail: f32[T, 2], log of Σ p and of Σ p^(1 / temperature) over all classes that were not kept;
      -inf where all were.
  """

  samples: int
  log_probs: np.ndarray
  ids: np.ndarray | None
  tail: np.ndarray


def encode(log_probs: np.ndarray, samples: int, settings: Settings) -> bytes:
  """A record.

  Args:
    log_probs: float[T, V], normalised.
    samples: of the audio at 16 kHz.
    settings: how they are kept.

  Raises:
    StoreError: other classes, numbers that are no log probabilities, or no number of samples.
  """
  samples = _whole("samples", samples, 1 << 32)
  log_probs = np.asarray(log_probs, np.float32)
  if log_probs.ndim != 2 or log_probs.shape[1] != settings.classes:
    raise StoreError(f"log_probs are {log_probs.shape}: they must be [T, {settings.classes}]")
  log_probs = np.maximum(log_probs, _LOWEST)
  total = np.exp(log_probs, dtype=np.float64).sum(-1)
  if not np.allclose(total, 1, atol=1e-2):  # NaN is not close to 1 either
    raise StoreError("log_probs are not normalised: each frame's probabilities must add up to 1")
  sure = np.zeros(len(log_probs), bool)
  if not settings.exact:
    soft = np.exp(log_probs / settings.temperature, dtype=np.float64)
    sure = soft[:, settings.blank_id] > _SURE * soft.sum(-1)
  known = np.zeros(log_probs.shape, bool)
  known[:, settings.blank_id] = True
  unsure, number = log_probs[~sure], _number(settings)
  parts = [_COUNTS.pack(samples, len(log_probs)), np.packbits(sure).tobytes()]
  if settings.top:
    ids = _best(unsure, settings)
    kept = np.take_along_axis(unsure, ids, 1) > np.log(_LEAST)
    rows = np.broadcast_to(np.flatnonzero(~sure)[:, None], ids.shape)[kept]
    ids = ids[kept]
    known[rows, ids] = True
    parts += [kept.sum(-1).astype(np.uint8).tobytes(), ids.astype(_id_type(settings)).tobytes()]
    values = np.append(unsure[:, settings.blank_id], log_probs[rows, ids])
    parts.append(values.astype(number).tobytes())
  else:
    known[~sure] = True
    parts.append(unsure.astype(number).tobytes())
  tails = _tails(log_probs, ~known, settings.temperature)
  parts.append(tails[slice(None) if settings.top else sure].astype(number).tobytes())
  return b"".join(parts)


def _best(log_probs: np.ndarray, settings: Settings) -> np.ndarray:
  """i64[T, K], the most probable classes but for the blank."""
  others = log_probs.copy()
  others[:, settings.blank_id] = -np.inf
  return np.argpartition(-others, settings.top - 1, axis=-1)[:, : settings.top]


def _tails(log_probs: np.ndarray, rest: np.ndarray, temperature: float) -> np.ndarray:
  """f32[T, 2] over the classes of bool[T, V] `rest`."""
  sums = [
    np.where(rest, np.exp(log_probs / t, dtype=np.float64), 0).sum(-1) for t in (1, temperature)
  ]
  with np.errstate(divide="ignore"):
    found = np.log(np.stack(sums, -1))
  return np.where(rest.any(-1, keepdims=True), np.maximum(found, _LOWEST), -np.inf)


def _number(settings: Settings) -> np.dtype:
  return np.dtype("<f2" if settings.dtype == "float16" else "<f4")


def _id_type(settings: Settings) -> np.dtype:
  sizes = {1 << 8: "<u1", 1 << 16: "<u2", 1 << 32: "<u4"}
  return np.dtype(next(name for limit, name in sizes.items() if settings.classes <= limit))


def decode(record: bytes, settings: Settings) -> Frames:
  """What `encode` made a record of.

  Raises:
    StoreError: it is none of these settings.
  """
  try:
    samples, count = _COUNTS.unpack_from(record)
    read = _Reading(record, _COUNTS.size)
    sure = np.unpackbits(read(np.uint8, -(-count // 8)), count=count).astype(bool)
    number, unsure = _number(settings), int((~sure).sum())
    values = np.full((count, settings.slots), -np.inf, np.float32)
    tail = np.full((count, 2), -np.inf, np.float32)
    ids = None
    if settings.top:
      ids = np.full((count, settings.slots), settings.blank_id, np.int32)
      counts = read(np.uint8, unsure)
      kept = np.zeros((count, settings.top), bool)
      kept[~sure] = np.arange(settings.top) < counts[:, None]
      ids[:, 1:][kept] = read(_id_type(settings), int(counts.sum()))
      values[~sure, 0] = read(number, unsure)
      values[:, 1:][kept] = read(number, int(counts.sum()))
    else:
      values[~sure] = read(number, unsure, settings.slots)
    tail[slice(None) if settings.top else sure] = read(
      number, count if settings.top else count - unsure, 2
    )
    read.end()
  except (ValueError, struct.error) as error:
    raise StoreError(f"a record is damaged: {error}") from error
  values[sure, settings.blank_slot] = np.log1p(-np.exp(tail[sure, 0]))
  return Frames(samples, values, ids, tail)


class _Reading:
  """Arrays out of bytes, one after the other."""

  def __init__(self, data: bytes, start: int):
    self.data, self.at = data, start

  def __call__(self, dtype, *shape: int) -> np.ndarray:
    count = int(np.prod(shape))
    found = np.frombuffer(self.data, dtype, count, self.at)
    self.at += found.nbytes
    return found.reshape(shape)

  def end(self) -> None:
    if self.at != len(self.data):
      raise ValueError(f"{len(self.data)} bytes instead of {self.at}")


class Row(NamedTuple):
  """What a list says of a record; `heard` is what its audio is known by, "" where nothing is."""

  utterance: str
  speed: float
  samples: int
  frames: int
  heard: str = ""


class Writer:
  """Writes a store; opened again after a kill it goes on, and says what is there already.

  Several processes may write one store, each with its own `part`. `there` has its rows by
  (utterance, speed).
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    symbols: Iterable[str],
    blank_id: int,
    frame_samples: int,
    kind: str = "characters",
    space: str = " ",
    temperature: float = 2.0,
    top: int | None = None,
    dtype: str = "float16",
    facts: dict | None = None,
    part: int = 0,
  ):
    """Makes the folder, or goes on in one of the same settings.

    Args:
      folder: of the store.
      symbols: what each class stands for.
      blank_id: the blank's class.
      frame_samples: audio samples (16 kHz) in a frame, such as 320 for 20 ms.
      kind: of the vocabulary: "characters", "tokens" (between spaces), or another of jaxkd's.
      space: the symbol that stands for the space between words, "" where none does.
      temperature, top, dtype: of `Settings`; a top of None is `top_of`'s.
      facts: JSON-able, such as {"teacher": name, "parameters": count}; kept in the header.
      part: number of the process.

    Raises:
      StoreError: settings that cannot be, or a folder of something else or of other ones.
    """
    self.folder, self.part = pathlib.Path(folder), part
    symbols = list(symbols)
    classes = len(symbols)
    blank_id = _whole("blank_id", blank_id, classes)
    top = _whole("top", top_of(classes) if top is None else top, min(classes, 256))
    frame_samples = _whole("frame_samples", frame_samples, 1 << 32)
    labels = {"kind": kind, "symbols": symbols, "blank_id": blank_id, "space": space}
    self.settings = Settings(classes, blank_id, float(temperature), top, dtype)
    _check(self.settings, frame_samples)
    header = {"format": FORMAT, "version": VERSION, "frame_samples": frame_samples}
    header |= self.settings._asdict() | (facts or {})
    self._header = _same_or_new(self.folder, header, labels)
    shards = [shard for shard in listed(self.folder) if _is_whole(shard)]
    self.there = {row[:2]: row for shard in shards for row in shard.records}
    self._file, self._rows, self._room = None, [], 0

  def __contains__(self, key: tuple[str, float]) -> bool:
    """Whether (utterance, speed) is there, by any process, when this one was opened."""
    return (key[0], float(key[1])) in self.there

  def add(
    self,
    utterance: str,
    log_probs: np.ndarray,
    *,
    samples: int,
    speed: float = 1.0,
    heard: str = "",
  ) -> None:
    """Adds an utterance; it is kept once its shard is full, or `close` is called.

    Args:
      utterance: its id in the data that will be trained on.
      log_probs: float[T, V], normalised.
      samples: of its audio at 16 kHz, at this speed.
      speed: factor that it was played at.
      heard: of `Row`.

    Raises:
      StoreError: it is there already, or what `encode` refuses.
    """
    key = (utterance, float(speed))
    if key in self.there:
      raise StoreError(f"{self.folder} has {utterance} at speed {speed:g} already")
    record = encode(log_probs, samples, self.settings)
    if self._file is None:
      self._open()
    self._file.write(record)
    self.there[key] = Row(*key, int(samples), len(log_probs), heard)
    self._rows.append(self.there[key])
    self._room -= int(samples)
    if self._room <= 0:
      self.flush()

  def _open(self) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    mine = sorted((self.folder / SHARDS).glob(f"{self.part:04}-*.json"))
    number = int(mine[-1].stem.split("-")[1]) + 1 if mine else 0
    self._path = self.folder / SHARDS / f"{self.part:04}-{number:06}.array_record"
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._file = ArrayRecordWriter(str(self._path), "group_size:1")
    self._room = _SHARD_SAMPLES

  @property
  def is_flushed(self) -> bool:
    """Whether all that was added is kept."""
    return self._file is None

  def flush(self) -> None:
    """Ends the shard, so that all that was added is kept."""
    if self._file is None:
      return
    self._file.close()
    facts = {"bytes": self._path.stat().st_size, "sha256": digest(self._path)}
    _write_json(self._path.with_suffix(".json"), facts | {"records": self._rows})
    self._file, self._rows = None, []

  def close(self, *, left_out: Iterable[tuple[str, str]] = ()) -> dict:
    """Ends the store, by one process when all have flushed; returns its totals.

    Args:
      left_out: (utterance, reason) of what is not in it, beside what was left out before.
    """
    self.flush()
    shards = listed(self.folder)
    rows = [row for shard in shards for row in shard.records]
    utterances = {row.utterance for row in rows}
    before = _read_json(self.folder / HEADER).get("complete", {}).get("left_out", ())
    left = {name: why for name, why in (*before, *left_out) if name not in utterances}
    totals = {
      "utterances": len(utterances),
      "records": len(rows),
      "frames": sum(row.frames for row in rows),
      "hours": round(sum(row.samples for row in rows) / 16_000 / 3600, 4),
      "bytes": sum(shard.bytes for shard in shards),
      "left_out": sorted(map(list, left.items())),
    }
    _write_json(self.folder / HEADER, self._header | {"complete": totals})
    return totals


def _is_whole(shard: "Shard") -> bool:
  """Whether a shard is as its list says; a list that says more than there is goes."""
  if shard.is_there:
    return True
  log.warning("%s is cut short or gone: its %d records are new", shard.path, len(shard.records))
  shard.path.with_suffix(".json").unlink(missing_ok=True)
  return False


class Shard(NamedTuple):
  """One file of records, and what was said of it when it was whole.

  Attributes:
    path: of the file.
    bytes, sha256: of its content.
    records: a row for each.
  """

  path: pathlib.Path
  bytes: int
  sha256: str
  records: list[Row]

  @property
  def is_there(self) -> bool:
    """Whether its file has the size that it had."""
    return self.path.exists() and self.path.stat().st_size == self.bytes


def listed(folder: pathlib.Path) -> list[Shard]:
  """The whole shards of a store; a file that no list names was cut off by a kill.

  Raises:
    StoreError: a list that is damaged.
  """
  found = []
  for path in sorted((folder / SHARDS).glob("*.json")):
    try:
      shard = json.loads(path.read_text(encoding="utf-8"))
      whole = path.with_suffix(".array_record"), int(shard["bytes"]), shard["sha256"]
      found.append(Shard(*whole, [Row(*row[:5]) for row in shard["records"]]))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
      raise StoreError(f"{path} is damaged ({error}): remove it and write again") from error
  return found


def _whole(name: str, value, limit: int) -> int:
  try:
    number = operator.index(value)
  except TypeError:
    number = -1
  if not 0 <= number < limit:
    raise StoreError(f"{name} is {value!r}: it must be a whole number from 0 to {limit - 1}")
  return number


def _check(settings: Settings, frame_samples: int) -> None:
  if settings.dtype not in ("float16", "float32"):
    raise StoreError(f"dtype is {settings.dtype!r}: it must be float16 or float32")
  if not 0 < settings.temperature < np.inf or frame_samples < 1:
    raise StoreError("temperature and frame_samples must be above 0, and finite")


def check_folder(folder: pathlib.Path) -> None:
  """Raises StoreError, which begins with the folder, where no store may be written in it."""
  printable = os.fsencode(folder).decode("utf-8", "backslashreplace")
  if printable != str(folder):
    raise StoreError(f"{printable}: its name must be UTF-8, for array_record: another folder")
  others = [name for name in _OTHERS if (folder / name).exists()]
  if others and not (folder / HEADER).exists():
    raise StoreError(f"{folder}: it holds something else ({others[0]}): another folder")


def _same_or_new(folder: pathlib.Path, header: dict, labels: dict) -> dict:
  """The header of a store that is there with the same settings, or of a new one."""
  check_folder(folder)
  files = {folder / HEADER: header, folder / LABELS: labels}
  old = [path for path in files if path.exists()]
  for path in old:
    there, wanted = _read_json(path), json.loads(json.dumps(files[path]))
    # Of a teacher with a fingerprint the name is one of several.
    free = {"complete", "teacher"} if "fingerprint" in wanted else {"complete"}
    names = (there.keys() | wanted.keys()) - free
    if names := [name for name in names if there.get(name) != wanted.get(name)]:
      raise StoreError(
        f"{folder} is a store of other settings ({', '.join(sorted(names))}): another folder"
      )
  folder.mkdir(parents=True, exist_ok=True)
  for path in [path for path in files if path not in old]:
    _write_json(path, files[path])
  return header


def digest(path: pathlib.Path) -> str:
  """SHA-256 of a file, 64 hexadecimal digits."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: pathlib.Path, value) -> None:
  """The old file or the whole new one, whenever a kill comes."""
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    temporary.write_text(json.dumps(value, ensure_ascii=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _read_json(path: pathlib.Path) -> dict:
  try:
    return dict(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError, TypeError) as error:
    raise StoreError(f"{path} cannot be read: {error}") from error


class Store:
  """A store that is complete, to be read from; any number of threads and processes may.

  Attributes:
    folder: where it lies.
    header: facts of its teacher, and "complete", its totals.
    settings: how frames are kept.
    frame_samples: audio samples in a frame.
    symbols: of the classes.
    shards: its files.
    rows: of all records, by position.
  """

  def __init__(self, folder: str | os.PathLike):
    """Reads the header and the lists.

    Raises:
      StoreError: it is none, not complete, of a newer version, or damaged.
    """
    self.folder = pathlib.Path(folder)
    self.header = _read_json(self.folder / HEADER)
    if self.header.get("format") != FORMAT or self.header.get("version") != VERSION:
      raise StoreError(f"{self.folder} is no store of version {VERSION}")
    if "complete" not in self.header:
      raise StoreError(f"{self.folder} is not complete: the command that writes it goes on")
    self.settings = Settings(**{name: self.header[name] for name in Settings._fields})
    self.frame_samples = int(self.header["frame_samples"])
    self.symbols = tuple(_read_json(self.folder / LABELS)["symbols"])
    self.shards = listed(self.folder)
    for shard in self.shards:
      if not shard.is_there:
        raise StoreError(f"{shard.path} is cut short or gone: the command that wrote it mends it")
    self.rows = [row for shard in self.shards for row in shard.records]
    self._starts = np.cumsum([0, *(len(shard.records) for shard in self.shards)])
    self._files = _Files([str(shard.path) for shard in self.shards])

  def positions(self) -> dict[tuple[str, float], int]:
    """(utterance, speed) → position of its record."""
    return {row[:2]: position for position, row in enumerate(self.rows)}

  def read(self, position: int) -> Frames:
    """A record.

    Raises:
      StoreError: it is damaged, or there is none at the position.
    """
    if not 0 <= position < len(self.rows):
      raise StoreError(f"{self.folder}: no record {position}: it has {len(self.rows)}, from 0 on")
    shard = int(np.searchsorted(self._starts, position, "right")) - 1
    try:
      record = self._files.read(shard, position - int(self._starts[shard]))
    except (RuntimeError, ValueError) as error:
      raise StoreError(f"{self.folder}: a record cannot be read: {error}") from error
    return decode(record, self.settings)


class _Files:
  """Records by shard and number; a process keeps a part of many shards open, those used last."""

  def __init__(self, paths: list[str]):
    self.paths = paths
    self._readers, self._lock = {}, threading.Lock()

  def __reduce__(self):
    return _Files, (self.paths,)  # each process opens its own

  def read(self, shard: int, number: int) -> bytes:
    from array_record.python.array_record_module import ArrayRecordReader

    with self._lock:
      reader = self._readers.pop(shard, None)
      if reader is None:
        reader = ArrayRecordReader(self.paths[shard], options="readahead_buffer_size:0")
      self._readers[shard] = reader
      if len(self._readers) > _OPEN_FILES:
        del self._readers[next(iter(self._readers))]  # a thread that reads from it holds it still
    return reader.read([number])[0]
