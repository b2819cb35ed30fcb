"""Manifests, folders of audio, named corpora and TFDS: lists of utterances that can be read."""

import collections
import dataclasses
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxkd import buckets, console, files
from jaxkd.data import audio, corpora, digits, encoded, manifest, shards, tfds
from jaxkd.data import index as index_lib
from jaxkd.data.corpora import CORPORA, SPLITS
from jaxkd.data.manifest import Entry
from jaxkd.data.tfds import TFDS_CORPORA
from jaxkd.errors import UserError, did_you_mean
from jaxkd.types import SAMPLE_RATE_HZ

log = logging.getLogger(__name__)
# Decoded audio of smaller sources is kept in memory: 2 h are 460 MB.
_KEEP_SECONDS = 7200.0


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
    ids: Sequence[str],
    durations: np.ndarray,
    texts: Sequence[str | None],
    skipped: list[tuple[str, str]],
    read: Callable[[int], np.ndarray],
    fingerprint: str = "",
  ):
    """Takes its attributes, and what reads the audio.

    Args:
      read: index → f32[S] at 16 kHz, or audio.BrokenAudio. It goes to worker processes by pickle.
      fingerprint: where it is known; "" where it is not.
    """
    self.name = name
    self.ids = ids
    self.durations = durations
    self.texts = texts
    self.skipped = skipped
    self._read = read
    self._fingerprint = fingerprint
    self._kept: dict[int, np.ndarray] | None = {} if durations.sum() < _KEEP_SECONDS else None

  def __getstate__(self) -> dict:
    """Without durations, which plans are made of: workers only read, and keep no audio.

    Each of them would keep all of every source that it ever read.
    """
    return self.__dict__ | {"_kept": None, "durations": self.durations[:0]}

  def __len__(self) -> int:
    return len(self.ids)

  def without(self, reasons: dict[int, str]) -> "Source":
    """The same but for some utterances: index → why they are left out."""
    kept = np.ones(len(self), bool)
    kept[list(reasons)] = False
    skipped = [(self.ids[i], reason) for i, reason in reasons.items()]
    found = self.only(np.flatnonzero(kept))
    found.skipped = [*self.skipped, *skipped]
    return found

  def only(self, kept: Sequence[int]) -> "Source":
    """The utterances at these places, and none of what was left out."""
    kept = np.asarray(kept, np.int64)
    ids, texts = index_lib.taken(self.ids, kept), index_lib.taken(self.texts, kept)
    return Source(self.name, ids, self.durations[kept], texts, [], _Part(self, kept))

  def read(self, index: int) -> np.ndarray:
    """f32[S], 16 kHz, at the amplitude of the recording.

    Raises:
      audio.BrokenAudio: the message says why.
    """
    if self._kept is not None and index in self._kept:
      return self._kept[index]
    samples = self._read(index)
    if self._kept is not None:
      self._kept[index] = samples
    return samples

  def fingerprint(self) -> str:
    """16 hexadecimal digits that are others where ids, durations or transcripts are.

    Where ids are absolute paths, the folder that they share does not count: data may be moved.
    """
    if not self._fingerprint:
      self._fingerprint = index_lib.fingerprint(self.ids, self.durations, self.texts)
    return self._fingerprint

  def stamp(self, index: int) -> list | None:
    """JSON-able, another where an utterance's file or record is; None where that is not known."""
    return self._read.stamp(index) if hasattr(self._read, "stamp") else None

  def encoded(self, index: int) -> bytes:
    """A recording of which `audio.read` makes what `read` returns.

    Raises:
      audio.BrokenAudio: the message says why.
    """
    return _encoded(self._read, index)

  def pieces(self, index: int, longest: float) -> Iterator[tuple[float, float, bytes]]:
    """(start, seconds, bytes) of its parts, cut at silences; raises as `encoded` does."""
    return _pieces(self._read, index, float(self.durations[index]), longest)


def _encoded(read, index: int) -> bytes:
  """What a reader of utterances has of one; of those that have samples alone, FLAC of these."""
  if hasattr(read, "encoded"):
    return read.encoded(index)
  return encoded.of_samples(read(index), SAMPLE_RATE_HZ)


