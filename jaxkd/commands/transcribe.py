"""jaxkd transcribe: recordings in, words out."""

import collections
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

from jaxkd import buckets, console, files, workdirs
from jaxkd.commands import line
from jaxkd.errors import UserError

_EPILOG = """\
MODEL is the workdir of a finished run, a folder of jaxkd export or convert, or
a model with CTC head in Hugging Face's layout (a folder, or org/name on its
hub).
Folders are searched for recordings; - reads one from standard input: a file's
bytes, or raw 16-bit samples at 16 kHz.

Without --format the text goes to standard output; with it, each recording's
transcript goes to a file beside it, or to the same place below --out as its
recording has below the folder that was given. A file that is there and says
something else is left as it is, and named at the end, as one that cannot be
written; --overwrite replaces it.

With --stream each word is printed as soon as it is final, with its start and
end in seconds: recordings as a stream would tell them, or a microphone,
  arecord -q -f S16_LE -r 16000 -c 1 |
    %(prog)s RUN - --stream=320ms

examples:
  %(prog)s runs/symmetric-demo talk.wav
  %(prog)s runs/symmetric-demo recordings --format=srt \\
    --out=subtitles"""
_FORMATS = ("txt", "json", "srt", "vtt", "ctm")
_LM_WEIGHT, _BOOST = 1.0, 3.0
# Where one file cannot be written for such a reason, none can.
_OF_ALL_FILES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.in_buckets = ("", "--out")
  parser.epilog = _EPILOG
  add = parser.add_argument
  add("model_source", metavar="MODEL", help="what listens; see below")
  add("inputs", metavar="INPUT", nargs="+", help="recordings, folders of them, or -")
  add("--model", choices=workdirs.MODELS, default="student", help="of a finished run")
  add("--language", metavar="NAME", default="", help="of a model with an adapter for each (MMS)")
  add("--format", choices=_FORMATS, help="of files with times and confidences")
  add("--out", metavar="DIR", type=buckets.output, help="where these files go")
  add("--overwrite", action="store_true", help="files that are there and say something else")
  add(
    "--stream",
    metavar="MS",
    type=line.milliseconds,
    help="hear chunks of so many milliseconds, such as 320ms, and nothing that comes later",
  )
  search = parser.add_argument_group("search")
  add = search.add_argument
  beam_help = "of the prefix beam, or with words (default 1, the best path; with these more)"
  add("--beam", metavar="N", type=line.whole(1), help=beam_help)
  add("--lexicon", metavar="FILE", help="a word a line: nothing else is heard; needs jaxkd[decode]")
  add("--lm", metavar="FILE", help="an ARPA file, whose words are the lexicon where none is given")
  weight_help = f"of log10 p (default {_LM_WEIGHT:g})"
  add("--lm_weight", metavar="W", type=line.number(-1e3, 1e3), help=weight_help)
  add("--phrases", metavar="FILE", help="a phrase a line, to be favoured by a prefix beam")
  boost_help = f"of each, added to log p (default {_BOOST:g})"
  add("--boost", metavar="B", type=line.number(0, 1e3), help=boost_help)


class _Recording(NamedTuple):
  """What is listened to.

  Attributes:
    name: as the user knows it, and printable.
    path: of its file, or in a bucket.
    below: its path below the folder that was given, or its file's name.
  """

  name: str
  path: str
  below: str


