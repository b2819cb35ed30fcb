"""jaxkd shard: any data packed into shards with one index, for millions of utterances."""

import json
import pathlib

from jaxkd import buckets, files
from jaxkd.commands import line
from jaxkd.config import fields
from jaxkd.errors import UserError

_LONGEST, _HOURS = fields.default("data.max_seconds"), 10.0
_PACKING = ("longest", "hours", "root")  # flags that only what is packed asks for
_EPILOG = """\
The folder is data like any other: --config.data.train=DIR, --data=DIR. What a
kill left unfinished is finished by the same command.

examples:
  %(prog)s train.jsonl --out=packed
  %(prog)s recordings,librispeech:train_clean100 --out=packed
  %(prog)s --verify=packed"""


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.epilog = _EPILOG
  add = parser.add_argument
  add(
    "data",
    nargs="?",
    metavar="DATA",
    help="manifests, folders of audio, corpus:split, with commas; or a folder of tar files "
    "(WebDataset, NeMo, Lhotse Shar), which are not packed: the index says where in them",
  )
  add("--out", metavar="DIR", help="a new folder, or one to go on in")
  add(
    "--longest",
    type=line.number(1),
    metavar="S",
    help="recordings without a transcript of more seconds are cut at silences (default "
    f"{_LONGEST})",
  )
  add(
    "--hours",
    type=line.number(0.001),
    metavar="H",
    help=f"of audio in a shard; 10 are about 1 GB of FLAC (default {_HOURS})",
  )
  add("--root", default="", metavar="DIR", help="as config.data.root, of a named corpus")
  add("--verify", metavar="DIR", help="checks the checksums of shards, and their index")
  add(
    "--drop",
    action="store_true",
    help="leaves out tar files that are cut short; with --verify, utterances of damaged shards",
  )


def run(args) -> int:
  """Packs data or verifies shards; returns the exit status."""
  for given in (args.out, args.verify):
    if given and buckets.is_url(given):
      raise UserError(f"{given}: shards are written and read in local folders: a mounted bucket")
  if args.verify:
    if wrong := "DATA or --out" if args.data or args.out else _given(args):
      raise UserError(f"--verify=DIR takes --drop alone, and no {wrong}")
    return _verify(files.expanded(args.verify), args.drop)
  if not args.data or not args.out:
    raise UserError("DATA and --out=DIR are needed, unless --verify=DIR is given")
  print(json.dumps(pack(args)))
  return 0


def _given(args) -> str:
  """The flags of packing that were given; "" for none."""
  return " or ".join(f"--{name}" for name in _PACKING if getattr(args, name) not in (None, ""))


def pack(args) -> dict:
  """Packs the data that the arguments name and returns the totals."""
  from jaxkd.data import packing
  from jaxkd.data.corpora import Options
  from jaxkd.data.sources import open_source

  folder = files.expanded(args.out)
  given = files.expanded(args.data)
  if packing.is_tars(given):
    if flags := _given(args):
      raise UserError(f"{args.data}: tar files are indexed as they lie: leave out {flags}")
    return packing.totals(folder, packing.write_of_tars(given, folder, drop=args.drop))
  if args.drop:
    raise UserError("--drop goes with --verify=DIR, or with tar files")
  source = open_source(args.data, Options(root=args.root))
  longest, hours = args.longest or _LONGEST, args.hours or _HOURS
  header = packing.write(source, folder, longest=longest, shard_seconds=hours * 3600)
  return packing.totals(folder, header)


def _verify(folder: pathlib.Path, drop: bool) -> int:
  from jaxkd.data import packing

  found, problems = packing.verify(folder, drop)
  print(json.dumps(found))
  if problems and not drop:
    raise UserError(
      f"{folder}: {len(problems)} problems; the first: {problems[0]}; with --drop "
      "the utterances of these shards are left out, until jaxkd shard DATA --out writes them again"
    )
  return 0
