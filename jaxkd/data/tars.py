"""Tar files of recordings → lists of what lies where: WebDataset, NeMo's tarred sets, Lhotse Shar.

Each tar file is read once from beginning to end, for the checksums; nothing is unpacked.
"""

import gzip
import hashlib
import json
import os
import pathlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from jaxkd.data import audio, manifest
from jaxkd.data.audio import BrokenAudio
from jaxkd.errors import UserError

_SUB = re.compile(r"-sub\d+(?=\.\w+$)")  # NeMo's names of further parts of one recording


class Part(NamedTuple):
  """An utterance in a recording of a tar file.

  Attributes:
    id: its name.
    start: seconds into the recording.
    seconds: its length; None for all of it.
    text: transcript; None for none.
    sure: whether it must be in this tar file.
    wrong: why it cannot be used; "" where nothing is known against it.
  """

  id: str
  start: float = 0.0
  seconds: float | None = None
  text: str | None = None
  sure: bool = False
  wrong: str = ""


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
  """The tar files of a folder and those below it, or a tar file itself; [] where it is neither."""
  if path.is_dir():
    numbers = lambda p: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", str(p))]
    return sorted(_below(path, ".tar"), key=numbers)
  return [path] if path.is_file() and path.suffix.lower() == ".tar" else []


def _below(folder: pathlib.Path, *suffixes: str) -> list[pathlib.Path]:
  """The files of some kinds in a folder and those below it, sorted."""
  there = map(pathlib.Path, manifest.walked(folder))
  return sorted(path for path in there if path.suffix.lower() in suffixes)


def manifests(path: pathlib.Path) -> dict[str, list[dict]]:
  """Name of a recording → NeMo's rows of it, by all manifests beside tar files.

  Raises:
    UserError: a line of a manifest is none, with its number.
  """
  there: dict[str, list[dict]] = {}
  for file in _below(path if path.is_dir() else path.parent, ".json", ".jsonl"):
    other = file.name in ("tarred_metadata.json", "metadata.json") or file.name.startswith("cuts.")
    for row in () if other or not file.is_file() else _rows_of(file):
      there.setdefault(row["audio_filepath"], []).append(row | {"_in": file.name})
  return there


def _rows_of(file: pathlib.Path) -> list[dict]:
  """The rows of a manifest, which has an "audio_filepath" in one line at least; [] of others."""
  rows, is_one, wrong = [], False, None
  try:
    lines = file.read_bytes().split(b"\n")
  except OSError as error:
    raise UserError(f"{file} cannot be read: {error.strerror}") from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    where = f"{file}:{number}"
    try:
      row = manifest.parsed(where, line)
      is_one = is_one or (isinstance(row, dict) and "audio_filepath" in row)
      rows.append(manifest.checked(where, row))
    except UserError as error:
      wrong = wrong or error
  if is_one and wrong is not None:
    raise wrong
  return rows


def parts_of(rows: dict[str, list[dict]], tar: pathlib.Path) -> dict[str, list[Part]] | None:
  """Member → its utterances, of NeMo's rows or of Lhotse's cuts beside a tar; None for neither."""
  if (cuts := cuts_beside(tar)) is not None:
    return _of_cuts(cuts)
  if not rows:
    return None
  shard = _number(tar)
  parts: dict[str, list[Part]] = {}
  for name, several in rows.items():
    for row in several:
      if row.get("shard_id", shard) == shard:
        parts.setdefault(_SUB.sub("", name), []).append(_part(name, row))
  return parts


def without_tar(rows: dict[str, list[dict]], tars: list[pathlib.Path]) -> list[tuple[str, str]]:
  """(id, reason) of NeMo's rows whose tar file is not among those that are there."""
  there = {_number(tar) for tar in tars}
  return [
    (manifest.printable(name), f"there is no tar file of its shard_id, {row['shard_id']}")
    for name, several in rows.items()
    for row in several
    if "shard_id" in row and not (isinstance(row["shard_id"], int) and row["shard_id"] in there)
  ]


def _number(tar: pathlib.Path) -> int | None:
  """By which NeMo's rows name a tar file."""
  number = re.search(r"(\d+)$", tar.stem)
  return int(number[1]) if number else None


def _part(name: str, row: dict) -> Part:
  start, seconds = float(row.get("offset") or 0), _seconds(row.get("duration"))
  text, wrong = manifest.told(row.get("text"))
  return Part(name, start, seconds, text, "shard_id" in row, wrong)


def _seconds(given) -> float | None:
  return float(given) if manifest.is_seconds(given) and given > 0 else None


