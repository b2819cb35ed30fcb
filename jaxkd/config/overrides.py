"""Which config a command line means: a variant by its file or its name, a recipe, single fields."""

import itertools
import pathlib
import re

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxkd import buckets, files
from jaxkd import config as config_lib
from jaxkd.config import fields, recipes, schema
from jaxkd.config.check import check_values
from jaxkd.errors import UserError, did_you_mean


def configs_folder() -> pathlib.Path:
  """Where the variants and grids lie: in an installed package, or beside it in a checkout."""
  package = pathlib.Path(__file__).parents[1]
  inside = package / "configs"
  return inside if inside.is_dir() else package.parent / "configs"


def variants() -> list[str]:
  """Names of the variants that come with the package."""
  return _names(configs_folder())


def grids() -> list[str]:
  """Names of the grids that come with the package."""
  return _names(configs_folder() / "grids")


def find_variant(given: str) -> pathlib.Path:
  """The config file of a path or of a name such as "symmetric".

  Raises:
    UserError: neither a file nor a name.
  """
  return _find(given, configs_folder(), f"--config={given}", "variant")


def find_grid(given: str) -> pathlib.Path:
  """The file of a grid, of a path or of a name such as "small".

  Raises:
    UserError: neither a file nor a name.
  """
  return _find(given, configs_folder() / "grids", given, "grid")


def _find(given: str, folder: pathlib.Path, shown: str, kind: str) -> pathlib.Path:
  path, named = files.expanded(given), folder / f"{given}.py"
  # A name first: what happens to lie in the working directory must not hide it.
  if "/" not in given and named.is_file():
    return named
  if path.is_file():
    return path
  names = _names(folder)
  hint = did_you_mean(path.stem, names)
  raise UserError(f"{shown}: no such file or {kind}{hint}; {kind}s: {', '.join(names)}")


def _names(folder: pathlib.Path) -> list[str]:
  return sorted(p.stem for p in folder.glob("*.py"))


def parse(argv: list[str]) -> tuple[ConfigDict, pathlib.Path]:
  """Config (its variant named after the file) and workdir from a command line.

  Args:
    argv: the program, which is not read, then `--config=VARIANT[:RECIPE]`, `--workdir=DIR`,
      `--profile=A:B` and `--config.a.b=VALUE` in any order; the later of two wins.

  Raises:
    UserError: a flag, file, field or value that does not exist or fit.
  """
  path, argv = _resolved(argv)
  config = None
  try:
    config = _loaded(argv)
    if isinstance(config, ConfigDict):
      _switch_kinds(config, argv)
      _check_fields(config, argv)
      values, rest = _parsed(config, argv)
  except UserError:
    raise
  except SyntaxError as error:
    raise UserError(f"--config={path}: line {error.lineno}: {error.msg}") from error
  except Exception as error:  # whatever a config file or a value raises
    _blame_value(config, argv)
    raise UserError(f"--config={path}: {_first_line(error)}") from error
  if not isinstance(config, ConfigDict) or "recipe" not in config:
    raise UserError(f"--config={path}: get_config must return what jaxkd.config.base() made")
  if len(rest) > 1:
    raise UserError(f"'{rest[1]}' is not a flag")
  config = values.config
  with config.unlocked():
    config.variant = path.stem
    config.profile = values.profile or config.get("profile", "")
  config_lib.check(config)
  folder = values.workdir or f"runs/{path.stem}-{config.recipe}"
  return config, buckets.place(folder)


def _resolved(argv: list[str]) -> tuple[pathlib.Path, list[str]]:
  """The config's file, and the command line with that in the place of what names it."""
  given = _config_flags(argv)
  if not given:
    raise UserError("--config=VARIANT[:RECIPE] is missing, such as --config=symmetric:demo")
  name, *recipe = given[-1].partition("=")[2].split(":", 1)
  path = find_variant(name)
  _refuse_names(name, argv)
  flag = "--config=" + ":".join([str(path), *recipe])
  return path, [argv[0], flag, *(a for a in argv[1:] if a not in given)]


def _refuse_names(variant: str, argv: list[str]) -> None:
  """Refuses flags of the fields that only --config= sets."""
  for flag in _field_flags(argv):
    name, _, value = flag.lstrip("-").partition("=")
    if name == "config.variant":
      raise UserError(f"{flag}: a variant is given as --config={value or 'VARIANT'}")
    if name == "config.recipe":  # other fields already have the data and size of another recipe
      value = value or "RECIPE"
      raise UserError(
        f"{flag}: give it as --config={variant}:{value}, or to a grid as --recipe={value}"
      )


