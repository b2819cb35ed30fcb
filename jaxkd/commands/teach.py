"""jaxkd teach: what a teacher says of every frame, stored once and learnt from many times."""

import argparse
import json
import logging
import shlex

from jaxkd import buckets
from jaxkd import config as config_lib
from jaxkd.commands import line
from jaxkd.config import fields
from jaxkd.errors import UserError

log = logging.getLogger(__name__)
_EPILOG = """\
Train from it with --config.teacher.source=STORE: no teacher runs then. The
store must have the training data at each of config.training.speeds, and, for
the teacher's own figures, dev and test data too.

examples:
  %(prog)s --teacher=runs/teacher --data=train.jsonl,dev.jsonl \\
    --out=frames
  %(prog)s --teacher=facebook/hubert-large-ls960-ft \\
    --data=recordings --speeds=0.9,1,1.1 --out=frames
  %(prog)s --verify=frames"""
_HEARD_AGAIN = 8
_DEFAULTS = {
  "max_seconds": fields.default("data.max_seconds"),
  "speeds": (1.0,),
  "temperature": fields.default("kd.temperature"),
  "dtype": "float16",
  "workers": 0,
}
# Flags that only writing asks for, and those of hearing, written or heard again.
_WRITING = ("speeds", "temperature", "top", "dtype", "workers")
_HEARING = ("root", "max_seconds", "pool", "language", "arithmetic")


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.in_buckets = ("--teacher", "--data", "--out", "--verify")
  parser.epilog = _EPILOG
  add = parser.add_argument
  add(
    "--teacher",
    metavar="SOURCE",
    help="a model with CTC head in Hugging Face's layout (a folder, or org/name on its hub), or "
    "the workdir of a finished run; several with commas between are averaged",
  )
  add("--data", metavar="DATA", help="manifests, folders of audio or corpus:split, with commas")
  add("--root", default="", metavar="DIR", help="as config.data.root, of a named corpus")
  add(
    "--max_seconds",
    type=line.number(1, 1e6),
    metavar="S",
    help="as config.data.max_seconds of the training: recordings without a transcript that are "
    f"longer are heard in pieces, others left out (default {_DEFAULTS['max_seconds']})",
  )
  add("--out", metavar="STORE", help="a new folder, or one to go on in")
  add(
    "--speeds",
    type=line.several(line.number(0.1, 10)),
    metavar="S,S",
    help="factors that each utterance is played at (default 1)",
  )
  add(
    "--temperature",
    type=line.number(0.01),
    metavar="T",
    help=f"config.kd.temperature of the training (default {_DEFAULTS['temperature']})",
  )
  add(
    "--top",
    type=line.whole(0, 255),
    metavar="K",
    help="most classes of a frame that are kept beside the blank; 0 for all (default: all of up to "
    "100, else 8)",
  )
  kinds = ("float16", "float32")
  add("--dtype", choices=kinds, help="float32 rounds nothing (default float16)")
  add(
    "--pool",
    type=line.whole(1, 16),
    metavar="N",
    help=f"frames of a Hugging Face model that become one (default "
    f"{fields.default('teacher.pool')})",
  )
  add("--language", default="", help="of a Hugging Face model with an adapter for each")
  kinds = ("float32", "bfloat16")
  add("--arithmetic", choices=kinds, help="of a Hugging Face model (default float32)")
  add(
    "--workers",
    type=line.whole(0),
    metavar="N",
    help="processes that decode audio (default: threads)",
  )
  add(
    "--verify",
    metavar="STORE",
    help="checks counts and checksums of a store, and with --teacher and --data some utterances "
    "by hearing them again; status 2 where a posterior differs by more than 0.2",
  )


def run(args) -> int:
  """Writes or verifies a store; returns the exit status."""
  from jaxkd.devices import mesh

  _check(args)
  args = complete(args)
  mesh.start_processes()
  if args.verify:
    found, problems = verify(args)
    if mesh.is_first():
      print(json.dumps(found))
    if problems:
      raise UserError(f"{args.verify}: {len(problems)} problems; the first: {problems[0]}")
    return 0
  found = write(args)
  if mesh.is_first():
    print(json.dumps(found))
    _say_what_next(args, found)
  return 0


def _check(args) -> None:
  """Refuses flags that are missing, or would do nothing."""
  if not args.verify:
    for name in ("teacher", "data", "out"):
      if not getattr(args, name):
        raise UserError(f"--{name} is missing: it is needed unless --verify=STORE is given")
    return
  if args.out or bool(args.teacher) != bool(args.data):
    raise UserError("--verify=STORE takes --teacher and --data together or neither, and no --out")
  given = lambda names: ", ".join(f"--{n}" for n in names if getattr(args, n) not in (None, ""))
  if flags := given(_WRITING):
    raise UserError(f"{flags}: --verify=STORE does not read that: leave it out")
  if not args.teacher and (flags := given(_HEARING)):
    raise UserError(f"{flags}: --verify=STORE reads that with --teacher and --data alone")


def complete(args):
  """The arguments with the defaults of flags that were not given."""
  missing = {name: value for name, value in _DEFAULTS.items() if getattr(args, name) is None}
  return argparse.Namespace(**vars(args) | missing)


