"""jaxkd distil: a teacher and a folder of audio in, a small recogniser out; no transcripts.

The same run as `jaxkd train --config=standard:manifest-SIZE …`, which it prints: all frames
carry the loss, since audio that people bring has pauses of any length (docs/rules.md).
"""

import collections
import contextlib
import hashlib
import itertools
import logging
import os
import pathlib
import re
import shlex

from jaxkd import buckets, files, workdirs
from jaxkd import config as config_lib
from jaxkd.commands import line, train
from jaxkd.errors import UserError

log = logging.getLogger(__name__)
_EPILOG = """\
No transcript is read, so any speech of the language will do. All frames carry
the loss; --config.kd.selection.name=symmetric takes those beside what the
teacher hears as a label, and leaves the middle of long pauses untaught.

examples:
  %(prog)s --teacher=facebook/hubert-large-ls960-ft \\
    --audio=recordings
  %(prog)s --teacher=runs/teacher --audio=a,b --size=tiny \\
    --dev=dev.jsonl --config.training.epochs=20"""
# Of audio without dev data: one of so many recordings, but no more than so many.
_HELD_OUT_EVERY, _HELD_OUT_MOST = 20, 200


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.in_buckets = ("--teacher", "--audio", "--dev", "--test", "--out")
  parser.epilog = _EPILOG
  add = parser.add_argument
  add(
    "--teacher",
    required=True,
    metavar="SOURCE",
    help="a model with CTC head in Hugging Face's layout (a folder, or org/name on its hub), or "
    "the workdir of a finished run; several with commas between are averaged",
  )
  add(
    "--audio",
    required=True,
    metavar="DATA",
    help="what is learnt from: folders, recordings, manifests, with commas between",
  )
  sizes = "; ".join(f"{name}: {size.about}" for name, size in config_lib.SIZES.items())
  add("--size", choices=tuple(config_lib.SIZES), default="small", help=sizes)
  add("--dev", metavar="DATA", default="", help="chooses the best student; default: held-out audio")
  add("--test", metavar="DATA", default="", help="transcribed, for a word error rate at the end")
  add("--out", metavar="DIR", help="the workdir (default runs/distil-AUDIO)")
  parser.add_fields("a field of the config, as for train")


def run(args) -> int:
  """Trains as the train command does; returns the exit status."""
  _refuse_fields(args.config_fields)
  named = args.out or f"runs/distil-{_short(args.audio)}"
  folder = buckets.place(named)
  absent = [part for part in (folder / "data", folder, *folder.parents) if not part.exists()]
  there = set((folder / "data").glob("*.jsonl"))
  data, dev = (args.audio, args.dev) if args.dev else hold_out(args.audio, folder)
  given = {
    "teacher.source": _absolute(args.teacher),
    "data.train": data,
    "data.dev": dev,
    "data.test": args.test,
  }
  flags = [f"--config.{name}={value}" for name, value in given.items() if value]
  args.config, args.workdir = f"{_variant(folder)}:manifest-{args.size}", named
  args.config_fields = [*flags, *args.config_fields]
  said = [f"--config={args.config}", f"--workdir={args.workdir}", *args.config_fields]
  log.info("the same as: %s train %s", line.pasted(), " ".join(map(shlex.quote, said)))
  try:
    return train.train(args)
  except UserError as error:
    if not args.dev and _config(folder).get("data", {}).get("train") != data:
      _take_back({folder / "data" / os.path.basename(name) for name in (data, dev)} - there, absent)
    raise type(error)(str(error).replace("--workdir=", "--out=")) from error


def _refuse_fields(given: list[str]) -> None:
  """UserError for fields that distil has flags of its own for, or cannot have."""
  own = {"teacher.source": "teacher", "data.train": "audio", "data.dev": "dev", "data.test": "test"}
  for flag in given:
    name, _, value = flag.removeprefix("--config.").partition("=")
    if name in own:
      raise UserError(f"--config.{name}: give it as --{own[name]}={value or 'DATA'}")
    if name == "kd.scale":
      raise UserError("--config.kd.scale: distil reads no transcripts; jaxkd train does")


def _variant(folder: pathlib.Path) -> str:
  """The config of the run in a folder, which older versions began as symmetric; else standard."""
  if _config(folder).get("variant") != "symmetric":
    return "standard"
  log.info("%s was begun with --config=symmetric, and goes on so", folder)
  return "symmetric"


def _config(folder: pathlib.Path) -> dict:
  path = folder / workdirs.CONFIG
  return files.read_json(path, dict) if path.exists() else {}


def _take_back(lists: set[pathlib.Path], absent: list[pathlib.Path]) -> None:
  """Removes held-out lists that no run has, and the folders that were made for them."""
  for path in lists:
    path.unlink(missing_ok=True)
  with contextlib.suppress(OSError):  # something else is there
    for part in absent:
      part.rmdir()


def _short(audio: str) -> str:
  """A name for a workdir."""
  name = pathlib.Path(audio.split(",")[0].rstrip("/")).stem
  return re.sub(r"[^\w.-]+", "-", name).strip("-") or "audio"


