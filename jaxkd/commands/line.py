"""The command line: which verbs there are, and what their arguments have in common."""

import argparse
import importlib
import math
import pathlib
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

from jaxkd import buckets, workdirs
from jaxkd.errors import UserError, did_you_mean


class Verb(NamedTuple):
  """A command.

  Attributes:
    module: of this package, with `add_arguments(parser)` and `run(args) -> status`.
    sentence: what it does.
  """

  module: str
  sentence: str


VERBS = {
  "distil": Verb("distil", "Distils a teacher into a small recogniser, with audio alone."),
  "teach": Verb("teach", "Stores what a teacher says, to learn from without it."),
  "train": Verb("train", "Trains a student, its teacher first if need be, and evaluates both."),
  "shard": Verb("shard", "Packs data into shards with an index, for millions of utterances."),
  "transcribe": Verb("transcribe", "Writes down what is said in recordings."),
  "evaluate": Verb("evaluate", "Evaluates a finished run on other data."),
  "search": Verb("search", "Searches with lexicon and language model, tuned on dev."),
  "grid": Verb("grid", "Trains many runs beside shared teachers and writes their report."),
  "report": Verb("report", "Compares finished runs: table, plots, one page."),
  "export": Verb("export", "Writes a student for other runtimes, and checks it in them."),
  "convert": Verb("convert", "Writes a model as a folder to share, with its card."),
  "plan-tpu": Verb("plan_tpu", "Says what a run needs of TPUs, without one."),
}
_URL = re.compile(r"(?:(--?[\w.]+)=)?(?:.*,\s*)?([a-z][a-z0-9+.-]*://.*)", re.I | re.S)
# Fields of a config that may be in buckets.
_FIELDS_IN_BUCKETS = (
  *(f"--config.data.{split}" for split in ("train", "teacher_train", "dev", "test")),
  *("--config.teacher.source", "--config.student.init"),
)
_FIELD_FLAGS = ("--config.", "-config.", "--noconfig.", "-noconfig.")


def main(argv: list[str], *, log: bool = False) -> int:
  """Runs `jaxkd VERB …`; returns the exit status.

  Args:
    argv: what follows the program's name.
    log: whether this process is the command's own, whose log goes to the user.

  Raises:
    UserError: no such verb, or what the verb raises.
  """
  if not argv or argv[0] in ("-h", "--help"):
    print(overview())
    return 0
  if argv[0] not in VERBS:
    known = f"the verbs are {', '.join(VERBS)}"
    if argv[0].startswith("-"):
      raise UserError(f"{argv[0]}: a verb must come first, as in jaxkd train {argv[0]}; {known}")
    raise UserError(f"'{argv[0]}' is no verb of jaxkd{did_you_mean(argv[0], VERBS)}; {known}")
  return run(argv[0], argv[1:], f"{_started_as()} {argv[0]}", log=log)


def run(verb: str, argv: list[str], program: str, *, log: bool = False) -> int:
  """Runs one verb; without arguments it prints its help.

  Args:
    verb: one of VERBS.
    argv: its arguments.
    program: what was typed before them.
    log: as in `main`.
  """
  module = importlib.import_module(f"jaxkd.commands.{VERBS[verb].module}")
  parser = Parser(program, VERBS[verb].sentence)
  module.add_arguments(parser)
  if not argv:
    parser.print_help()
    return 0
  args = parser.parse(argv)
  if log:
    from jaxkd import console  # after what needs no colours
    from jaxkd.data import cache
    from jaxkd.devices import memory, programs

    console.start_logging()
    programs.keep(cache.folder)
    memory.keep()
  try:
    status = module.run(args)
    buckets.publish_outputs()
  except UserError as error:
    raise type(error)(buckets.shown(str(error))) from error
  return status


def overview() -> str:
  """The help of `jaxkd` alone."""
  program = _started_as()
  verbs = "\n".join(f"  {name:<10} {verb.sentence}" for name, verb in VERBS.items())
  return f"""\
usage: {program} VERB [ARGUMENTS]

Distils large CTC speech recognisers into small ones, with or without
transcripts.

{verbs}

Each has --help. An example that takes minutes on two CPU cores:
  {program} train --config=symmetric:demo

Exit status: 0 done, or a training that SIGTERM stopped and saved; 2 a mistake
that the last line names; 75 what may pass (peers late or gone, a dead worker
process, a hub that is not reached): the same command again; 130 Ctrl-C; 143
SIGTERM elsewhere; 1 an error of the program, or a part that failed.
Compiled programs are kept in the user's cache; JAXKD_PROGRAMS=FOLDER, a bucket
such as gs://mine/programs, or off."""


def _started_as() -> str:
  return "python -m jaxkd" if sys.argv[0].endswith("__main__.py") else "jaxkd"


def pasted() -> str:
  """What starts jaxkd where the user stands: its script if PATH leads there, else this Python."""
  python, script = pathlib.Path(sys.executable), shutil.which("jaxkd")
  if script and pathlib.Path(script).absolute() in (
    python.with_name("jaxkd"),
    pathlib.Path(sys.argv[0]).absolute(),
  ):
    return "jaxkd"
  here = pathlib.Path.cwd()
  shown = python.relative_to(here) if python.is_relative_to(here) else python
  return f"{shlex.quote(str(shown))} -m jaxkd"


def recipes() -> str:
  """What a recipe may be, for help."""
  from jaxkd import config

  return f"DATA or DATA-SIZE; DATA: {', '.join(config.DATA)}; SIZE: {', '.join(config.SIZES)}"


