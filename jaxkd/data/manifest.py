"""Manifests (JSON lines), folders of audio and single recordings → what lies where, unread."""

import collections
import functools
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from jaxkd import buckets, files
from jaxkd.data import audio
from jaxkd.errors import UserError

log = logging.getLogger(__name__)

# Endings of tar files that are not read as they are → what makes plain ones.
COMPRESSED_TARS = {
  **{".tar.gz": "gunzip", ".tgz": "gunzip", ".tar.bz2": "bunzip2"},
  **{".tar.xz": "unxz", ".tar.zst": "unzstd"},
}
# A longer one is compared with its file: milliseconds by mistake would size all batches.
LONG_SECONDS = 60.0
# Manifests round: a length there and that of a file's header are the same.
_ROUNDED_SECONDS = 0.02


class Entry(NamedTuple):
  """An utterance, or what is given as one.

  Attributes:
    id: unique in its source, and writable as UTF-8.
    path: of the recording.
    offset: where in it the utterance starts, in seconds.
    seconds: its length; None for all that follows.
    text: transcript; None for none.
    wrong: why it cannot be used; "" where nothing is known against it.
  """

  id: str
  path: str
  offset: float = 0.0
  seconds: float | None = None
  text: str | None = None
  wrong: str = ""


class Again(NamedTuple):
  """(list, place) of what comes again in lists of parts of recordings.

  Attributes:
    left_out: with a transcript of an earlier one, or with none.
    repeated: the same in one list that may repeat on purpose; kept.
    differing: with another transcript; kept.
  """

  left_out: list[tuple[int, int]]
  repeated: list[tuple[int, int]]
  differing: list[tuple[int, int]]

  def warn(self, spec: str, ids: Sequence[Sequence[str]]) -> None:
    """A line about each kind that there is; `ids` are those of the lists."""
    for where, said in zip(self, _AGAIN, strict=True):
      if where:
        number, place = min(where)
        count = f"{len(where)} utterance{'s' * (len(where) > 1)}"
        log.warning("%s: %s: %s, %s the first", spec, said, count, ids[number][place])


_AGAIN = (
  "left out, as the same part of the same recording is there already",
  "there again in one manifest, where each of them counts",
  "another transcript of the same part of the same recording, and both count",
)


def of_file(path: pathlib.Path, beside: str = "") -> list[Entry]:
  """The utterances of a manifest.

  Args:
    path: of the file.
    beside: the folder that its paths start from; "" for the file's own.

  Raises:
    UserError: not UTF-8 or not JSON lines, or a field of another type; with the line's number.
  """
  try:
    # Not splitlines(): a JSON string may hold other line separators than this one.
    lines = path.read_text(encoding="utf-8-sig").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path} cannot be read as a manifest (UTF-8 JSON lines): {error}") from error
  rows = [_row(f"{path}:{n}", line) for n, line in enumerate(lines, 1) if line.strip()]
  names = numbered(printable(row["audio_filepath"]) for row in rows)
  beside = beside or str(path.parent)
  return [_entry(name, row, beside) for name, row in zip(names, rows, strict=True)]


def to_file(path: pathlib.Path, entries: list[Entry]) -> None:
  """Writes what `of_file` reads, with absolute paths, whole or not at all."""
  rows = []
  for entry in entries:
    path_ = entry.path if buckets.is_url(entry.path) else os.path.abspath(entry.path)
    row = {"audio_filepath": path_}
    given = {"offset": entry.offset or None, "duration": entry.seconds, "text": entry.text}
    rows.append(row | {name: value for name, value in given.items() if value is not None})
  files.write_jsonl(path, rows)


def of_bucket(url: str) -> list[Entry]:
  """The utterances of a manifest, a folder of audio or a recording in a bucket.

  Raises:
    UserError: not there, of a kind that is not decoded, or malformed.
  """
  kind, suffix = buckets.exists(url), os.path.splitext(url)[1].lower()
  if kind == "object" and suffix in (*audio.EXTENSIONS, *audio.UNREAD_EXTENSIONS):
    (entry,) = of_recording(pathlib.Path(os.path.basename(url)))
    return [entry._replace(path=url)]
  if kind == "object":
    return of_file(buckets.here(url), os.path.dirname(url))
  if not kind:
    raise UserError(f"{url}: no such object or folder")
  names = (name for name in buckets.listed(url) if not is_admin(name))
  return _of_names(url, names, lambda name: buckets.join(url, name))


def of_recording(path: pathlib.Path) -> list[Entry]:
  """A recording as one utterance.

  Raises:
    UserError: of a kind that is not decoded here.
  """
  if path.suffix.lower() in audio.UNREAD_EXTENSIONS:
    raise UserError(f"{path}: {unread(path.suffix)}")
  return [Entry(printable(path.name), str(path))]