def _pieces(read, index: int, seconds: float, longest: float):
  if hasattr(read, "pieces"):
    return read.pieces(index, longest)
  return encoded.pieces(_encoded(read, index), 0.0, seconds, longest)


@dataclasses.dataclass(frozen=True)
class _Part:
  """Reads some utterances of another source."""

  whole: Source
  kept: np.ndarray

  def __call__(self, index: int) -> np.ndarray:
    return self.whole.read(int(self.kept[index]))

  def stamp(self, index: int) -> list | None:
    return self.whole.stamp(int(self.kept[index]))

  def encoded(self, index: int) -> bytes:
    return self.whole.encoded(int(self.kept[index]))

  def pieces(self, index: int, longest: float):
    return self.whole.pieces(int(self.kept[index]), longest)


@dataclasses.dataclass(frozen=True)
class _Files:
  """Reads utterances that are parts of files.

  Attributes:
    parts: (path, offset, duration) of each, in seconds.
  """

  parts: list[tuple[str, float, float]]

  def __call__(self, index: int) -> np.ndarray:
    return audio.read(*self.parts[index])

  def stamp(self, index: int) -> list:
    path, offset, _ = self.parts[index]
    if buckets.is_url(path):
      return [path, offset]
    try:
      there = os.stat(path)
    except (OSError, ValueError):  # it is left out when it is read
      return [os.path.abspath(path), offset]
    return [os.path.abspath(path), offset, there.st_size, there.st_mtime_ns]

  def encoded(self, index: int) -> bytes:
    return encoded.part(*self.parts[index])

  def pieces(self, index: int, longest: float):
    return encoded.pieces(*self.parts[index], longest)


@dataclasses.dataclass(frozen=True)
class _Several:
  """Reads the utterances of sources, one source after the other."""

  sources: list[Source]

  def __call__(self, index: int) -> np.ndarray:
    source, index = self._of(index)
    return source.read(index)

  def stamp(self, index: int) -> list | None:
    source, index = self._of(index)
    return source.stamp(index)

  def encoded(self, index: int) -> bytes:
    source, index = self._of(index)
    return source.encoded(index)

  def pieces(self, index: int, longest: float):
    source, index = self._of(index)
    return source.pieces(index, longest)

  def _of(self, index: int) -> tuple[Source, int]:
    """The source that an utterance is in, and its place there."""
    for source in self.sources:
      if index < len(source):
        return source, index
      index -= len(source)
    raise IndexError(index)


class Limits(NamedTuple):
  """Lengths of utterances that are trained on, in seconds."""

  min_seconds: float = 0.0
  max_seconds: float = math.inf

  def reason(self, seconds: float) -> str:
    """Why an utterance is left out; "" where it is not."""
    if seconds < self.min_seconds:
      return f"{seconds:.2f} s is shorter than config.data.min_seconds, {self.min_seconds:g}"
    if seconds > self.max_seconds:
      return f"{seconds:.2f} s is longer than config.data.max_seconds, {self.max_seconds:g}"
    return ""

  def pieces(self, seconds: float, text: str | None) -> list[tuple[float, float]]:
    """(start, length) of what is heard of an utterance; BrokenAudio where it is left out."""
    if text is None and seconds > self.max_seconds:
      count = math.ceil(seconds / self.max_seconds)
      return [(i * seconds / count, seconds / count) for i in range(count)]
    if reason := self.reason(seconds):
      raise audio.BrokenAudio(reason)
    return [(0.0, seconds)]


NO_LIMITS = Limits()


def check_spec(field: str, spec: str, options: corpora.Options) -> None:
  """Passes data whose name can be right; opens nothing.

  Args:
    field: where the name stands, such as "data.train".
    spec: as for `open_source`, or "" for no data.
    options: of the named corpora.

  Raises:
    UserError: a corpus without such a split, or without the recordings that it is made of.
  """
  for part in parts_of(spec) if spec else ():
    _check_name(field, part, options)


def _check_name(field: str, spec: str, options: corpora.Options) -> None:
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


