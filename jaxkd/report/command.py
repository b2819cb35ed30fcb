"""How a run was made: the command line that gives its config again."""

import functools
import importlib.util
import json
import pathlib
import re
import shlex

from jaxkd import buckets
from jaxkd import config as config_lib
from jaxkd.config import fields, overrides, recipes, schema
from jaxkd.report.collect import Run, reproducing

# Blocks of several kinds: the flag of another kind puts that one's own defaults there.
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
  """The shell command that made a run."""
  variant, recipe = run.results["variant"], run.config["recipe"]
  given = _file_config(variant, recipe)
  found = differences(run)
  for block in _TAGGED:
    inside = {k: v for k, v in run.config.items() if k.startswith(f"{block}.")}
    kind = inside.get(f"{block}.name")
    if kind == given.get(f"{block}.name"):
      continue
    first = _of_kind(block, kind, recipe)
    found = {k: v for k, v in found.items() if k not in inside}
    found |= {f"{block}.name": kind}
    found |= {k: v for k, v in inside.items() if k not in first or first[k] != v}
  parts = ["python", "-m", "jaxkd.main", f"--config=configs/{variant}.py:{recipe}"]
  if run.folder != pathlib.Path(f"runs/{variant}-{recipe}"):
    parts.append(f"--workdir={buckets.name(run.folder)}")
  parts += [f"--config.{k}={_flag_value(v)}" for k, v in found.items()]
  return shlex.join(parts)


def _of_kind(block: str, kind: str, recipe: str) -> dict:
  """Dotted name → value of what the flag of a kind puts into a block."""
  node = fields.FIELDS
  for part in block.split("."):
    node = node.fields[part]
  made = schema.defaults(node, kind)
  if recipe in config_lib.RECIPES:
    made |= recipes.of_another_kind(recipe, block, kind)
  # Tuples are lists in the config of a run.
  return {f"{block}.{k}": v for k, v in json.loads(json.dumps(made)).items()}


def changed(first: str, other: str) -> str:
  """The flags to append to the first command for another run, as a comment; else that command."""
  before, flags = (shlex.split(line) for line in (first, other))
  names = [{flag.partition("=")[0] for flag in line} for line in (before, flags)]
  if not names[0] <= names[1]:
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