def of_folder(name: str, folder: pathlib.Path) -> list[Entry]:
  """All recordings in a folder and below it, in the folders that it links to, too.

  Args:
    name: as the user gave it.
    folder: where to look.

  Raises:
    UserError: none there.
  """
  names = (os.path.relpath(path, folder) for path in walked(folder))
  return _of_names(name, names, lambda below: str(folder / below))


def _of_names(name: str, files_: Iterable[str], whole: Callable[[str], str]) -> list[Entry]:
  """Those of a folder's files that are recordings; `whole` makes a path of a file's name."""
  found, kinds, tarred = [], collections.Counter(), 0
  for below in files_:
    suffix = os.path.splitext(below)[1].lower()
    if suffix in audio.EXTENSIONS:
      found.append(pathlib.PurePath(below))
    elif suffix in audio.UNREAD_EXTENSIONS:
      kinds[suffix] += 1
    tarred += below.lower().endswith((".tar", *COMPRESSED_TARS))
  counts = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common())
  if not found and tarred:
    raise UserError(
      f"{name}: {tarred} tar files and no audio: jaxkd shard {name} --out=DIR writes an index of "
      "them, which is data"
    )
  if not found:
    there = f"; {counts} there: {_cure(kinds.most_common()[0][0])}" if kinds else ""
    raise UserError(f"{name}: no audio in this folder ({', '.join(audio.EXTENSIONS)}){there}")
  if kinds:
    log.warning("%s: not read: %s: %s", name, counts, _cure(kinds.most_common()[0][0]))
  if tarred:
    beside = "%s: not read: %d tar files beside recordings: jaxkd shard indexes a folder of these"
    log.warning(beside + " alone", name, tarred)
  found.sort()
  names = numbered(printable(str(below)) for below in found)
  return [Entry(unique, whole(str(below))) for unique, below in zip(names, found, strict=True)]


def walked(folder: pathlib.Path) -> Iterator[str]:
  """Paths of all files, behind links, too; what several links lead to is looked into once.

  What macOS keeps of a file beside it, ._x.wav of x.wav, is none.
  """
  seen = {os.path.realpath(folder)}
  unseen = lambda error: log.warning("%s: not looked into: %s", error.filename, error.strerror)
  for here, folders, names in os.walk(folder, followlinks=True, onerror=unseen):
    kept = []
    for name in sorted(folders):
      real = os.path.realpath(os.path.join(here, name))
      if real not in seen:
        seen.add(real)
        kept.append(name)
    folders[:] = kept
    yield from (os.path.join(here, name) for name in names if not is_admin(name))


def is_admin(path: str) -> bool:
  """Whether it has the name of what macOS keeps of a file beside it, with its ending."""
  return os.path.basename(path).startswith("._")


def behind_links() -> Callable[[str], str]:
  """A function of paths that is equal where they lead to the same file.

  It asks once about each path and folder, and not about what lies in buckets.
  """
  whole = functools.cache(os.path.realpath)

  @functools.cache
  def behind(path: str) -> str:
    folder, name = os.path.split(path)
    try:
      if buckets.is_url(path):
        return path
      return os.path.realpath(path) if os.path.islink(path) else os.path.join(whole(folder), name)
    except ValueError:  # no file has such a name
      return path

  return behind


def again(
  lists: Sequence[tuple[Sequence[tuple[str, float, float]], Sequence[str | None], bool]],
  behind: Callable[[str], str],
) -> Again:
  """What comes again; of a part with and without a transcript that without is left out.

  Args:
    lists: (path, offset, seconds) of each utterance, its transcript, and whether the list may
      repeat on purpose, as manifests do.
    behind: of `behind_links`.
  """
  found, seen = Again([], [], []), {}
  beginning = lambda part: (behind(part[0]), round(part[1], 3))
  once, several = set(), set()
  for parts, *_ in lists:
    for part in parts:
      # The number alone takes a tenth of the memory, and of parts that share one more is asked.
      begins = hash(beginning(part))
      (several if begins in once else once).add(begins)
  for told in (True, False) if several else ():
    for number, (parts, texts, on_purpose) in enumerate(lists):
      for place, (part, text) in enumerate(zip(parts, texts, strict=True)):
        if told != (text is not None) or hash(beginning(part)) not in several:
          continue
        seconds, there = part[2], seen.setdefault(beginning(part), [])
        said = next((said for s, said in there if abs(s - seconds) < _ROUNDED_SECONDS), None)
        if said is None:
          there.append((seconds, {text: number}))
        elif told and text not in said:
          said[text] = number
          found.differing.append((number, place))
        else:
          here = number == said[text] if text in said else number in said.values()
          (found.repeated if here and on_purpose else found.left_out).append((number, place))
  return found


