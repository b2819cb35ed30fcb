"""Tar files of recordings → lists of what lies where: WebDataset, NeMo's tarred sets, Lhotse Shar.

Each tar file is read once from beginning to end, for lengths and checksums; nothing is unpacked.
Hard links are what they lead to. Symbolic links and sparse files, whose bytes do not lie there in
one piece, are left out and listed.
"""

import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from jaxkd.data import audio, manifest
from jaxkd.data.audio import BrokenAudio
from jaxkd.data.listings import Listed, Part
from jaxkd.errors import UserError

log = logging.getLogger(__name__)
_TEXTS = (".txt", ".json")  # what stands beside a recording of WebDataset
_SPARE_SECONDS = 1.0  # a recording may be shorter than is said; as of manifests
_BLOCK = 1 << 20  # bytes that are read at a time


class Contents(NamedTuple):
  """What is in a tar file.

  Attributes:
    sha256: of all of it.
    rows: (Part with its seconds, offset, bytes, crc) of each utterance.
    left_out: (id, reason) of what cannot be used.
  """

  sha256: str
  rows: list[tuple[Part, int, int, int]]
  left_out: list[tuple[str, str]]


def found(path: pathlib.Path) -> list[pathlib.Path]:
  """The tar files of a folder and those below it, or a tar file itself; [] where it is neither.

  Of one that links in the folder lead to, too, only itself.
  """
  if path.is_dir():
    numbers = lambda p: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", str(p))]
    there = map(pathlib.Path, manifest.walked(path))
    tars = sorted((p for p in there if p.suffix.lower() == ".tar"), key=numbers)
    behind = {}
    for tar in sorted(tars, key=os.path.islink):
      behind.setdefault(os.path.realpath(tar), tar)
    once = set(behind.values())
    if again := [tar for tar in tars if tar not in once]:
      _tell_of_links(path, len(again), again[0])
    return [tar for tar in tars if tar in once]
  return [path] if path.is_file() and path.suffix.lower() == ".tar" else []


@functools.cache  # the same folder is looked into more than once
def _tell_of_links(path: pathlib.Path, count: int, first: pathlib.Path) -> None:
  line = "%s: left out, as links to tar files that are there already: %d, %s the first"
  log.warning(line, path, count, first.name)


def compressed(path: pathlib.Path) -> dict[pathlib.Path, str]:
  """Compressed tar files of a folder and those below it, or one itself → what makes them plain.

  One that lies beside the plain one is none.
  """
  cures = {}
  for file in map(pathlib.Path, manifest.walked(path) if path.is_dir() else [path]):
    for suffix, cure in manifest.COMPRESSED_TARS.items():
      plain = file.with_name(file.name[: -len(suffix)] + ".tar")
      if file.name.lower().endswith(suffix) and file.is_file() and not plain.exists():
        cures[file] = cure
  return dict(sorted(cures.items()))


def contents(tar: pathlib.Path, listed: Listed | None) -> Contents:
  """Reads a tar file once.

  Args:
    tar: the file.
    listed: what is said about its members; None for WebDataset: what stands beside a recording.

  Raises:
    UserError: cut short, compressed or no tar file.
  """
  sha256, rows, left_out, texts, stems = hashlib.sha256(), [], [], {}, set()
  here, anywhere = listed or Listed({}, {})
  lost = dict(here)
  for name, offset, data, wrong in _members(tar, sha256):
    stem, suffix = os.path.splitext(name)
    is_told = name in here or name in anywhere
    if manifest.is_admin(name) and not is_told:
      continue
    if listed is None and suffix.lower() in _TEXTS and not wrong:
      texts[name] = data
    elif listed is None and suffix.lower() in _TEXTS:
      left_out.append((name, wrong))
    if suffix.lower() not in (*audio.EXTENSIONS, *audio.UNREAD_EXTENSIONS) and not is_told:
      continue
    known = name if is_told else stem
    given = [Part(stem)] if listed is None else here.get(known) or anywhere.get(known, ())
    lost.pop(known, None)
    stems.add(stem)
    if not given:
      left_out.append((name, "no row of a manifest is about it"))
    there, why = (0.0, wrong) if wrong else _heard(suffix, data)
    for part in given:
      seconds = there - part.start if part.seconds is None else part.seconds
      if reason := why or _short(part, seconds, there):
        left_out.append((part.id, reason))
      else:
        rows.append((part._replace(seconds=seconds), offset, len(data), zlib.crc32(data)))
  if listed is None:
    rows, unused = _with_texts(rows, texts, stems)
    left_out += [(name, "no recording in its tar file is named as it is") for name in unused]
  left_out += [(part.id, part.wrong) for part, *_ in rows if part.wrong]
  left_out += [(part.id, f"not in {tar.name}") for several in lost.values() for part in several]
  used = [
    (part._replace(id=manifest.printable(part.id)), *rest) for part, *rest in rows if not part.wrong
  ]
  left_out = [(manifest.printable(name), reason) for name, reason in left_out]
  return Contents(sha256.hexdigest(), used, left_out)


def _heard(suffix: str, data: bytes) -> tuple[float, str]:
  """The seconds of a recording, and why it cannot be heard; "" for nothing."""
  if suffix.lower() not in audio.EXTENSIONS:
    return 0.0, manifest.unread(suffix)
  try:
    return audio.duration(data), ""
  except BrokenAudio as error:
    return 0.0, str(error)


