"""Tar files of recordings → lists of what lies where: WebDataset, NeMo's tarred sets, Lhotse Shar.

Each tar file is read once from beginning to end, for the checksums; nothing is unpacked.
"""

import contextlib
import gzip
import hashlib
import json
import math
import os
import pathlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from jaxkd import files
from jaxkd.data import audio
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
  """

  id: str
  start: float = 0.0
  seconds: float | None = None
  text: str | None = None
  sure: bool = False


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
  if path.is_file():
    return [path] if path.suffix == ".tar" else []
  numbers = lambda p: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", str(p))]
  return sorted(path.rglob("*.tar"), key=numbers) if path.is_dir() else []


def manifests(path: pathlib.Path) -> dict[str, list[dict]]:
  """Name of a recording → NeMo's rows of it, by all manifests beside tar files.

  Raises:
    UserError: a line that is no JSON.
  """
  there: dict[str, list[dict]] = {}
  folder = path if path.is_dir() else path.parent
  for file in sorted({*folder.rglob("*.json"), *folder.rglob("*.jsonl")}):
    if file.name in ("tarred_metadata.json", "metadata.json") or file.name.startswith("cuts."):
      continue
    with contextlib.suppress(UserError):  # of another kind
      for row in files.read_jsonl(file):
        if isinstance(row, dict) and isinstance(row.get("audio_filepath"), str):
          there.setdefault(row["audio_filepath"], []).append(row | {"_in": file.name})
  return there


def parts_of(rows: dict[str, list[dict]], tar: pathlib.Path) -> dict[str, list[Part]] | None:
  """Member → its utterances, of NeMo's rows or of Lhotse's cuts beside a tar; None for neither."""
  if (cuts := cuts_beside(tar)) is not None:
    return _of_cuts(cuts)
  if not rows:
    return None
  number = re.search(r"(\d+)$", tar.stem)
  shard = int(number[1]) if number else None
  parts: dict[str, list[Part]] = {}
  for name, several in rows.items():
    for row in several:
      if row.get("shard_id", shard) == shard:
        parts.setdefault(_SUB.sub("", name), []).append(_part(name, row))
  return parts


def _part(name: str, row: dict) -> Part:
  text, seconds = row.get("text"), row.get("duration")
  text = text if isinstance(text, str) and not files.SURROGATE.search(text) else None
  return Part(name, float(row.get("offset") or 0), _seconds(seconds), text, "shard_id" in row)


def _seconds(given) -> float | None:
  number = isinstance(given, int | float) and not isinstance(given, bool)
  return float(given) if number and math.isfinite(given) and given > 0 else None


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
        text = " ".join(told) if told else None
        start, seconds = float(cut.get("start", 0)), _seconds(cut["duration"])
        parts[cut["id"]] = [Part(cut["id"], start, seconds, text, True)]
  except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
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
    for known in (name, key):
      lost.pop(known, None)
    if suffix.lower() not in audio.EXTENSIONS:
      if suffix in (".txt", ".json") and parts is None:
        beside.setdefault(key, {})[suffix] = data
      continue
    given = [Part(key)] if parts is None else parts.get(name) or parts.get(key)
    if not given:
      left_out.append((name, "no row of a manifest is about it"))
    for part in given or ():
      try:
        seconds = audio.duration(data) - part.start if part.seconds is None else part.seconds
      except BrokenAudio as error:
        left_out.append((part.id, str(error)))
        continue
      rows.append((part._replace(seconds=seconds), offset, len(data), zlib.crc32(data)))
  if parts is None:
    rows = [(_told(part, beside.get(part.id, {})), *rest) for part, *rest in rows]
  left_out += [(p.id, f"not in {tar.name}") for of in lost.values() for p in of if p.sure]
  return Contents(_digest(tar), rows, left_out)


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
  """With the transcript and the length that stand beside a recording."""
  text, seconds = None, None
  with contextlib.suppress(ValueError):
    row = json.loads(beside.get(".json", b"{}"))
    if isinstance(row, dict):
      text = next((row[name] for name in ("text", "txt", "transcript") if name in row), None)
      seconds = _seconds(row.get("duration"))
  if ".txt" in beside:
    text = beside[".txt"].decode("utf-8", "replace").strip()
  text = text if isinstance(text, str) and not files.SURROGATE.search(text) else None
  return part._replace(text=text, seconds=seconds or part.seconds)


def _digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