def unread(suffix: str) -> str:
  """Why a recording of a kind that is not decoded here is left out."""
  return f"{suffix} is not read: {_cure(suffix)}"


def _cure(suffix: str) -> str:
  return f"make FLAC of these, with ffmpeg -i x{suffix} x.flac"


def _row(where: str, line: str) -> dict:
  """One checked row of a manifest; `where` is file:line."""
  row = checked(where, parsed(where, line))
  if buckets.is_url(row["audio_filepath"]):
    try:
      buckets.check_scheme(row["audio_filepath"])
    except UserError as error:
      raise UserError(f"{where}: {error}") from error
  return row


def parsed(where: str, line: str | bytes):
  """The JSON of a line, `where` is file:line; UserError where it is none."""
  try:
    return json.loads(line)
  except RecursionError as error:
    raise UserError(f"{where}: not JSON (too many brackets in brackets)") from error
  except ValueError as error:
    raise UserError(f"{where}: not JSON ({error})") from error


def checked(where: str, row) -> dict:
  """A row whose fields are what they must be; UserError with `where` where they are not."""
  if not isinstance(row, dict) or not isinstance(row.get("audio_filepath"), str):
    raise UserError(f'{where}: each line must be an object with a string "audio_filepath"')
  for field in ("duration", "offset"):
    value = row.get(field)
    if value is not None and not is_seconds(value):
      raise UserError(f'{where}: "{field}" is {value!r:.60}: it must be seconds, 0 or more')
  if not isinstance(row.get("text", ""), (str, type(None))):
    raise UserError(f'{where}: "text" is {row["text"]!r}: it must be a string')
  return row


def length(entry: Entry) -> float:
  """Seconds of an utterance; BrokenAudio where it cannot be used."""
  seconds = entry.seconds
  if entry.wrong:
    raise audio.BrokenAudio(entry.wrong)
  if seconds is None:
    seconds = audio.duration(entry.path) - entry.offset
  # Of what lies in a bucket, one question each would take hours: it is seen when it is read.
  elif not buckets.is_url(entry.path) and not os.path.isfile(entry.path):
    raise audio.BrokenAudio("no such file")
  elif seconds > LONG_SECONDS and seconds > audio.duration(entry.path) - entry.offset + 1:
    raise audio.BrokenAudio(f"is shorter than the {seconds:g} s that the manifest says")
  if seconds < audio.MIN_SECONDS:
    raise audio.BrokenAudio(f"empty or too short ({seconds:g} s)")
  return seconds


def is_seconds(value) -> bool:
  """Whether it is a number that seconds can be: no integer beyond what a float holds, either."""
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return number and 0 <= value <= sys.float_info.max


def told(text) -> tuple[str | None, str]:
  """A transcript, and why its utterance cannot be used; "" for nothing."""
  if text is not None and not isinstance(text, str):
    return None, f'"text" is {text!r:.60}: it must be a string'
  if text is not None and files.SURROGATE.search(text):
    return None, "half a character (a lone surrogate) in its text"
  return text, ""


def _entry(unique: str, row: dict, folder: str) -> Entry:
  seconds = row.get("duration")
  text, wrong = told(row.get("text"))
  return Entry(
    id=unique,
    path=_joined(folder, row["audio_filepath"]),
    offset=float(row.get("offset") or 0.0),
    seconds=None if seconds is None else float(seconds),
    text=text,
    wrong=wrong,
  )


def _joined(folder: str, path: str) -> str:
  """A path that a manifest in a folder names; either may be in a bucket."""
  path = os.path.expanduser(path)
  in_bucket = buckets.is_url(folder) or buckets.is_url(path)
  return buckets.join(folder, path) if in_bucket else os.path.join(folder, path)


def numbered(names: Iterable[str]) -> list[str]:
  """The names, numbered from the second time on that one occurs; no two of them are equal."""
  counts, used = collections.Counter(), set()
  found = []
  for name in names:
    unique = name
    while unique in used:  # the numbered name, too, where it was given as it is
      counts[name] += 1
      unique = f"{name}#{counts[name] + 1}"
    used.add(unique)
    found.append(unique)
  return found


def printable(name: str) -> str:
  """A name with the bytes that are no UTF-8 as \\xNN: results are written as UTF-8."""
  if not files.SURROGATE.search(name):
    return name
  try:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
  except UnicodeEncodeError:  # half a character of UTF-16, which no file's name has
    return name.encode("utf-8", "backslashreplace").decode()
