"""NeMo's manifests and Lhotse's cuts → what is said about the members of tar files."""

import functools
import gzip
import hashlib
import json
import pathlib
import re
import zlib
from typing import NamedTuple

from jaxkd.data import manifest
from jaxkd.errors import UserError

_SUB = re.compile(r"-sub\d+(?=\.\w+$)")  # NeMo's names of further parts of one recording
_SHAR = re.compile(r"recording(\..+)?")  # Lhotse's names; without shards, with no suffix or any
# What reading and taking apart a file raises that is cut short, no JSON or of other rows.
_NO_CUTS = (
  *(OSError, EOFError, zlib.error, ValueError, OverflowError, RecursionError),
  *(LookupError, TypeError, AttributeError),
)
_FIRST_BYTES = 1 << 20  # in which the first line of a manifest ends


class Part(NamedTuple):
  """An utterance in a recording of a tar file.

  Attributes:
    id: its name.
    start: seconds into the recording.
    seconds: its length; None for all of it.
    text: transcript; None for none.
    wrong: why it cannot be used; "" where nothing is known against it.
  """

  id: str
  start: float = 0.0
  seconds: float | None = None
  text: str | None = None
  wrong: str = ""


Parts = dict[str, list[Part]]  # of each member


class Told(NamedTuple):
  """What NeMo's manifests of a folder say.

  Attributes:
    folder: theirs.
    of_shard: shard_id → the parts of its members; one that is no whole number is a string.
    of_any: parts of members of whichever tar file, by rows without a shard_id.
    digest: another one where a row is another.
  """

  folder: pathlib.Path
  of_shard: dict[int | str, Parts]
  of_any: Parts
  digest: str


class Listed(NamedTuple):
  """What is said about the members of one tar file.

  Attributes:
    here: parts of members that must be in it.
    anywhere: parts of members that may be in it, where nothing else is said about these.
  """

  here: Parts
  anywhere: Parts


def manifests(path: pathlib.Path, tars: list[pathlib.Path]) -> dict[pathlib.Path, Told]:
  """Tar file → what NeMo's manifests say, of those that some speak for.

  A manifest speaks for the tar files of its own folder, or where there are none, for those of
  folders below that have no nearer one.

  Args:
    path: the tar file, or the folder that they were found in.
    tars: of `tars.found`.

  Raises:
    UserError: a line of a manifest is none, with its number.
  """
  top = path if path.is_dir() else path.parent
  with_tars = {tar.parent for tar in tars}
  told_in = functools.cache(_told_in)
  said = {}
  for tar in tars:
    above = (f for f in tar.parent.parents if f.is_relative_to(top) and f not in with_tars)
    told = next(filter(None, map(told_in, (tar.parent, *above))), None)
    if told is not None:
      said[tar] = told
  return said


def _told_in(folder: pathlib.Path) -> Told | None:
  """What all manifests of a folder say; None where there are none."""
  rows = []
  for file in sorted(folder.glob("*")):
    if _may_be_manifest(file):
      rows += [row | {"_in": file.name} for row in _rows_of(file)]
  if not rows:
    return None
  rows = _each_once(folder, rows)
  digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
  told = Told(folder, {}, {}, digest)
  for row in rows:
    shard, name = row.get("shard_id"), row["audio_filepath"]
    key = shard if isinstance(shard, int) else str(shard)
    parts = told.of_any if shard is None else told.of_shard.setdefault(key, {})
    parts.setdefault(_SUB.sub("", name), []).append(_part(name, row))
  return told


def _each_once(folder: pathlib.Path, rows: list[dict]) -> list[dict]:
  """Rows without what an earlier manifest of the folder says; one may repeat its own on purpose.

  Raises:
    UserError: two manifests give the same part of a recording other transcripts.
  """
  found, said = manifest.Again([], [], []), {}  # part → transcript → the first manifest with it
  for place, row in enumerate(rows):
    name, file, text = row["audio_filepath"], row["_in"], row.get("text")
    part = (str(row.get("shard_id")), name, row.get("offset") or 0, row.get("duration"))
    files = said.setdefault(part, {})
    if text in files:
      (found.repeated if files[text] == file else found.left_out).append((0, place))
    elif other := next((f for f in files.values() if f != file), None):
      raise UserError(
        f"{folder / other} and {file} have different transcripts of {manifest.printable(name)}: "
        "all manifests of a folder count: move one of these out of it"
      )
    elif files:
      found.differing.append((0, place))
    files.setdefault(text, file)
  found.warn(str(folder), [[manifest.printable(row["audio_filepath"]) for row in rows]])
  gone = {place for _, place in found.left_out}
  return [row for place, row in enumerate(rows) if place not in gone]


