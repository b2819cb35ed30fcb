"""jaxkd grid: every run of a grid one after the other, beside one teacher, then the report."""

import dataclasses
import fnmatch
import importlib.machinery
import importlib.util
import itertools
import logging
import pathlib
import shlex
import time

from ml_collections import ConfigDict
from rich.table import Table

from jaxkd import buckets, console, workdirs
from jaxkd import config as config_lib
from jaxkd.commands import line
from jaxkd.config import overrides as overrides_lib
from jaxkd.errors import UserError

log = logging.getLogger(__name__)


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.in_buckets = ("--folder", "--unlabelled")
  parser.epilog = """\
Trains variants x scales x seeds one after the other and writes their report to
FOLDER/report. The teacher is trained once; data and compiled programs are
shared. The same command goes on where it was stopped, and leaves out what is
finished. A single run of it is what --dry_run prints; with
--config.teacher.source=DIR it has the grid's teacher. Small models use one core
or a part of an accelerator: where each seed has its own teacher, start the same
command once for each with --only='*-s0', '*-s1' and so on, side by side.

example: %(prog)s small --recipe=demo"""
  add = parser.add_argument
  add(
    "grid",
    metavar="GRID",
    help=f"one of {', '.join(overrides_lib.grids())}, or a file that "
    "defines get_grid(recipe): scales, seeds, variants with the fields that vary, and claims",
  )
  add("--recipe", default="demo", help=line.recipes())
  add("--folder", metavar="DIR", help="where all runs are kept (default runs/GRID-RECIPE)")
  add(
    "--unlabelled",
    metavar="DATA",
    default="",
    help="what runs without the CTC loss (kd.scale 1) train on instead of config.data.train; "
    "the same command without it adds those runs on the same audio as the others",
  )
  add(
    "--only",
    metavar="NAMES",
    default="",
    help="names, their beginnings or patterns, with commas between: ctc,symmetric-n2-*-s0",
  )
  add("--dry_run", action="store_true", help="print the command of each run, and run nothing")
  parser.add_fields("for every run, as for jaxkd train")


def run(args) -> int:
  """Runs the grid; returns the exit status: 1 where a run failed."""
  path, recipe = overrides_lib.find_grid(args.grid), args.recipe
  grid = load(path, recipe)
  cells = cells_of(grid, recipe, tuple(args.config_fields), args.unlabelled)
  cells = chosen(cells, args.only)
  named = args.folder or f"runs/{path.stem}-{recipe}"
  folder = buckets.place(named) if buckets.is_url(named) else pathlib.Path(named)
  if args.dry_run:
    for cell in cells:
      print(
        line.pasted(),
        shlex.join(["train", f"--workdir={buckets.name(folder / cell.name)}", *cell.arguments]),
      )
    return 0
  from jaxkd import report
  from jaxkd.devices import mesh
  from jaxkd.report import plots

  plots.library()  # before hours of training rather than after
  mesh.start_processes()
  failed = train_all(cells, folder, each_its_teacher=grid["teachers"] == "each")
  if mesh.is_first():
    runs, out = sorted(p.parent for p in folder.glob(f"*/{workdirs.CONFIG}")), folder / "report"
    found = report.write(runs, buckets.output(out), claims=grid["claims"])
    console.out.print(
      f"report: {buckets.name(found)}", highlight=False, markup=False, soft_wrap=True
    )
  return 1 if failed else 0


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

  Raises:
    UserError: a variant, field or value that does not exist or fit; two runs of one name.
  """
  cells = []
  for seed, (variant, varied) in itertools.product(grid["seeds"], _pairs(grid["variants"])):
    fields = dict(varied)
    first = _cell(variant, recipe, overrides, None, {}, seed, unlabelled)
    # A variant without distillation has no scale.
    scales = fields.pop("kd.scale", grid["scales"]) if first.config.kd.scale else (None,)
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


def train_all(
  cells: list[Cell], folder: pathlib.Path, *, each_its_teacher: bool = False
) -> dict[str, str]:
  """Trains what is not finished; a run that fails is left, and the others go on.

  Args:
    cells: of the grid.
    folder: of its workdirs.
    each_its_teacher: whether each seed has its own teacher; else the first seed's is all others'.

  Returns:
    Name of each run that failed → why.

  Raises:
    UserError: the teacher cannot be trained or used.
    Interrupted: a signal came; the same cells go on.
  """
  import jax

  from jaxkd.training import assembly, loop

  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--folder={folder} cannot be made: {error.strerror}") from error
  # Seeds differ in no program, and most variants in the train step alone.
  jax.config.update("jax_compilation_cache_dir", str(folder.absolute() / ".programs"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
  opened: dict = {}
  sources: dict[int, str] = {}  # seed → workdir of its teacher
  rows: dict[str, dict | str] = {}
  for cell in cells:
    started = time.monotonic()
    config = cell.config.copy_and_resolve_references().unlock()
    if config.teacher.source == "train":
      seed = config.seed if each_its_teacher else cells[0].config.seed
      if seed not in sources:
        sources[seed] = _teacher(config.copy_and_resolve_references(), seed, folder, opened)
      config.teacher.source = sources[seed]
    try:
      plan = assembly.plan_run(config.lock(), folder / cell.name, opened)
      rows[cell.name] = loop.carry_out(plan)
    except UserError as error:
      rows[cell.name] = str(error)
      log.warning("%s failed: %s", cell.name, error)
    seconds, left = time.monotonic() - started, len(cells) - len(rows)
    log.info("%s: %.0f s; %d of %d runs to go", cell.name, seconds, left, len(cells))
    if console.err.is_terminal or not left:
      console.err.print(table(cells, rows))
  return {name: found for name, found in rows.items() if isinstance(found, str)}


def _teacher(config: ConfigDict, seed: int, folder: pathlib.Path, opened: dict) -> str:
  """The workdir of the teacher of a config with a seed, trained first."""
  from jaxkd.training import assembly, loop

  config.seed = seed
  teacher = assembly.plan_run(config, folder / "run", opened).teacher
  loop.carry_out(teacher)
  return buckets.name(teacher.folder)


def table(cells: list[Cell], rows: dict[str, dict | str]) -> Table:
  """How the runs stand: results by name, or why one failed."""
  found = Table(title=f"{len(rows)} of {len(cells)} runs", title_justify="left")
  for heading in ("run", "dev WER %", "test WER %", "seconds"):
    found.add_column(heading, justify="left" if heading == "run" else "right")
  for cell in cells:
    result = rows.get(cell.name)
    if result is None:
      found.add_row(cell.name, "", "", "", style="dim")
    elif isinstance(result, str):
      found.add_row(cell.name, "failed", "", "", style="red")
    else:
      rates = [console.percent(_wer(result, split)) for split in ("dev", "test")]
      found.add_row(cell.name, *rates, f"{result['wall_seconds']:.0f}")
  return found


def _wer(result: dict, split: str) -> float | None:
  return result.get(split, {}).get("student", {}).get("wer")
