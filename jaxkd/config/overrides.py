"""Which config a command line means: a variant by its file or its name, a recipe, single fields."""

import pathlib

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxkd import config as config_lib
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
  path, named = pathlib.Path(given).expanduser(), folder / f"{given}.py"
  if path.is_file():
    return path
  if named.parent == folder and named.is_file():
    return named
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
    raise UserError(f"'{rest[1]}' is not a flag")
  config = values.config
  if not isinstance(config, ConfigDict) or "recipe" not in config:
    raise UserError(f"--config={path}: get_config must return what jaxkd.config.base() made")
  with config.unlocked():
    config.variant = path.stem
    config.profile = values.profile or config.get("profile", "")
  config_lib.check(config)
  folder = values.workdir or f"runs/{path.stem}-{config.recipe}"
  return config, pathlib.Path(folder)


def _resolved(argv: list[str]) -> tuple[pathlib.Path, list[str]]:
  """The config's file, and the command line with that in the place of what names it."""
  given = _config_flags(argv)
  if not given:
    raise UserError("--config=VARIANT[:RECIPE] is missing, such as --config=symmetric:demo")
  name, *recipe = given[-1].partition("=")[2].split(":", 1)
  path = find_variant(name)
  flag = "--config=" + ":".join([str(path), *recipe])
  return path, [argv[0], flag, *(a for a in argv[1:] if a not in given)]


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


def _first_line(error: Exception) -> str:
  text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
  return " ".join(text.split())[:300]