def _say_what_next(args, found: dict) -> None:
  from jaxkd import console

  console.err.print(
    f"{found['records']} records, {found['hours']:.2f} h, {found['bytes'] / 1e6:.1f} MB in "
    f"{args.out}; train from it:\n  {line.pasted()} {' '.join(training(args))}",
    highlight=False,
    soft_wrap=True,
  )
  if "," in args.data:
    console.err.print("what of it is dev or test data belongs in --config.data.dev or .test")


def training(args) -> list[str]:
  """Words of the command that trains from the store, for a shell."""
  said = {  # what must be as it is here
    "training.speeds": args.speeds,
    "kd.temperature": args.temperature,
    "data.max_seconds": args.max_seconds,
    "data.root": args.root,
  }
  usual = config_lib.base("manifest-small")
  given = {"teacher.source": args.out, "data.train": args.data}
  for name, value in said.items():
    block, field = name.split(".")
    if value != usual[block][field]:
      given[name] = value
  shown = lambda v: "".join(f"{part:g}," for part in v) if isinstance(v, tuple) else str(v)
  flags = [shlex.quote(f"--config.{name}={shown(value)}") for name, value in given.items()]
  return ["train", "--config=standard:manifest-small", *flags]


def write(args) -> dict:
  """Writes the store that the arguments ask for and returns its totals."""
  from jaxkd.data import decoding
  from jaxkd.devices import mesh
  from jaxkd.inference import teaching
  from jaxkd.teacher import store

  found = _teacher(args)
  source, devices = _data(args), mesh.make_mesh()
  _tell_of_numbered(source, args.data)
  folder = buckets.output(args.out)
  if folder.exists() and not folder.is_dir():
    raise UserError(f"--out={args.out} is a file: it must be a folder")
  try:
    store.check_folder(folder)
  except store.StoreError as error:  # which begins with the folder
    raise UserError(f"--out={error}") from error
  decoding.use(args.workers)
  wanted = [teaching.Wanted(source, args.speeds)]
  options = dict(temperature=args.temperature, top=args.top, dtype=args.dtype)
  return teaching.write(found, wanted, folder, devices, **options)


def _teacher(args):
  from jaxkd.teacher import sources, stored

  if stored.is_one(buckets.here(args.teacher)):
    raise UserError(f"--teacher={args.teacher} is a store already")
  options = dict(
    pool=args.pool or fields.default("teacher.pool"),
    dtype=args.arithmetic or "float32",
    language=args.language,
    named="--teacher=",
  )
  found = sources.find(args.teacher, **options)
  for flag, of in (("pool", "frames"), ("arithmetic", "numbers")):
    if (value := getattr(args, flag)) and not _takes_flags(found, options):
      raise UserError(
        f"--{flag}={value}: the {of} of {args.teacher} are as it was trained: leave it out"
      )
  return found


def _takes_flags(found, options: dict) -> bool:
  """Whether a teacher, or one of several, is a Hugging Face model: others are as trained."""
  from jaxkd.teacher import sources

  names = sources.members(found.source)
  parts = [found] if len(names) == 1 else [sources.find(name, **options) for name in names]
  return any(part.pool for part in parts)


def _data(args):
  """What a training opens as config.data.train, but for what is too short for it."""
  from jaxkd.data.corpora import Options
  from jaxkd.data.sources import Limits, open_source

  return open_source(args.data, Options(root=args.root), Limits(max_seconds=args.max_seconds))


def _tell_of_numbered(source, spec: str) -> None:
  """Says where two parts have utterances of one name: only the same parts together ask for both."""
  from jaxkd.data.sources import parts_of

  if len(parts := parts_of(spec)) == 1:
    return
  names = set(source.ids)
  again = [name for name in source.ids if name.rpartition("#")[0] in names]
  if again:
    log.warning(
      "%s of %s have the name of another one, such as %s: only a training on all of %s asks for "
      "these; for one on a part of it, and for dev and test data, write a store for each",
      f"{len(again)} utterances" if len(again) > 1 else "1 utterance",
      " and ".join(parts),
      again[0],
      spec,
    )


def verify(args) -> tuple[dict, list[str]]:
  """Counts of a store, and what is wrong with it."""
  from jaxkd.devices import mesh
  from jaxkd.inference import teaching
  from jaxkd.teacher import stored

  found = stored.find(args.verify)
  counts = dict(found.store.header["complete"])
  counts["left_out"] = len(counts["left_out"])
  problems = stored.damaged(found.store)
  there = sum(len(shard.records) for shard in found.store.shards)
  if there != counts["records"]:
    problems.append(f"{there} records are listed and {counts['records']} were written")
  if args.teacher:
    devices = mesh.make_mesh()
    model = _teacher(args).load(devices)
    heard, largest = teaching.differences(found, model, _data(args), devices, _HEARD_AGAIN)
    counts |= {"heard_again": heard, "largest_difference": largest}
    if largest > (most := teaching.MOST_DIFFERENCE):
      problems.append(
        f"a posterior that is heard again differs by {largest:.3f}, of which rounding and other "
        f"machines explain {most:g}: another teacher was written, or with other flags"
      )
  return counts, problems