def open_source(spec: str, options: corpora.Options, limits: Limits = NO_LIMITS) -> Source:
  """Opens data by name.

  Args:
    spec: a manifest (JSON lines), a folder of audio or a recording (no transcripts), a folder of
      shards (`jaxkd shard`), corpus:split, where the splits of TFDS_CORPORA are as TFDS writes
      them, or several with commas between.
    options: of the named corpora.
    limits: of an utterance's length; what is beyond them is left out, but a longer one without a
      transcript is heard in pieces.

  Returns:
    The utterances; of a recording that several names or links lead to, each part once.

  Raises:
    UserError: absent, malformed, or without any usable utterance.
  """
  opened = [_open(part, options, limits) for part in different_parts(spec)]
  source = _joined(spec, _each_once(spec, opened))
  if not len(source):
    found = f"; the first: {': '.join(source.skipped[0])}" if source.skipped else ""
    raise UserError(f"{spec}: no usable utterance in it{found}")
  _check_one_can_be_read(source)
  if source.skipped:
    log.warning("%s", left_out(spec, source.skipped, len(source) + len(source.skipped)))
  return source


def parts_of(spec: str) -> list[str]:
  """The names that stand between commas, where they are not one name with commas in it.

  Raises:
    UserError: there is none.
  """
  parts = [spec]
  if "," in spec and not os.path.exists(os.path.expanduser(spec)):
    parts = [part.strip() for part in spec.split(",") if part.strip()]
  if not any(part.strip() for part in parts):  # an empty variable of a shell, too
    raise UserError(f"data is {spec!r}: it must be the name of a file, a folder or a corpus")
  return parts


def different_parts(spec: str) -> list[str]:
  """`parts_of` a name, without those that lead to the same file, folder or corpus as another."""
  found, again = {}, []
  for part in parts_of(spec):
    path = os.path.expanduser(part)
    real = os.path.realpath(path) if os.path.exists(path) else part
    again += [part] if real in found else []
    found.setdefault(real, part)
  if again:
    told = "%s: left out, as they name the same data as one before: %d of its names, %s the first"
    log.warning(told, spec, len(again), again[0])
  return list(found.values())


def left_out(name: str, found: list[tuple[str, str]], of: int) -> str:
  """A line about (id, reason) of utterances that are left out of so many."""
  kinds = collections.Counter(re.sub(r"\d[\d.]*", "N", reason) for _, reason in found)
  unique, reason = found[0]
  others = len(kinds) - 1
  more = f" (and {others} other reason{'s' * (others > 1)})" if others else ""
  return f"{name}: {len(found)} of {of} utterances are left out: {unique}: {reason}{more}"


def _open(spec: str, options: corpora.Options, limits: Limits) -> Source:
  """One of the names."""
  corpus, colon, split = spec.partition(":")
  if colon and corpus in TFDS_CORPORA:
    source = Source(spec, *tfds.open_split(corpus, split, options.root))
    reasons = ((i, limits.reason(s)) for i, s in enumerate(source.durations.tolist()))
    reasons = {i: reason for i, reason in reasons if reason}
    return source.without(reasons) if reasons else source
  path = files.expanded(spec)
  if index_lib.is_one(path):
    return Source(spec, *shards.opened(path, limits))
  if shards.is_teacher(path):
    raise UserError(
      f"{spec} is a stored teacher: config.teacher.source, and data is the audio that it heard"
    )
  if shards.is_unfinished(path):
    raise UserError(f"{spec} holds shards without an index: the jaxkd shard that writes it goes on")
  return _opened(spec, entries(spec, options), limits)