def _loaded(argv: list[str]):
  """What the config's file makes, whatever it is."""
  values, given = flags.FlagValues(), [argv[0], *_config_flags(argv)]
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=given)
  values(given)
  return values.config


def _switch_kinds(config: ConfigDict, argv: list[str]) -> None:
  """Gives blocks the fields of the kind that a flag names, so that other flags can set them."""
  for flag in _field_flags(argv):
    name, _, value = flag.partition("=")
    *path, field = name.split(".")[1:]
    node, block = fields.FIELDS, config
    for part in path:
      node = node.fields.get(part) if isinstance(node, schema.Block) else None
      block = block.get(part) if isinstance(block, ConfigDict) else None
    if not isinstance(node, schema.Kinds) or not isinstance(block, ConfigDict):
      continue
    with config.unlocked():
      if field == "name" and value in node.kinds and value != block.get("name"):
        for old in list(block):
          del block[old]
        block.update(schema.defaults(node, value))
        block.update(recipes.of_another_kind(config.recipe, ".".join(path), value))
      elif field not in block and field in (known := node.of(block.get("name", ""))):
        block[field] = known[field].default


def _parsed(config: ConfigDict, argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
  """Flags, with those of single fields put into the config, and what is none."""
  argv = [a for a in argv if a not in _config_flags(argv)]
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  flags.DEFINE_string("profile", None, "", flag_values=values)
  return values, values(argv)


def _check_fields(config: ConfigDict, argv: list[str]) -> None:
  """Raises a UserError for the first --config.a.b=VALUE that is no field or lacks its value."""
  for flag, following in itertools.pairwise([*argv, "-"]):
    if not _field_flags([flag]):
      continue
    name, mark, _ = flag.lstrip("-").partition("=")
    _check_name(name, config)
    node = _node(name, config)
    if mark or not isinstance(node, schema.Field) or isinstance(node.default, bool):
      continue
    # absl would take the next flag for the value, as after a shell variable that is not set.
    if re.match(r"-($|[^\d.])", following):
      raise UserError(f"--{name} needs a value, as in --{name}=VALUE")


def _check_name(name: str, config: ConfigDict) -> None:
  """Raises a UserError, that of `check` where it has one, for the name of no field or block."""
  path, block = "config", config
  for field in name.split(".")[1:]:
    if not isinstance(block, ConfigDict):
      check_values(config)
      is_ = schema.allowed(_node(path, config))
      raise UserError(f"{path}.{field}: no such field: {path} is no block, but {is_}")
    if field not in block:
      with config.unlocked():
        block[field] = ""
      check_values(config)
    path, block = f"{path}.{field}", block[field]


def _blame_value(config, argv: list[str]) -> None:
  """Raises a UserError for the first --config.a.b=VALUE whose value is none of its field."""
  for flag in _field_flags(argv) if isinstance(config, ConfigDict) else ():
    name, _, value = flag.lstrip("-").partition("=")
    try:
      _parsed(config.copy_and_resolve_references(), [argv[0], flag])
    except Exception as error:  # whatever absl and ml_collections raise
      check_values(config)  # the file's own mistakes: below, the table has every part of the name
      raise UserError(f"{name} is {value!r}: {_wanted(name, value, config)}") from error


def _wanted(name: str, value: str, config: ConfigDict) -> str:
  """What a field of a config, or a block, must be."""
  node = _node(name, config)
  if isinstance(node, schema.Field):
    return f"it must be {schema.allowed(node)}"
  if isinstance(node, schema.Kinds):
    flag = f"--{name}.name={value if value in node.kinds else 'KIND'}"
    return f"it is a block, whose kind is {flag}: {', '.join(node.kinds)}"
  return f"it is a block, whose fields are flags: --{name}.FIELD=VALUE of {', '.join(node.fields)}"


def _node(name: str, config: ConfigDict) -> schema.Field | schema.Block | schema.Kinds | None:
  """What the table has by a dotted name that the config has; None where it has none."""
  node, block = fields.FIELDS, config
  for part in name.split(".")[1:]:
    if node is None or isinstance(node, schema.Field):
      return None
    known = node.of(block.get("name", "")) if isinstance(node, schema.Kinds) else node.fields
    node, block = known.get(part), block[part]
  return node


def _config_flags(argv: list[str]) -> list[str]:
  return [a for a in argv if a.startswith(("--config=", "-config="))]


def _field_flags(argv: list[str]) -> list[str]:
  return [a for a in argv if a.startswith(("--config.", "-config."))]


def _first_line(error: Exception) -> str:
  text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
  return " ".join(text.split())[:300]