def run(args) -> int:
  """Transcribes; returns the exit status, 1 where something could not be read or written."""
  from jaxkd.data.audio import BrokenAudio
  from jaxkd.inference import recogniser

  for name in ("out", "overwrite"):
    if getattr(args, name) and not args.format:
      raise UserError(f"--{name} is for files: say which with --format=txt, srt, …")
  if args.inputs.count("-") > 1:
    raise UserError("- is given more than once: standard input is one recording, give it once")
  if args.stream is not None:
    return _stream(args)
  _check_search(args)
  if args.out:
    _check_out(args.out)
  with tempfile.TemporaryDirectory() as spool:
    found = _recordings(args.inputs, spool)
    targets = _targets(found, args) if args.format else [None] * len(found)
    names = _ctm_names(found) if args.format == "ctm" else [recording.name for recording in found]
    loaded = recogniser.load(args.model_source, args.model, language=args.language)
    search = _search(args, loaded.model.vocabulary, recogniser)
    started, heard, broken, left = time.monotonic(), 0.0, [], []
    with console.progress("transcribing", len(found)) as update:
      said = loaded.each([recording.path for recording in found], search=search)
      for recording, name, target, transcript in zip(found, names, targets, said, strict=True):
        update()
        if isinstance(transcript, BrokenAudio):
          broken.append(f"{recording.name}: {transcript}")
          continue
        heard += transcript.seconds
        if target is None:
          _print(transcript.text, recording.name if len(found) > 1 else "")
        elif reason := _write(dataclasses.replace(transcript, name=name), target, args):
          left.append(f"{buckets.name(target)} {reason}")
  seconds = time.monotonic() - started
  speed = heard / seconds
  shown = f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"
  told = f"{heard:.0f} s of audio in {seconds:.1f} s, {shown} times real time"
  if broken:
    told += f"; {len(broken)} of {len(found)} recordings could not be used"
  if left:
    told += f"; {len(left)} of {len(found)} transcripts not written: --overwrite, or --out=DIR"
  for line_ in (*broken, *left, told):
    console.err.print(line_, highlight=False, markup=False, soft_wrap=True)
  return 1 if broken or left else 0


def _stream(args) -> int:
  """Prints words as they become final; returns the exit status."""
  from jaxkd.data.audio import BrokenAudio
  from jaxkd.inference import live, recogniser

  later = ("format", "lexicon", "lm", "lm_weight", "phrases", "boost")
  extra = {name: getattr(args, name) for name in later}
  extra["beam"] = None if args.beam == 1 else args.beam
  if given := next((name for name, value in extra.items() if value is not None), None):
    raise UserError(f"--{given} needs what comes later: leave it out with --stream")
  with contextlib.ExitStack() as stack:
    found = _streams(args.inputs, stack)
    loaded = recogniser.load(args.model_source, args.model, language=args.language)
    heard = live.chunks(loaded.model, args.stream, args.model_source)
    if not live.has_learnt(loaded.model):
      told = "it was trained on whole recordings (student.chunk_frames): its words will suffer"
      console.err.print(f"{args.model_source}: {told}", highlight=False, markup=False)
    broken = 0
    for name, packets in found:
      if len(found) > 1:
        console.out.file.write(f"{name}\n")
      try:
        for word in live.words(loaded.model, heard, packets):
          console.out.file.write(f"{word.start_s:.2f}\t{word.end_s:.2f}\t{word.text}\n")
          console.out.file.flush()
      except BrokenAudio as error:
        broken += 1
        console.err.print(f"{name}: {error}", highlight=False, markup=False, soft_wrap=True)
  return 1 if broken else 0


def _streams(inputs: list[str], stack: contextlib.ExitStack) -> list[tuple[str, Iterator]]:
  """(name, packets of samples) of all recordings; standard input as it comes."""
  from jaxkd.data import audio, microphone

  found = []
  for given in inputs:
    if given == "-":
      found.append(("stdin", microphone.packets(sys.stdin.buffer)))
      continue
    spool = stack.enter_context(tempfile.TemporaryDirectory())
    found += [(r.name, audio.stream(r.path)) for r in _recordings([given], spool)]
  return found


