"""jaxkd distil: a teacher and a folder of audio in, a small recogniser out; no transcripts.

The same run as `jaxkd train --config=standard:manifest-SIZE …`, which it prints: all frames
carry the loss, since audio that people bring has pauses of any length (docs/rules.md).
"""

import collections
import contextlib
import hashlib
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
  named = args.out or f"runs/distil-{_short(args.audio)}"
  folder = buckets.place(named) if buckets.is_url(named) else pathlib.Path(named)
  absent = [part for part in (folder / "data", folder, *folder.parents) if not part.exists()]
  data, dev = (args.audio, args.dev) if args.dev else hold_out(args.audio, folder)
  given = {
    "teacher.source": _absolute(args.teacher),
    "data.train": data,
    "data.dev": dev,
    "data.test": args.test,
  }
  flags = [f"--config.{name}={value}" for name, value in given.items() if value]
  args.config, args.workdir = f"standard:manifest-{args.size}", named
  args.config_fields = [*flags, *args.config_fields]
  said = [f"--config={args.config}", f"--workdir={args.workdir}", *args.config_fields]
  log.info("the same as: %s train %s", line.pasted(), " ".join(map(shlex.quote, said)))
  try:
    return train.train(args)
  except UserError:
    if not args.dev:
      _take_back(folder, (data, dev), absent)
    raise


def _take_back(folder: pathlib.Path, lists: tuple[str, str], absent: list[pathlib.Path]) -> None:
  """Removes held-out lists that no run has, and the folders that were made for them."""
  path = folder / workdirs.CONFIG
  if path.exists() and files.read_json(path, dict).get("data", {}).get("train") == lists[0]:
    return
  for name in lists:
    (folder / "data" / os.path.basename(name)).unlink(missing_ok=True)
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
  side.

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
  from jaxkd.data import manifest, sources
  from jaxkd.data.corpora import Options
  from jaxkd.training import workdir

  recordings = collections.defaultdict(list)
  for part in sources.parts_of(audio):
    for entry in sources.entries(part, Options()):
      recordings[entry.path].append(entry)
  if len(recordings) < 2:
    raise UserError(f"--audio={audio} is a single recording: give --dev=DATA beside it")
  workdir.check_usable(folder)
  lot = lambda path: int.from_bytes(_digest(recordings[path][0].id)[:8], "big")
  drawn = sorted((r for r in recordings if lot(r) % _HELD_OUT_EVERY == 0), key=lot)
  most = min(_HELD_OUT_MOST, len(recordings) - 1)
  held = set((drawn or [min(recordings, key=lot)])[:most])
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


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode(errors="surrogateescape")).digest()