class _Help(argparse.RawDescriptionHelpFormatter):
  """Help as wide as the terminal up to 100 columns, with the defaults that the code has."""

  def __init__(self, prog: str):
    width = min(shutil.get_terminal_size().columns, 100)
    super().__init__(prog, max_help_position=26, width=width)

  def _get_help_string(self, action: argparse.Action) -> str:
    told = action.default not in (None, False, "", argparse.SUPPRESS) and action.option_strings
    return action.help + (
      " (default %(default)s)" if told and "%(default)" not in action.help else ""
    )


class Parser(argparse.ArgumentParser):
  """Arguments of a verb; a usage error is a UserError that names the verb's help."""

  def __init__(self, prog: str, description: str):
    super().__init__(prog, description=description, formatter_class=_Help, allow_abbrev=False)
    self._takes_fields = False
    self.in_buckets: tuple[str, ...] = ()  # flags whose paths may be; "" for what has no flag

  def add_fields(self, help_: str) -> None:
    """Lets `--config.a.b=VALUE` through: the arguments get a list of them as `config_fields`."""
    self._takes_fields = True
    self.add_argument("--config.FIELD", metavar="VALUE", dest="_", help=help_)

  def parse(self, argv: list[str]) -> argparse.Namespace:
    """The arguments of a command line.

    Raises:
      UserError: one that does not exist or fit, or is missing.
    """
    self._check_urls(argv)
    fields, rest = split_fields(argv)
    if fields and not self._takes_fields:
      self.error(f"{fields[0]}: fields of a config are for distil, train, grid and plan-tpu")
    args, unknown = self.parse_known_intermixed_args(map(self._with_underscores, rest))
    for name in unknown:
      if not name.startswith("-"):
        self.error(f"'{name}' is not a flag")
      flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
      self.error(f"{name}: no such flag{did_you_mean(name.partition('=')[0], flags)}")
    args.config_fields = fields
    return args

  def _with_underscores(self, argument: str) -> str:
    """--dry_run where --dry-run is given, as launch scripts have it."""
    name, mark, value = argument.partition("=")
    known, other = self._option_string_actions, f"--{name[2:].replace('-', '_')}"
    if not name.startswith("--") or name in known or other not in known:
      return argument
    return other + mark + value

  def _check_urls(self, argv: list[str]) -> None:
    """Passes paths in buckets where they can be used, and local ones."""
    flag = ""
    for argument in argv:
      if found := _URL.fullmatch(argument):
        flag = found[1] or flag
        allowed = self.in_buckets + (_FIELDS_IN_BUCKETS if self._takes_fields else ())
        if flag.replace("-config.", "--config.", flag.startswith("-config.")) not in allowed:
          self.error(
            f"{argument}: only local paths can be used here, such as that of a mounted bucket"
          )
        for part in argument.partition("=")[2 * bool(found[1])].split(","):
          if buckets.is_url(part.strip()):
            buckets.check_scheme(part.strip())
      flag = argument if argument.startswith("-") and "=" not in argument else ""

  def print_help(self, file=None) -> None:
    """Prints it; unlike argparse's own, a closed pipe is not passed over."""
    print(self.format_help(), end="", file=file)

  def error(self, message: str):
    """Raises."""
    message = message.removeprefix("argument ").replace(
      "the following arguments are required", "missing"
    )
    raise UserError(f"{message}; see {self.prog} --help")


def split_fields(argv: list[str]) -> tuple[list[str], list[str]]:
  """The flags of config fields, each as one argument where it has a value, and all the others.

  One dash is as good as two, as absl has it.
  """
  fields, rest, given = [], [], list(argv)
  while given:
    argument = given.pop(0)
    if argument.startswith(_FIELD_FLAGS):
      if "=" not in argument and given and not re.match(r"-[^\d.]", given[0]):
        argument += f"={given.pop(0)}"
      fields.append(argument)
    elif argument == "--":
      return fields, [*rest, argument, *given]
    else:
      one_dash = argument.startswith("-") and argument[1:2].isalpha() and len(argument) > 2
      rest.append(f"-{argument}" if one_dash else argument)
  return fields, rest


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
  """A type of arguments: whole numbers in a range."""

  def read(given: str) -> int:
    number = int(given) if given.removeprefix("-").isdecimal() else None
    if number is None or number < low or (high is not None and number > high):
      upper = "upwards" if high is None else f"to {high}"
      raise argparse.ArgumentTypeError(f"it must be a whole number from {low} {upper}, not {given}")
    return number

  return read


def number(low: float, high: float = float("inf")) -> Callable[[str], float]:
  """A type of arguments: finite numbers in a range."""

  def read(given: str) -> float:
    try:
      found = float(given)
    except ValueError:
      found = float("nan")
    if not (low <= found <= high and math.isfinite(found)):
      upper = "upwards" if high == float("inf") else f"to {high:g}"
      raise argparse.ArgumentTypeError(f"it must be a number from {low:g} {upper}, not {given}")
    return found

  return read


def several(one: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
  """A type of arguments: values between commas, each once."""
  return lambda given: tuple(dict.fromkeys(one(part) for part in given.split(",")))


def milliseconds(given: str) -> int:
  """Milliseconds of "320ms", as argparse reads it."""
  number = given.removesuffix("ms")
  if not (number.isascii() and number.isdigit()) or number == given:
    raise argparse.ArgumentTypeError(f"it is {given!r}; give milliseconds, such as 320ms")
  if not int(number):
    raise argparse.ArgumentTypeError(f"it is {given!r}; it must be longer, such as 320ms")
  return int(number)


def finished_run(given: str) -> pathlib.Path:
  """A type of arguments: the workdir of a finished run, looked at before JAX is loaded."""
  folder = buckets.here(given)
  workdirs.check_finished(folder)
  return folder