def _recordings(inputs: list[str], spool: str) -> list[_Recording]:
  """All recordings.

  Raises:
    UserError: a folder without audio.
  """
  from jaxkd.data import manifest

  found = []
  for given in inputs:
    path = files.expanded(given)
    if buckets.is_url(given):
      folder = given.rstrip("/") + "/"
      for entry in manifest.of_bucket(given):
        inside = entry.path.startswith(folder)
        below = entry.path[len(folder) :] if inside else os.path.basename(entry.path)
        found.append(_Recording(entry.path, entry.path, below))
    elif given == "-":
      found.append(_Recording("stdin", _spooled(spool), "stdin"))
    elif path.is_dir():
      for entry in manifest.of_folder(given, path):
        name = os.path.join(_printable(given), entry.id)
        found.append(_Recording(name, entry.path, os.path.relpath(entry.path, path)))
    else:
      manifest.of_recording(path)
      found.append(_Recording(_printable(given), str(path), path.name))
  return found


def _printable(name: str) -> str:
  """A name with the bytes that are no UTF-8 as \\xNN."""
  return os.fsencode(name).decode("utf-8", "backslashreplace")


def _spooled(folder: str) -> str:
  """Standard input as a file: as it is, or raw samples with a header.

  Raises:
    UserError: a kind of file that is not decoded here.
  """
  import numpy as np
  import soundfile

  from jaxkd.data import microphone

  data = sys.stdin.buffer.read()
  path = os.path.join(folder, "stdin")
  with open(path, "wb") as file:
    file.write(data)
  try:
    soundfile.info(path)
  except RuntimeError as error:
    if told := microphone.no_samples(data):
      raise UserError(f"standard input {told}") from error
    samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2")
    soundfile.write(path, samples, 16_000, format="WAV", subtype="PCM_16")
  return path


def _check_search(args) -> None:
  """Raises UserError where a flag would change nothing."""
  words = args.lexicon or args.lm
  if args.phrases and words:
    raise UserError("--phrases is for the prefix beam: leave out --lexicon and --lm")
  if args.boost is not None and not args.phrases:
    raise UserError("--boost is of phrases: say which with --phrases=FILE")
  if args.lm_weight is not None and not args.lm:
    raise UserError("--lm_weight is of a language model: say which with --lm=FILE")
  if args.beam == 1 and (args.phrases or words):
    told = "--phrases" if args.phrases else "--lexicon" if args.lexicon else "--lm"
    raise UserError(f"--beam=1 is the best path, without {told}: give 2 or more, or leave it out")


def _search(args, vocabulary, recogniser):
  """What the flags ask for; None for the best path."""
  from jaxkd.inference.search import lexicon

  if args.lexicon or args.lm:
    lm = lexicon.open_lm(files.expanded(args.lm)) if args.lm else None
    words = lm.words if lm else ()
    if args.lexicon:
      words = lexicon.read_words(files.expanded(args.lexicon))
    weight = _LM_WEIGHT if args.lm_weight is None else args.lm_weight
    beam = args.beam or lexicon.Options().beam
    options = lexicon.Options(beam=beam, lm_weight=weight if lm else 0.0)
    name = f"--lexicon={args.lexicon}" if args.lexicon else f"--lm={args.lm}"
    return recogniser.with_lexicon(vocabulary, words, lm, options, name=name)
  phrases = _phrases(files.expanded(args.phrases)) if args.phrases else []
  if not phrases and args.beam in (None, 1):
    return None
  boost = _BOOST if args.boost is None else args.boost
  beam = args.beam or recogniser.NBEST
  return recogniser.with_beam(vocabulary, beam=beam, phrases=phrases, boost=boost)


def _phrases(path: pathlib.Path) -> list[str]:
  try:
    found = [text.strip() for text in path.read_text(encoding="utf-8-sig").splitlines()]
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"--phrases={path} cannot be read: {error}") from error
  if not any(found):
    raise UserError(f"--phrases={path} holds no phrases: one a line")
  return [text for text in found if text]


def _check_out(folder: pathlib.Path) -> None:
  """Tries whether a folder can be made and written to, and leaves nothing behind.

  Raises:
    UserError: it cannot.
  """
  absent = [part for part in (folder, *folder.parents) if not os.path.exists(part)]
  try:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except OSError as error:
    told = "it is a file" if isinstance(error, FileExistsError) else error.strerror
    raise UserError(f"--out={folder} must be a folder that can be written to: {told}") from error
  finally:
    for part in absent:
      with contextlib.suppress(OSError):  # another process has begun to use it
        part.rmdir()