def unheard(
  path: pathlib.Path, tars: list[pathlib.Path], told: dict[pathlib.Path, Told]
) -> list[pathlib.Path]:
  """Manifests in a folder that speak for no tar file, where one is there that none speaks for."""
  if not path.is_dir() or all(tar in told or cuts_beside(tar) for tar in tars):
    return []
  heard = {of.folder for of in told.values()}
  others = (p for p in map(pathlib.Path, manifest.walked(path)) if p.parent not in heard)
  return sorted(p for p in others if _may_be_manifest(p) and _is_manifest(p))


def _may_be_manifest(file: pathlib.Path) -> bool:
  """Whether NeMo could have given it that name."""
  other = file.name in ("tarred_metadata.json", "metadata.json") or file.name.startswith("cuts.")
  return file.suffix.lower() in (".json", ".jsonl") and not other and file.is_file()


def _is_manifest(file: pathlib.Path) -> bool:
  """Whether it looks like one by its first line."""
  try:
    with file.open("rb") as lines:
      row = json.loads(lines.readline(_FIRST_BYTES))
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(row, dict) and "audio_filepath" in row


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


def of_tar(told: Told | None, tar: pathlib.Path) -> Listed | None:
  """What Lhotse's cuts beside a tar file say, or NeMo's manifests; None for WebDataset.

  Raises:
    UserError: Lhotse's cuts are damaged, or not there.
  """
  if (cuts := cuts_beside(tar)) is not None:
    return Listed(_of_cuts(cuts), {})
  if told is not None:
    return Listed(told.of_shard.get(_number(tar), {}), told.of_any)
  if _SHAR.fullmatch(tar.stem):
    raise UserError(
      f"{tar}: its cuts, {_cuts_of(tar)[0].name}, are not beside it: --drop leaves it out; one "
      "that is not of Lhotse Shar needs another name"
    )
  return None


def without_tar(told: dict[pathlib.Path, Told]) -> list[tuple[str, str]]:
  """(id, reason) of NeMo's rows whose tar file is not among those that their manifest is for."""
  numbers: dict[pathlib.Path, set] = {}
  for tar, of in told.items():
    numbers.setdefault(of.folder, set()).add(_number(tar))
  return [
    (manifest.printable(part.id), f"there is no tar file of its shard_id, {shard}")
    for of in {of.folder: of for of in told.values()}.values()
    for shard, parts in of.of_shard.items()
    if shard not in numbers[of.folder]
    for several in parts.values()
    for part in several
  ]


def _number(tar: pathlib.Path) -> int | None:
  """By which NeMo's rows name a tar file."""
  number = re.search(r"(\d+)$", tar.stem)
  return int(number[1]) if number else None


def _part(name: str, row: dict) -> Part:
  start, seconds = float(row.get("offset") or 0), _seconds(row.get("duration"))
  text, wrong = manifest.told(row.get("text"))
  return Part(name, start, seconds, text, wrong)


def _seconds(given) -> float | None:
  return float(given) if manifest.is_seconds(given) and given > 0 else None


def cuts_beside(tar: pathlib.Path) -> pathlib.Path | None:
  """Lhotse's cuts of a tar file; None where they are not there, or it is not Lhotse's."""
  return next((path for path in _cuts_of(tar) if path.exists()), None)


def _cuts_of(tar: pathlib.Path) -> list[pathlib.Path]:
  """Where Lhotse may have the cuts of recording.tar, or of recording.SHARD.tar."""
  if not (named := _SHAR.fullmatch(tar.stem)):
    return []
  return [tar.with_name(f"cuts{named[1] or ''}.jsonl{end}") for end in (".gz", "")]


def _of_cuts(path: pathlib.Path) -> Parts:
  """Key of a recording → the cut of the same id."""
  parts = {}
  try:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
      for cut in map(json.loads, lines):
        told = [s["text"] for s in cut.get("supervisions", ()) if isinstance(s.get("text"), str)]
        text, wrong = manifest.told(" ".join(told) if told else None)
        start, seconds = float(cut.get("start", 0)), _seconds(cut["duration"])
        parts[cut["id"]] = [Part(cut["id"], start, seconds, text, wrong)]
  except _NO_CUTS as error:
    raise UserError(f"{path} cannot be read as Lhotse's cuts: {error}") from error
  return parts