def cuts_beside(tar: pathlib.Path) -> pathlib.Path | None:
  """Lhotse's cuts.000000.jsonl.gz of a recording.000000.tar."""
  number = re.fullmatch(r"recording\.(\d+)", tar.stem)
  if not number:
    return None
  names = [tar.with_name(f"cuts.{number[1]}.jsonl{end}") for end in (".gz", "")]
  return next((name for name in names if name.exists()), None)


def _of_cuts(path: pathlib.Path) -> dict[str, list[Part]]:
  """Key of a recording → the cut of the same id."""
  parts = {}
  try:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
      for cut in map(json.loads, lines):
        told = [s["text"] for s in cut.get("supervisions", ()) if isinstance(s.get("text"), str)]
        text, wrong = manifest.told(" ".join(told) if told else None)
        start, seconds = float(cut.get("start", 0)), _seconds(cut["duration"])
        parts[cut["id"]] = [Part(cut["id"], start, seconds, text, True, wrong)]
  except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise UserError(f"{path} cannot be read as Lhotse's cuts: {error}") from error
  except (zlib.error, OverflowError, RecursionError) as error:
    raise UserError(f"{path} cannot be read as Lhotse's cuts: {error}") from error
  return parts


def contents(tar: pathlib.Path, parts: dict[str, list[Part]] | None) -> Contents:
  """Reads a tar file once.

  Args:
    tar: the file.
    parts: of `parts_of`; None for WebDataset: what stands beside a recording under its key.

  Raises:
    UserError: cut short, compressed or no tar file.
  """
  rows, left_out, beside = [], [], {}
  lost = dict(parts or {})
  for name, offset, data in _members(tar):
    key, suffix = os.path.splitext(name)
    if suffix.lower() in (".txt", ".json") and parts is None:
      beside.setdefault(key, {})[suffix.lower()] = data
    is_told = name in (parts or {})
    if suffix.lower() not in (*audio.EXTENSIONS, *audio.UNREAD_EXTENSIONS) and not is_told:
      continue
    known = name if is_told else key
    given = [Part(key)] if parts is None else parts.get(known, ())
    lost.pop(known, None)
    if not given:
      left_out.append((name, "no row of a manifest is about it"))
    for part in given:
      try:
        seconds = _heard_seconds(part, suffix, data)
      except BrokenAudio as error:
        left_out.append((part.id, str(error)))
        continue
      rows.append((part._replace(seconds=seconds), offset, len(data), zlib.crc32(data)))
  if parts is None:
    rows = [(_told(part, beside.get(part.id, {})), *rest) for part, *rest in rows]
  left_out += [(part.id, part.wrong) for part, *_ in rows if part.wrong]
  left_out += [(p.id, f"not in {tar.name}") for of in lost.values() for p in of if p.sure]
  used = [
    (part._replace(id=manifest.printable(part.id)), *rest) for part, *rest in rows if not part.wrong
  ]
  return Contents(_digest(tar), used, [(manifest.printable(name), why) for name, why in left_out])


def _heard_seconds(part: Part, suffix: str, data: bytes) -> float:
  """The length of a part of a member; BrokenAudio where it cannot be heard."""
  if suffix.lower() not in audio.EXTENSIONS:
    raise BrokenAudio(manifest.unread(suffix))
  return audio.duration(data) - part.start if part.seconds is None else part.seconds


def _members(tar: pathlib.Path) -> Iterator[tuple[str, int, bytes]]:
  """(name, offset, bytes) of the files in a tar file."""
  try:
    with tarfile.open(tar, "r:") as opened:
      for member in opened:
        if not member.isfile():
          continue
        data = opened.extractfile(member).read()
        if len(data) != member.size:
          raise tarfile.ReadError(f"{member.name} ends early")
        opened.members.clear()  # which would hold all of them
        yield member.name.removeprefix("./"), member.offset_data, data
      size, end = os.path.getsize(tar), opened.offset
  except (OSError, tarfile.TarError, EOFError) as error:
    raise UserError(
      f"{tar} is cut short, compressed or no tar file ({error}): shards need plain tar files; "
      "--drop leaves it out"
    ) from error
  if size < end:
    raise UserError(f"{tar} is cut short: --drop leaves it out")


def _told(part: Part, beside: dict[str, bytes]) -> Part:
  """With the transcript and the length that stand beside a recording, or what is wrong there."""
  text, seconds = None, None
  try:
    row = json.loads(beside.get(".json", b"{}"))
    if isinstance(row, dict):
      text = next((row[name] for name in ("text", "txt", "transcript") if name in row), None)
      seconds = _seconds(row.get("duration"))
    if ".txt" in beside:
      text = beside[".txt"].decode("utf-8-sig").strip()
  except (ValueError, RecursionError) as error:
    return part._replace(wrong=f"its .txt or .json cannot be read: {error}")
  text, wrong = manifest.told(text)
  return part._replace(text=text, seconds=seconds or part.seconds, wrong=wrong)


def _digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
