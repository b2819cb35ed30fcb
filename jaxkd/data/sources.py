"""Manifests, folders of audio, named corpora and TFDS: lists of utterances that can be read."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable

import numpy as np

from jaxkd import console
from jaxkd.data import audio, corpora, digits, tfds
from jaxkd.data.corpora import CORPORA, SPLITS
from jaxkd.data.tfds import TFDS_CORPORA
from jaxkd.errors import UserError, did_you_mean

# Decoded audio of smaller sources is kept in memory: 2 h are 230 MB.
_KEEP_SECONDS = 7200.0
# A longer one is compared with its file: milliseconds by mistake would size all batches.
_LONG_SECONDS = 60.0


class Source:
  """Utterances of one split.

  Attributes:
    name: as the user gave it.
    ids: of the utterances.
    durations: f64[utterances], seconds.
    texts: transcripts, None where there is none.
    skipped: (id, reason) of those that were left out when the source was opened.
  """

  def __init__(
    self,
    name: str,
    ids: list[str],
    durations: np.ndarray,
    texts: list[str | None],
    skipped: list[tuple[str, str]],
    read: Callable[[int], np.ndarray],
  ):
    """Takes its attributes, and what reads the audio.

    Args:
      read: index → i16[S] at 16 kHz, or audio.BrokenAudio. It goes to worker processes by pickle.
    """
    self.name = name
    self.ids = ids
    self.durations = durations
    self.texts = texts
    self.skipped = skipped
    self._read = read
    self._kept: dict[int, np.ndarray] | None = {} if durations.sum() < _KEEP_SECONDS else None

  def __getstate__(self) -> dict:
    """All but the audio in memory: that would be sent to every worker process."""
    return self.__dict__ | {"_kept": None if self._kept is None else {}}

  def __len__(self) -> int:
    return len(self.ids)

  def without(self, reasons: dict[int, str]) -> "Source":
    """The same but for some utterances: index → why they are left out."""
    kept = [i for i in range(len(self)) if i not in reasons]
    skipped = [(self.ids[i], reason) for i, reason in reasons.items()]
    found = self.only(kept)
    found.skipped = [*self.skipped, *skipped]
    return found

  def only(self, kept: list[int]) -> "Source":
    """The utterances at these places, and none of what was left out."""
    return Source(
      self.name,
      [self.ids[i] for i in kept],
      self.durations[kept],
      [self.texts[i] for i in kept],
      [],
      _Part(self, kept),
    )

  def read(self, index: int) -> np.ndarray:
    """i16[S], 16 kHz.

    Raises:
      audio.BrokenAudio: the message says why.
    """
    if self._kept is not None and index in self._kept:
      return self._kept[index]
    samples = self._read(index)
    if self._kept is not None:
      self._kept[index] = samples
    return samples


@dataclasses.dataclass(frozen=True)
class _Part:
  """Reads some utterances of another source."""

  whole: Source
  kept: list[int]

  def __call__(self, index: int) -> np.ndarray:
    return self.whole.read(self.kept[index])


@dataclasses.dataclass(frozen=True)
class _Files:
  """Reads utterances that are parts of files.

  Attributes:
    parts: (path, offset, duration) of each, in seconds.
  """

  parts: list[tuple[pathlib.Path, float, float]]

  def __call__(self, index: int) -> np.ndarray:
    return audio.read(*self.parts[index])


def check_spec(field: str, spec: str, options: corpora.Options) -> None:
  """Passes data whose name can be right; opens nothing.

  Args:
    field: where the name stands, such as "data.train".
    spec: as for `open_source`, or "" for no data.
    options: of the named corpora.

  Raises:
    UserError: a corpus without such a split, or without the recordings that it is made of.
  """
  corpus, colon, split = spec.partition(":")
  if not colon or corpus not in (*CORPORA, *TFDS_CORPORA):
    return
  if corpus in CORPORA and split not in SPLITS:
    raise UserError(
      f"config.{field} is {spec!r}{did_you_mean(split, SPLITS)}: it must be {corpus}: and one of "
      + ", ".join(SPLITS)
    )
  if corpus in TFDS_CORPORA and not split:
    raise UserError(f"config.{field} is {spec!r}: it must be {corpus}: and a split of TFDS's")
  if corpus == "digits" and not options.root:
    raise digits.absent(options.root)


def open_source(spec: str, options: corpora.Options) -> Source:
  """Opens data by name.

  Args:
    spec: a manifest (JSON lines), a folder of audio (no transcripts), or corpus:split, where the
      splits of TFDS_CORPORA are as TFDS writes them.
    options: of the named corpora.

  Raises:
    UserError: absent, malformed, or without any usable utterance.
  """
  corpus, colon, split = spec.partition(":")
  if colon and corpus in CORPORA:
    source = _manifest(spec, corpora.manifest(corpus, split, options))
  elif colon and corpus in TFDS_CORPORA:
    source = Source(spec, *tfds.open_split(corpus, split, options.root))
  elif (path := pathlib.Path(os.path.expanduser(spec))).is_dir():
    source = _folder(spec, path)
  elif path.is_file():
    source = _manifest(spec, path)
  else:
    raise UserError(
      f"{spec}: no such file or folder; data is a manifest (JSON lines), a folder of audio, or "
      + ", ".join(f"{name}:SPLIT" for name in (*CORPORA, *TFDS_CORPORA))
    )
  if not len(source):
    found = f"; the first: {': '.join(source.skipped[0])}" if source.skipped else ""
    raise UserError(f"{spec}: no usable utterance in it{found}")
  _check_one_can_be_read(source)
  return source


def fingerprint(source: Source) -> str:
  """16 hexadecimal digits that are others where ids, durations or transcripts are.

  Where ids are absolute paths, the folder that they share does not count: data may be moved.
  """
  ids = source.ids
  if all(map(os.path.isabs, ids)):
    ids = [os.path.relpath(name, os.path.commonpath(ids)) for name in ids]
  lines = zip(ids, source.durations.round(3).tolist(), source.texts, strict=True)
  return hashlib.sha256(json.dumps(list(lines)).encode()).hexdigest()[:16]


def _check_one_can_be_read(source: Source) -> None:
  """All broken is an error before anything expensive; usually the first utterance decides."""
  first = None
  for index in range(len(source)):
    try:
      source.read(index)
      return
    except audio.BrokenAudio as error:
      first = first or f"{source.ids[index]}: {error}"
  raise UserError(f"{source.name}: no utterance can be decoded; the first: {first}")


def _folder(name: str, folder: pathlib.Path) -> Source:
  paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in audio.EXTENSIONS)
  if not paths:
    raise UserError(f"{name}: no audio in this folder ({', '.join(audio.EXTENSIONS)})")
  rows = [(str(path.relative_to(folder)), path, {}) for path in paths]
  return _source(name, rows)


def _manifest(name: str, path: pathlib.Path) -> Source:
  rows, seen = [], {}
  try:
    # Not splitlines(): a JSON string may hold other line separators than this one.
    lines = path.read_text(encoding="utf-8-sig").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path} cannot be read as a manifest (UTF-8 JSON lines): {error}") from error
  for number, line in enumerate(lines, 1):
    if line.strip():
      row = _manifest_row(f"{path}:{number}", line)
      given = row["audio_filepath"]
      seen[given] = seen.get(given, 0) + 1
      unique = given if seen[given] == 1 else f"{given}#{seen[given]}"
      rows.append((unique, path.parent / os.path.expanduser(given), row))
  return _source(name, rows)


def _manifest_row(where: str, line: str) -> dict:
  """One checked row; `where` is file:line."""
  try:
    row = json.loads(line)
  except ValueError as error:
    raise UserError(f"{where}: not JSON ({error})") from error
  if not isinstance(row, dict) or not isinstance(row.get("audio_filepath"), str):
    raise UserError(f'{where}: each line must be an object with a string "audio_filepath"')
  for field in ("duration", "offset"):
    value = row.get(field)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and math.isfinite(value) and value >= 0):
      raise UserError(f'{where}: "{field}" is {value!r}: it must be seconds, 0 or more')
  if not isinstance(row.get("text", ""), (str, type(None))):
    raise UserError(f'{where}: "text" is {row["text"]!r}: it must be a string')
  return row


def _source(name: str, rows: list[tuple[str, pathlib.Path, dict]]) -> Source:
  """Utterances of (id, path, manifest row), durations from the files' headers where not given."""
  ids, durations, texts, parts, skipped = [], [], [], [], []
  with console.progress(f"opening {name}", len(rows)) as update:
    for unique, path, row in rows:
      update()
      offset = float(row.get("offset") or 0.0)
      try:
        seconds = row.get("duration")
        if seconds is None:
          seconds = audio.duration(path) - offset
        elif not path.is_file():
          raise audio.BrokenAudio("no such file")
        elif seconds > _LONG_SECONDS and seconds > audio.duration(path) - offset + 1:
          raise audio.BrokenAudio(f"is shorter than the {seconds:g} s that the manifest says")
        if seconds < audio.MIN_SECONDS:
          raise audio.BrokenAudio(f"empty or too short ({seconds:g} s)")
      except audio.BrokenAudio as error:
        skipped.append((unique, str(error)))
        continue
      ids.append(unique)
      durations.append(seconds)
      texts.append(row.get("text"))
      parts.append((path, offset, float(seconds)))
  return Source(name, ids, np.array(durations, np.float64), texts, skipped, _Files(parts))
