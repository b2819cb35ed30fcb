"""How a run was made: the command line that gives its config again."""

import functools
import importlib.util
import json
import pathlib
import re
import shlex

from jaxkd import buckets
from jaxkd import config as config_lib
from jaxkd.config import overrides
from jaxkd.report.collect import Run, reproducing

# Blocks that are replaced whole: a flag can change the fields of one, but not put another there.
_TAGGED = ("kd.selection", "student", "teacher.model")


def differences(run: Run) -> dict:
  """Dotted name → value of the fields in which a run differs from its config file.

  Fields that came into being after the run are no difference.
  """
  given = _file_config(run.results["variant"], run.config["recipe"])
  return {
    field: value
    for field, value in run.config.items()
    if field not in ("variant", "recipe") and (field not in given or given[field] != value)
  }


def command(run: Run) -> str:
  """The shell command that made a run, and what no flag can set as a comment behind it."""
  variant, recipe = run.results["variant"], run.config["recipe"]
  given = _file_config(variant, recipe)
  found = differences(run)
  foreign = [b for b in _TAGGED if run.config.get(f"{b}.name") != given.get(f"{b}.name")]
  inside = lambda field: any(field.startswith(f"{block}.") for block in foreign)
  parts = ["python", "-m", "jaxkd.main", f"--config=configs/{variant}.py:{recipe}"]
  if run.folder != pathlib.Path(f"runs/{variant}-{recipe}"):
    parts.append(f"--workdir={buckets.name(run.folder)}")
  parts += [f"--config.{k}={_flag_value(v)}" for k, v in found.items() if not inside(k)]
  line = shlex.join(parts)
  unset = {k: v for k, v in found.items() if inside(k)}
  return line + (f"  # and in the config file: {json.dumps(unset)}" if unset else "")


def changed(first: str, other: str) -> str:
  """The flags to append to the first command for another run, as a comment; else that command."""
  before, flags = (shlex.split(line, comments=True) for line in (first, other))
  names = [{flag.partition("=")[0] for flag in line} for line in (before, flags)]
  if "#" in other or not names[0] <= names[1]:
    return other
  return f"# and with {shlex.join(flag for flag in flags if flag not in before)}"


def is_finetuned(run: Run) -> bool:
  """Whether a teacher was made by configs/teacher.py and not on the way to its students."""
  return run.config.get("student.name") == "huggingface"


def _flag_value(value) -> str:
  """As config flags read it: what JSON has as a list is a tuple."""
  if isinstance(value, list):
    return "(" + "".join(f"{_flag_value(v)}," for v in value) + ")"
  return str(value)


@functools.cache
def _file_config(variant: str, recipe: str) -> dict:
  """Dotted name → value of what a variant's file gives, or base() where there is no such file."""
  if recipe not in config_lib.RECIPES:
    return {}
  config = config_lib.base(recipe)
  path = overrides.configs_folder() / f"{variant}.py"
  if re.fullmatch(r"\w+", variant) and path.is_file():
    spec = importlib.util.spec_from_file_location(f"configs.{variant}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(recipe)
  return reproducing(config)