def entries(spec: str, options: corpora.Options) -> list[Entry]:
  """What a name stands for, unread; not of TFDS_CORPORA, whose utterances are no files.

  Args:
    spec: one name, as for `open_source`.
    options: of the named corpora.

  Raises:
    UserError: absent or malformed.
  """
  corpus, colon, split = spec.partition(":")
  if colon and corpus in CORPORA:
    return manifest.of_file(corpora.manifest(corpus, split, options))
  if buckets.is_url(spec):
    return manifest.of_bucket(spec)
  path = files.expanded(spec)
  if index_lib.is_one(path):
    raise UserError(
      f"{spec} is a folder of shards, of which none is held out: give --dev=DATA, too"
    )
  if path.is_dir():
    return manifest.of_folder(spec, path)
  if path.is_file() and path.suffix.lower() in (*audio.EXTENSIONS, *audio.UNREAD_EXTENSIONS):
    return manifest.of_recording(path)
  if path.is_file() and path.suffix.lower() in (".tar", ".tgz", ".gz", ".zip", ".bz2", ".xz"):
    raise UserError(f"{spec} is no manifest: jaxkd shard {spec} indexes a tar file; unpack others")
  if path.is_file():
    return manifest.of_file(path)
  raise UserError(
    f"{spec}: no such file or folder; data is a manifest (JSON lines), a folder of audio, a "
    "recording, or " + ", ".join(f"{name}:SPLIT" for name in (*CORPORA, *TFDS_CORPORA))
  )


def _each_once(spec: str, sources: list[Source]) -> list[Source]:
  """The same without parts of files that come again, which is said."""
  folders = [os.path.isdir(os.path.expanduser(source.name)) for source in sources]
  # In one manifest nothing is left out, and a look at each file would take a tenth of its opening.
  behind = manifest.behind_links() if len(sources) > 1 or any(folders) else str
  files_ = [(s._read.parts, s.texts) if isinstance(s._read, _Files) else ((), ()) for s in sources]
  lists = [(*pair, not folder) for pair, folder in zip(files_, folders, strict=True)]
  found = manifest.again(lists, behind)
  found.warn(spec, [source.ids for source in sources])
  gone = collections.defaultdict(list)
  for number, place in found.left_out:
    gone[number].append(place)
  return [_but(source, gone[n]) if gone[n] else source for n, source in enumerate(sources)]


def _but(source: Source, places: list[int]) -> Source:
  """A source without what others have, too: nothing that is lost."""
  kept = source.only(np.delete(np.arange(len(source)), places))
  kept.skipped = source.skipped
  return kept


def _joined(name: str, sources: list[Source]) -> Source:
  """Several sources as one; ids of which two have the same are numbered."""
  if len(sources) == 1:
    return sources[0]
  for source in sources:
    source._kept = None  # what is kept in memory is the whole's affair
  return Source(
    name,
    manifest.numbered(unique for source in sources for unique in source.ids),
    np.concatenate([source.durations for source in sources]),
    [text for source in sources for text in source.texts],
    [pair for source in sources for pair in source.skipped],
    _Several(sources),
  )


def _check_one_can_be_read(source: Source) -> None:
  """All broken is an error before anything expensive; usually the first utterance decides."""
  first = None
  for index in range(len(source)):
    try:
      if source.durations[index] > manifest.LONG_SECONDS:  # hours of it would fill the memory
        next(source.pieces(index, manifest.LONG_SECONDS), None)
      else:
        source.read(index)
      return
    except audio.BrokenAudio as error:
      first = first or f"{source.ids[index]}: {error}"
  raise UserError(f"{source.name}: no utterance can be decoded; the first: {first}")


def _opened(name: str, given: list[Entry], limits: Limits) -> Source:
  """What entries stand for, with durations from the files' headers where none are given."""
  ids, durations, texts, parts, skipped = [], [], [], [], []
  cut = 0
  with console.progress(f"opening {name}", len(given)) as update:
    for entry in given:
      update()
      try:
        seconds = manifest.length(entry)
        pieces = limits.pieces(seconds, entry.text)
      except audio.BrokenAudio as error:
        skipped.append((entry.id, str(error)))
        continue
      cut += len(pieces) > 1
      for start, length in pieces:
        ids.append(entry.id if len(pieces) == 1 else f"{entry.id}@{start:.2f}s")
        durations.append(length)
        texts.append(entry.text)
        parts.append((entry.path, entry.offset + start, length))
  if cut:
    log.info(
      "%s: %d of %d recordings are longer than config.data.max_seconds, %g s: they are heard in "
      "pieces, %d utterances in all",
      name,
      cut,
      len(given),
      limits.max_seconds,
      len(ids),
    )
  return Source(name, ids, np.array(durations, np.float64), texts, skipped, _Files(parts))
