"""Flags, and the one place where errors become a line and an exit status."""

import errno
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxkd import config as config_lib
from jaxkd import console
from jaxkd.errors import Interrupted, UserError

HELP = """\
usage: python -m jaxkd.main --config=configs/VARIANT.py[:RECIPE] [--workdir=DIR]
                            [--config.FIELD=VALUE ...]

Trains a small CTC student from a teacher and prints both models' error rates.

  VARIANT   which frames carry the distillation loss; a file of configs/, for example symmetric
  RECIPE    data and sizes: {recipes} (default demo: synthetic speech, minutes on two CPU cores)
  --workdir where everything is kept (default runs/VARIANT-RECIPE); the same command resumes there
  --profile=10:20 writes an XLA trace of these updates to WORKDIR/profile (xprof, Perfetto)

Fields that are often set:
  --config.data.train=PATH          what the student trains on: manifest (JSON lines) or folder
  --config.data.teacher_train=PATH  transcribed manifest for a teacher that is trained here
  --config.data.dev=PATH  --config.data.test=PATH
  --config.teacher.source=DIR       a finished workdir as teacher instead, or a HuBERT, wav2vec 2.0,
                                    WavLM or data2vec model with CTC head in Hugging Face's layout
  --config.labels.name=phonemes     classes: characters, phonemes, sentencepiece
  --config.kd.scale=0.25            weight of distillation; CTC gets the rest (1.0: no transcripts)
  --config.seed=1

All fields with their defaults: jaxkd/config.py. Another config file: any that defines
get_config(recipe). Other commands, each with --help, as python -m jaxkd.COMMAND:
  evaluate  a finished run on other data
  search    with lexicon and language model
  report    compares finished runs: table, plots
  grid      many runs, and their report
  convert   to and from Hugging Face's layout
  compile   what a run needs of TPUs, without one
"""


def parse(argv: list[str]) -> tuple[ConfigDict, pathlib.Path]:
  """Config (its variant named after the file) and workdir from a command line.

  Raises:
    UserError: a flag, file, field or value that does not exist or fit.
  """
  if any(a in ("--help", "-help", "-h") for a in argv[1:]) or len(argv) == 1:
    print(HELP.format(recipes=", ".join(config_lib.RECIPES)), end="")
    raise SystemExit(0)
  path = _config_path(argv)
  try:
    values, rest = _parsed(argv)
  except UserError:
    raise
  except SyntaxError as error:
    raise UserError(f"--config={path}: line {error.lineno}: {error.msg}") from error
  except Exception as error:  # whatever a config file or a value raises
    if isinstance(error, (AttributeError, KeyError)):
      _blame_unknown_field(argv)
    raise UserError(f"--config={path}: {_first_line(error)}") from error
  if len(rest) > 1:
    raise UserError(f"'{rest[1]}' is not a flag: see python -m jaxkd.main --help")
  config = values.config
  if not isinstance(config, ConfigDict) or "recipe" not in config:
    raise UserError(f"--config={path}: get_config must return what jaxkd.config.base() made")
  with config.unlocked():
    config.variant = path.stem
    config.profile = values.profile or config.get("profile", "")
  config_lib.check(config)
  folder = values.workdir or f"runs/{path.stem}-{config.recipe}"
  return config, pathlib.Path(folder)


def _parsed(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
  """Flags, and what is none."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  flags.DEFINE_string("profile", None, "", flag_values=values)
  return values, values(argv)


def _blame_unknown_field(argv: list[str]) -> None:
  """Raises the UserError that `check` has for the first --config.a.b=VALUE that is no field."""
  try:
    config = _parsed([argv[0], *_config_flags(argv)])[0].config
  except Exception:  # the file's own, which the caller reports
    return
  for name in (a.split("=", 1)[0] for a in argv if a.startswith(("--config.", "-config."))):
    block = config
    for field in name.split(".")[1:]:
      if not isinstance(block, ConfigDict):
        break
      if field not in block:
        with config.unlocked():
          block[field] = ""
        config_lib.check(config)
      block = block[field]


def _config_flags(argv: list[str]) -> list[str]:
  return [a for a in argv if a.startswith(("--config=", "-config="))]


def _config_path(argv: list[str]) -> pathlib.Path:
  given = _config_flags(argv)
  if not given:
    raise UserError("--config=configs/VARIANT.py[:RECIPE] is missing: see --help")
  path = pathlib.Path(given[-1].split("=", 1)[1].split(":")[0])
  if not path.is_file():
    choices = sorted(p.stem for p in pathlib.Path("configs").glob("*.py"))
    variants = f"; variants in configs/: {', '.join(choices)}" if choices else ""
    raise UserError(f"--config={path}: no such file{variants}")
  return path


def _first_line(error: Exception) -> str:
  text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
  return " ".join(text.split())[:300]


def guard(main: Callable[[list[str]], int]) -> int:
  """Runs a command; a user's mistake becomes one line on standard error and status 2."""
  console.start_logging()
  try:
    return main(sys.argv)
  except UserError as error:
    return _end(_fail(str(error)))
  except KeyboardInterrupt:
    console.err.print("interrupted; the same command goes on from the last save", highlight=False)
    return _end(130)
  except Interrupted as stop:
    console.err.print("stopped and saved; the same command resumes", highlight=False)
    if stop.signum != signal.SIGTERM:
      return _end(128 + stop.signum)
    # Who sends SIGTERM wants it saved: that is success, unless a launcher asks to tell it apart.
    return _end(int(os.environ.get("JAXKD_STOPPED_STATUS", "0")))
  except Exception as error:
    if _disk_full(error):
      status = _fail("no space left on device: free some and run the same command to resume")
      return _leave_at_once(status)
    if "JAXKD_PROCESSES" in os.environ:
      traceback.print_exc()
      return _end(1)
    raise


def _end(status: int) -> int:
  """The status; in a run of several processes it is left at once, not after waiting for them."""
  return _leave_at_once(status) if "JAXKD_PROCESSES" in os.environ else status


def _leave_at_once(status: int) -> int:
  """Ends the process: its writers in the background would each report the full disk once more."""
  sys.stderr.flush()
  os._exit(status)


def _disk_full(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    if "No space left on device" in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _fail(line: str) -> int:
  console.err.print(f"error: {line}", highlight=False, markup=False, soft_wrap=True)
  return 2