def _short(part: Part, seconds: float, there: float) -> str:
  """Why a part of a recording that lasts so long cannot be; "" where it can."""
  end = part.start + (part.seconds or 0.0)
  if end > there + _SPARE_SECONDS:
    return f"is shorter than the {end:g} s that the manifest says"
  return f"empty or too short ({seconds:g} s)" if seconds < audio.MIN_SECONDS else ""


class _Member(NamedTuple):
  """A file in a tar file: its bytes and where they lie, or why they are not there as such."""

  name: str
  offset: int = 0
  data: bytes = b""
  wrong: str = ""


class _Hashed:
  """A file that is read from beginning to end, all of which goes into a digest."""

  def __init__(self, file: BinaryIO, digest):
    self._file, self._digest, self._place = file, digest, 0

  def tell(self) -> int:
    return self._place

  def read(self, size: int) -> bytes:
    data = self._file.read(size)
    self._digest.update(data)
    self._place += len(data)
    return data

  def seek(self, place: int) -> None:
    """Goes on to a place, or to the end of the file before it; tarfile never goes back."""
    while self._place < place and self.read(min(place - self._place, _BLOCK)):
      pass


def _members(tar: pathlib.Path, digest) -> Iterator[_Member]:
  """The files in a tar file, all of which goes into a digest."""
  seen: dict[str, tuple[int, int]] = {}  # offset and bytes of what a hard link may lead to
  try:
    with tar.open("rb") as file:
      hashed = _Hashed(file, digest)
      with tarfile.open(fileobj=hashed, mode="r:") as opened:
        for entry in opened:
          if member := _member(tar, entry, hashed, seen):
            yield member
          opened.members.clear()  # which would hold all of them
        end = opened.offset
      hashed.seek(sys.maxsize)
  except (OSError, tarfile.TarError, EOFError) as error:
    raise UserError(
      f"{tar} is cut short, compressed or no tar file ({error}): shards need plain tar files; "
      "--drop leaves it out"
    ) from error
  if hashed.tell() < end:
    raise UserError(f"{tar} is cut short: --drop leaves it out")


def _member(
  tar: pathlib.Path, entry: tarfile.TarInfo, file: _Hashed, seen: dict[str, tuple[int, int]]
) -> _Member | None:
  """What an entry is whose header was read last; None for a folder or a device."""
  name, to = entry.name.removeprefix("./"), entry.linkname.removeprefix("./")
  if entry.issym():
    return _Member(name, wrong="a symbolic link: tar --dereference packs what it leads to")
  if entry.islnk() and to not in seen:
    return _Member(name, wrong=f"a hard link to {to}, which is not before it in the tar file")
  if entry.islnk():
    offset, size = seen[name] = seen[to]
    with tar.open("rb") as again:
      again.seek(offset)
      return _Member(name, offset, again.read(size))
  if not entry.isfile():
    return None
  if entry.issparse():
    return _Member(name, wrong="a sparse file, not there in one piece: pack it without --sparse")
  file.seek(entry.offset_data)
  data = file.read(entry.size)
  if len(data) != entry.size:
    raise tarfile.ReadError(f"{entry.name} ends early")
  seen[name] = entry.offset_data, entry.size
  return _Member(name, entry.offset_data, data)


def _with_texts(
  rows: list[tuple], texts: dict[str, bytes], stems: set[str]
) -> tuple[list[tuple], list[str]]:
  """Rows of WebDataset with what stands beside their recordings, and what stands beside none.

  Args:
    rows: of `Contents`.
    texts: name of a .txt or .json → its bytes.
    stems: names of all recordings without their last suffix.
  """
  beside: dict[str, dict[str, bytes]] = {}
  for name, data in texts.items():
    stem, suffix = os.path.splitext(name)
    beside.setdefault(stem, {})[suffix.lower()] = data
  rows = [(_with_text(part, beside), *rest) for part, *rest in rows]
  told = {_key(part.id) for part, *_ in rows if part.text is not None}
  owned = stems | set(map(_key, stems))
  unused = (name for name in texts if os.path.splitext(name)[0] not in owned)
  # More files beside a recording than its transcript are nothing that is lost.
  return rows, [name for name in unused if _key(name) not in told]


def _key(name: str) -> str:
  """What WebDataset knows a sample by: up to the first dot behind the folders."""
  folder, base = os.path.split(name)
  return os.path.join(folder, base.split(".")[0] or base)


def _with_text(part: Part, beside: dict[str, dict[str, bytes]]) -> Part:
  """With the transcript that stands beside a recording, or what is wrong there.

  u0.mono.flac has that of u0.mono.txt, or else of u0.txt.
  """
  for stem in (part.id, _key(part.id)):
    text, there = None, beside.get(stem, {})
    try:
      row = json.loads(there.get(".json", b"{}"))
      if isinstance(row, dict):
        text = next((row[name] for name in ("text", "txt", "transcript") if name in row), None)
      if ".txt" in there:
        text = there[".txt"].decode("utf-8-sig").strip()
    except (ValueError, RecursionError) as error:
      return part._replace(wrong=f"its .txt or .json cannot be read: {error}")
    text, wrong = manifest.told(text)
    if text is not None or wrong:
      return part._replace(text=text, wrong=wrong)
  return part
