"""jaxkd train: a config in, a trained student and its error rates out.

`python -m jaxkd.main` is the same command.
"""

import importlib.util
import pathlib
import shlex
import textwrap

from ml_collections import ConfigDict

from jaxkd import buckets, console, files, workdirs
from jaxkd import config as config_lib
from jaxkd.commands import line
from jaxkd.config import overrides
from jaxkd.errors import UserError

_EPILOG = """\
Fields that are often set:
  --config.data.train=PATH      what the student trains on: a manifest (JSON
                                lines) or a folder of audio
  --config.data.teacher_train=PATH
                                transcribed, for a teacher that is trained here
  --config.data.dev=PATH  --config.data.test=PATH
  --config.teacher.source=DIR   a finished workdir as teacher instead, a model
                                with CTC head in Hugging Face's layout (folder
                                or org/name), or what jaxkd teach stored
  --config.labels.name=NAME     {labels}
  --config.kd.scale=0.25        weight of distillation; CTC gets the rest (1: no
                                transcripts)
  --config.seed=1

examples:
  %(prog)s --config=symmetric:demo
  %(prog)s --config=mine.py:manifest --workdir=runs/mine \\
    --config.data.train=audio.jsonl --config.teacher.source=runs/teacher"""


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.in_buckets = ("--workdir",)
  parser.epilog = _EPILOG.format(labels=", ".join(config_lib.LABELS))
  variants = ", ".join(overrides.variants())
  parser.add_argument(
    "--config",
    metavar="VARIANT:RECIPE",
    help=f"what is trained. VARIANT: {variants}; or a file that defines "
    f"get_config(recipe). RECIPE: {line.recipes()} (default the variant's own)",
  )
  parser.add_argument(
    "--workdir",
    metavar="DIR",
    help="where everything is kept; the same command resumes there (default runs/VARIANT-RECIPE)",
  )
  parser.add_argument(
    "--profile",
    metavar="A:B",
    help="writes an XLA trace of these updates to WORKDIR/profile (xprof, Perfetto)",
  )
  parser.add_argument(
    "--fields",
    metavar="RECIPE",
    nargs="?",
    const=config_lib.base().recipe,
    help="print all fields of a config with their defaults, and train nothing",
  )
  parser.add_fields("a field of the config; see below")


def run(args) -> int:
  """Trains, and prints the table and what may be done next; returns the exit status."""
  if args.fields is not None:
    show_fields(args.fields)
    return 0
  return train(args)


def train(args) -> int:
  """Trains what config, workdir and fields say; returns the exit status."""
  config, folder = overrides.parse(as_config_flags(args))
  from jaxkd.devices import mesh
  from jaxkd.training import loop, results

  mesh.start_processes()
  found = loop.run(config, folder)
  if mesh.is_first():
    results.show(found, folder)
    for command in next_steps(folder):
      console.out.print(f"next: {command}", highlight=False, markup=False, soft_wrap=True)
  return 0


def as_config_flags(args) -> list[str]:
  """What `overrides.parse` reads, of arguments that are checked, with no name of a program."""
  names = ("config", "workdir", "profile")
  given = {name: getattr(args, name, None) for name in names}
  return ["", *(f"--{k}={v}" for k, v in given.items() if v is not None), *args.config_fields]


def show_fields(recipe: str) -> None:
  """Prints all fields of a config: name, default, unit, what it may be, and what it is.

  Raises:
    UserError: no such recipe.
  """
  width = min(console.out.width, 100)
  for name, default, unit, allowed, about in config_lib.describe(recipe):
    shown = repr(default) if default == "" or " " in str(default) else default
    told = about if allowed == "text" else f"{about}: {allowed}"
    print(f"config.{name} = {shown} {unit}".rstrip())
    print(textwrap.fill(told, width, initial_indent="    ", subsequent_indent="    "))


def next_steps(workdir: pathlib.Path) -> list[str]:
  """Commands that use a finished run, to be pasted where this one was given."""
  config = files.read_json(workdir / workdirs.CONFIG)
  here, data = shlex.quote(buckets.name(workdir)), config["data"]
  steps = [f"transcribe {here} RECORDING.wav"]
  if config["student"]["name"] == "conformer" and importlib.util.find_spec("onnxruntime"):
    steps.append(f"export {here} --int8")
  if other := data["dev"] or data["test"]:
    steps.append(f"evaluate --workdir={here} --data={shlex.quote(other)}")
  found = files.read_json(workdir / workdirs.RESULTS, kind=dict)
  if rates := _rates(found):  # a search is for transcribed data
    has_lm = _has_transcripts(found, config, workdir) and importlib.util.find_spec("flashlight")
    tunable = "dev" in rates and has_lm
    steps.append(f"search --workdir={here}" + ("" if tunable else " --lm=none"))
  if importlib.util.find_spec("matplotlib"):
    steps.append(f"report {_comparable(workdir)}")
  return [f"{line.pasted()} {step}" for step in steps]


def _rates(results: dict) -> list[str]:
  """Splits of a results.json that have a word error rate, and so transcripts."""
  wer = lambda split: results.get(split, {}).get("student", {}).get("wer")
  return [split for split in ("dev", "test") if wer(split) is not None]


def _has_transcripts(results: dict, config: dict, workdir: pathlib.Path) -> bool:
  """Whether a run, or its teacher's, learnt from transcripts, of which a language model is made."""
  teachers = (results.get("teacher_workdir") or "").split(",")
  of_runs = [name for name in teachers if name and workdirs.is_finished(workdir / name)]
  return bool(of_runs) or config_lib.reads_transcripts(ConfigDict(config["kd"]))


def _comparable(workdir: pathlib.Path) -> str:
  """The workdirs beside one, by a pattern, where a report can hold them together; else it alone."""

  def test(folder: pathlib.Path):
    try:
      return files.read_json(folder / workdirs.DATA, dict).get("test", {}).get("fingerprint")
    except (UserError, AttributeError):  # of another's run, which is damaged
      return None

  beside = [p.parent for p in workdir.absolute().parent.glob(f"*/{workdirs.RESULTS}")]
  if all((f / workdirs.DATA).exists() and test(f) == test(workdir) for f in beside):
    parent = buckets.name(workdir.parent)
    return "./*" if parent == "." else f"{shlex.quote(parent)}/*"
  return shlex.quote(buckets.name(workdir))