def _targets(found: list[_Recording], args) -> list[pathlib.Path]:
  """Where each recording's transcript goes: talk.txt, or talk.wav.txt where talk.flac is, too.

  Raises:
    UserError: two recordings would have one file.
  """
  short, named = [_target(recording, args) for recording in found], {}
  same = collections.defaultdict(set)
  for recording, target in zip(found, short, strict=True):
    same[target].add(recording.path)
  targets = []
  for recording, plain in zip(found, short, strict=True):
    target = plain
    if len(same[plain]) > 1:
      target = target.with_name(f"{os.path.basename(recording.below)}.{args.format}")
    other, its_plain = named.setdefault(target, (recording, plain))
    if other.path != recording.path:
      raise UserError(
        f"{other.name} and {recording.name} would both be written to "
        f"{plain if plain == its_plain else target}: give the folder that holds both, or each its "
        "own --out=DIR"
      )
    targets.append(target)
  there = sum(map(os.path.isfile, named))
  if there and not args.overwrite:
    told = "those that would say something else are left as they are (--overwrite)"
    told = f"{there} of {len(named)} transcripts are there: {told}"
    console.err.print(told, highlight=False, soft_wrap=True)
  return targets


def _target(recording: _Recording, args) -> pathlib.Path:
  if buckets.is_url(recording.path) and not args.out:
    raise UserError(f"--format={args.format} writes beside {recording.path}: give --out=DIR")
  path = pathlib.Path(recording.path)
  if args.out or recording.name == "stdin":
    path = (args.out or pathlib.Path()) / recording.below
  return path.with_suffix(f".{args.format}")


def _ctm_names(found: list[_Recording]) -> list[str]:
  """What a CTM calls each recording, so that several CTMs may be joined.

  talk, or where several are called so its path in the folder that holds all; with its extension
  where nothing else is another.
  """
  of_stdin = lambda recording: recording.name == "stdin"
  paths = [os.path.abspath("stdin" if of_stdin(r) else r.path) for r in found]
  common = os.path.commonpath([os.path.dirname(path) for path in paths])
  below = {path: os.path.relpath(path, common) for path in paths}
  stems = {path: os.path.splitext(name)[0] for path, name in below.items()}
  forms = ({path: os.path.basename(stem) for path, stem in stems.items()}, stems, below)
  counts = [collections.Counter(form.values()) for form in forms]
  alone = lambda path: next(
    form[path] for form, count in zip(forms, counts, strict=True) if count[form[path]] == 1
  )
  return [_printable(alone(path)) for path in paths]


def _print(text: str, name: str) -> None:
  console.out.file.write(f"{name}\t{text}\n" if name else f"{text}\n")
  console.out.file.flush()


def _write(transcript, path: pathlib.Path, args) -> str:
  """Writes a transcript's file; returns why not, "" where it says that now.

  Raises:
    UserError: no other can be written, either.
  """
  from jaxkd.inference.transcript import FORMATS

  text = FORMATS[args.format](transcript)
  try:
    if args.overwrite or not path.exists():
      files.write_text(path, text)
    elif not _same(path.read_bytes(), text.encode(), args.format):
      return "says something else and is left as it is"
  except OSError as error:
    if error.errno in _OF_ALL_FILES:
      raise UserError(f"{path} cannot be written: {error.strerror}; --out=DIR") from error
    return f"cannot be written: {error.strerror}"
  return ""


def _same(there: bytes, here: bytes, kind: str) -> bool:
  """Whether two files say the same; of a recording's path each may have its own spelling."""
  if there == here or kind != "json":
    return there == here
  try:
    found = json.loads(there)
  except (ValueError, RecursionError):
    return False
  return isinstance(found, dict) and found | {"audio": ""} == json.loads(here) | {"audio": ""}
