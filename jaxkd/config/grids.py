"""A grid: which runs a file asks for, with the config of each."""

import dataclasses
import fnmatch
import importlib.machinery
import importlib.util
import itertools
import pathlib

from ml_collections import ConfigDict

from jaxkd import config as config_lib
from jaxkd.config import overrides as overrides_lib
from jaxkd.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a grid.

  Attributes:
    name: of its workdir.
    arguments: of `jaxkd train`, without the workdir.
    config: that they give.
  """

  name: str
  arguments: tuple[str, ...]
  config: ConfigDict


def load(path: pathlib.Path, recipe: str) -> dict:
  """The grid of a file.

  Args:
    path: of a file that defines get_grid(recipe).
    recipe: it is for.

  Returns:
    scales, seeds: of all runs.
    variants: name → its fields, each with the values that it takes, or pairs of these where a name
      comes more than once; kd.scale among the fields takes the place of `scales`.
    teachers: "one" for all seeds, which is the default, or "each" seed its own.
    claims: what the report is to judge (`jaxkd.report.claims.Claim`), as dicts.

  Raises:
    UserError: the file defines no grid.
  """
  # By this loader, a file is Python whatever it is called.
  loader = importlib.machinery.SourceFileLoader(path.stem, str(path))
  module = importlib.util.module_from_spec(importlib.util.spec_from_loader(path.stem, loader))
  try:
    loader.exec_module(module)
    grid = {"teachers": "one", "claims": []} | module.get_grid(recipe)
    names = ("scales", "seeds", "variants", "teachers", "claims")
    grid = {name: grid[name] for name in names}
    _check_types(grid)
    return grid
  except Exception as error:  # whatever the file raises
    raise UserError(
      f"{path}: get_grid(recipe) must return a dict of scales, seeds and variants: "
      f"{type(error).__name__}: {error}"
    ) from error


def _check_types(grid: dict) -> None:
  """Raises ValueError for what is no list of values where one must be."""
  if grid["teachers"] not in ("one", "each"):
    raise ValueError(f"teachers is {grid['teachers']!r}; it must be 'one' or 'each'")
  lists = {name: grid[name] for name in ("scales", "seeds", "claims")}
  variants = _pairs(grid["variants"])
  for variant, varied in variants:
    if not isinstance(varied, dict):
      raise ValueError(f"variants: {variant} has {varied!r}; it must be a dict of fields, or {{}}")
    lists |= {f"{variant}: {field}": values for field, values in varied.items()}
  for name in ("scales", "seeds"):
    if isinstance(grid[name], (tuple, list, range)) and not len(grid[name]):
      raise ValueError(f"{name} is {grid[name]!r}; it must have one value or more")
  for name, values in lists.items():
    if not isinstance(values, (tuple, list, range)):
      raise ValueError(f"{name} is {values!r}; it must be a tuple or list of values")


def _pairs(variants) -> list[tuple[str, dict]]:
  """Name and fields of each variant; a name may come more than once."""
  pairs = list(variants.items() if isinstance(variants, dict) else variants)
  if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
    raise ValueError(f"variants is {variants!r}; it must be a dict of names and fields, or pairs")
  return pairs


def cells_of(grid: dict, recipe: str, overrides: tuple[str, ...], unlabelled: str) -> list[Cell]:
  """All runs, seeds outermost, so that an early stop leaves whole grids.

  Args:
    grid: as `load` returns it.
    recipe: of every run.
    overrides: flags of fields for every run, `--config.a.b=VALUE`.
    unlabelled: what runs that read no transcripts train on; "" for what the others have.

  Raises:
    UserError: a variant, field or value that does not exist or fit; two runs of one name.
  """
  cells = []
  for seed, (variant, varied) in itertools.product(grid["seeds"], _pairs(grid["variants"])):
    fields = dict(varied)
    first = _cell(variant, recipe, overrides, None, {}, seed, unlabelled)
    # A variant without distillation has no scale.
    scales = (
      fields.pop("kd.scale", grid["scales"]) if config_lib.distils(first.config.kd) else (None,)
    )
    for scale, values in itertools.product(scales, itertools.product(*fields.values())):
      chosen = dict(zip(fields, values, strict=True))
      cells.append(_cell(variant, recipe, overrides, scale, chosen, seed, unlabelled))
  _check_names(cells)
  return cells


def _check_names(cells: list[Cell]) -> None:
  """Each run has its own workdir."""
  named: dict[str, Cell] = {}
  for cell in cells:
    other = named.setdefault(cell.name, cell)
    if other is not cell:
      own = [x for x in cell.arguments if x not in other.arguments]
      its = [x for x in other.arguments if x not in cell.arguments]
      what = f"{' '.join(its)} and {' '.join(own)}" if own or its else "it is there twice"
      raise UserError(
        f"two runs of the grid would have the workdir {cell.name} ({what}): names are made of the "
        "values, and of data of its file's name: let these differ"
      )


def _cell(variant, recipe, overrides, scale, fields: dict, seed: int, unlabelled: str) -> Cell:
  given = [f"--config={variant}:{recipe}", *overrides, f"--config.seed={seed}"]
  given += [f"--config.{field}={value}" for field, value in fields.items()]
  if scale is not None:
    given.append(f"--config.kd.scale={scale}")
  if unlabelled and not config_lib.reads_transcripts(overrides_lib.parse(["", *given])[0].kd):
    given.append(f"--config.data.train={unlabelled}")
  config = overrides_lib.parse(["", *given])[0]
  named = {field: value for field, value in fields.items() if field != "data.train"}
  parts = [variant, *(f"{field.rpartition('.')[2]}{value}" for field, value in named.items())]
  parts += [] if scale is None else [f"scale{scale}"]
  train = config_lib.train_data(config).split(",")
  parts += ["+".join(pathlib.Path(spec).stem.rpartition(":")[2] for spec in train), f"s{seed}"]
  # A value may be a path.
  return Cell("-".join(parts).replace("/", "-"), tuple(given), config)


def chosen(cells: list[Cell], only: str) -> list[Cell]:
  """The cells whose names begin with or match one of `only`, which has commas between.

  Args:
    cells: of the grid.
    only: beginnings of names, or patterns such as `*-s1`; "" for all cells.

  Raises:
    UserError: a name that no cell has, or no name.
  """
  if not only:
    return cells
  wanted = [name.strip() for name in only.split(",") if name.strip()]
  if not wanted:
    raise UserError(f"--only={only}: no name in it; leave it out for all runs")
  for name in wanted:
    if not any(_fits(cell, name) for cell in cells):
      names = ", ".join(cell.name for cell in cells)
      raise UserError(
        f"--only={only}: no run's name begins with or fits '{name}'; the runs: {names}"
      )
  return [cell for cell in cells if any(_fits(cell, name) for name in wanted)]


def _fits(cell: Cell, wanted: str) -> bool:
  return cell.name.startswith(wanted) or fnmatch.fnmatchcase(cell.name, wanted)