def _absolute(teacher: str) -> str:
  """A teacher's folders by their whole paths, so that the run can be resumed from anywhere."""
  whole = lambda name: os.path.abspath(name) if os.path.isdir(name) else name
  return ",".join(whole(os.path.expanduser(part.strip())) for part in teacher.split(","))


def hold_out(audio: str, folder: pathlib.Path) -> tuple[str, str]:
  """Splits audio in two: what is learnt from, and what the student is compared with its teacher on.

  A recording's name decides, so that more of them may be added later; all of its parts go to one
  side, by whatever names and links they are given. Of what cannot be used none is drawn.

  Args:
    audio: names of data, as for `data.sources.open_source`.
    folder: the workdir, where both manifests are written, under names that their content decides:
      those of a run that is there stay what they are.

  Returns:
    Paths of the manifests.

  Raises:
    UserError: the audio is not there, or too little to hold out any; a folder that cannot be
      written.
  """
  from jaxkd.data import manifest
  from jaxkd.training import workdir

  recordings = _recordings(audio)
  if not recordings:
    raise UserError(f"--audio={audio} has no rows: it must be audio, or a manifest that names some")
  if len(recordings) < 2:
    raise UserError(f"--audio={audio} is a single recording: give --dev=DATA beside it")
  held = _drawn(audio, recordings)
  workdir.check_usable(folder)
  kept = [e._replace(text=None) for r in recordings if r not in held for e in recordings[r]]
  dev = [e for r in recordings if r in held for e in recordings[r]]
  said = (
    "no --dev: %d of %d recordings are held out; the student is chosen by its KL to the teacher"
  )
  log.info(said, len(held), len(recordings))
  paths = []
  for name, entries in (("train", kept), ("dev", dev)):
    content = [(os.path.abspath(e.path), e.offset, e.seconds, e.text) for e in entries]
    paths.append(folder / "data" / f"{name}-{_digest(repr(content)).hex()[:8]}.jsonl")
    manifest.to_file(paths[-1], entries)
  buckets.publish(folder)
  return buckets.name(paths[0]), buckets.name(paths[1])


def _recordings(audio: str) -> dict:
  """Path behind links → what is given of a recording, each part once, as lists of entries."""
  from jaxkd.data import manifest, sources
  from jaxkd.data.corpora import Options

  names = sources.different_parts(audio)
  lists = [sources.entries(name, Options()) for name in names]
  behind = manifest.behind_links()
  folders = [os.path.isdir(os.path.expanduser(name)) for name in names]
  gone = set()
  if len(lists) > 1 or any(folders):
    gone = _given_again(audio, lists, folders, behind)
  recordings = collections.defaultdict(list)
  for number, entries in enumerate(lists):
    for place, entry in enumerate(entries):
      if (number, place) not in gone:
        recordings[behind(entry.path)].append(entry)
  return recordings


def _given_again(audio: str, lists: list[list], folders: list[bool], behind) -> set:
  """(list, place) of parts that another list has, too, or that links in a folder lead to."""
  from jaxkd.data import manifest
  from jaxkd.data.audio import BrokenAudio

  ends = {True: set(), False: set()}
  for entry in itertools.chain(*lists):
    ends[entry.seconds is None].add(behind(entry.path))
  to_compare = ends[True] & ends[False]

  def seconds(entry) -> float:
    """-1 for all that follows, unless there are parts of the recording whose length is given."""
    with contextlib.suppress(BrokenAudio):
      if entry.seconds is None and behind(entry.path) in to_compare:
        return manifest.length(entry)
    return -1.0 if entry.seconds is None else entry.seconds

  # Transcripts are not learnt from: which they are is all the same.
  found = manifest.again(
    [
      (
        [(e.path, e.offset, seconds(e)) for e in entries],
        [None if e.text is None else "" for e in entries],
        not folder,
      )
      for entries, folder in zip(lists, folders, strict=True)
    ],
    behind,
  )
  found = found._replace(repeated=[])  # training says that
  found.warn(f"--audio={audio}", [[entry.id for entry in entries] for entries in lists])
  return set(found.left_out)


def _drawn(audio: str, recordings: dict) -> set[str]:
  """Those of `_recordings` that are held out, and can be used as one of the others can."""
  lot = lambda path: int.from_bytes(_digest(recordings[path][0].id)[:8], "big")
  usable = lambda path: any(map(_is_usable, recordings[path]))
  order = sorted(recordings, key=lot)
  drawn = (path for path in order if lot(path) % _HELD_OUT_EVERY == 0)
  most = min(_HELD_OUT_MOST, len(recordings) - 1)
  held = list(itertools.islice(filter(usable, drawn), most))
  held = held or list(itertools.islice(filter(usable, order), 1))
  if not held:
    raise UserError(f"--audio={audio}: none of its {len(recordings)} recordings can be used")
  if not any(usable(path) for path in order if path not in held):
    held.pop()
  if not held:
    raise UserError(
      f"--audio={audio} has one recording that can be used: give --dev=DATA beside it"
    )
  return set(held)


def _is_usable(entry) -> bool:
  from jaxkd.data import manifest
  from jaxkd.data.audio import BrokenAudio

  try:
    return manifest.length(entry) > 0
  except BrokenAudio:
    return False


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode(errors="surrogateescape")).digest()
