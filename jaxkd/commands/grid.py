"""jaxkd grid: every run of a grid one after the other, beside one teacher, then the report."""

import shlex

from jaxkd import buckets, console, workdirs
from jaxkd.commands import line
from jaxkd.config import grids, overrides
from jaxkd.errors import TRY_AGAIN, TryAgain


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.in_buckets = ("--folder", "--unlabelled")
  parser.epilog = """\
Trains variants x scales x seeds one after the other and writes their report to
FOLDER/report. The teacher is trained once, or once a seed, as the grid says;
data and compiled programs are shared. The same command goes on where it was
stopped, and leaves out what is finished. A single run of it is what --dry_run
prints; with --config.teacher.source=DIR it has the grid's teacher. Small models
use one core or a part of an accelerator: where each seed has its own teacher,
start the same command once for each with --only='*-s0', '*-s1' and so on, side
by side.

example: %(prog)s small --recipe=demo"""
  add = parser.add_argument
  add(
    "grid",
    metavar="GRID",
    help=f"one of {', '.join(overrides.grids())}, or a file that "
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
  """Runs the grid; returns the exit status: 1 where a run failed, TRY_AGAIN where that may pass."""
  path, recipe = overrides.find_grid(args.grid), args.recipe
  grid = grids.load(path, recipe)
  cells = grids.cells_of(grid, recipe, tuple(args.config_fields), args.unlabelled)
  cells = grids.chosen(cells, args.only)
  named = args.folder or f"runs/{path.stem}-{recipe}"
  folder = buckets.place(named)
  if args.dry_run:
    for cell in cells:
      print(
        line.pasted(),
        shlex.join(["train", f"--workdir={buckets.name(folder / cell.name)}", *cell.arguments]),
      )
    return 0
  from jaxkd import report
  from jaxkd.devices import mesh
  from jaxkd.report import claims, plots
  from jaxkd.training.grid import train_all

  plots.library()  # before hours of training rather than after
  claims.read(grid["claims"])
  mesh.start_processes()
  # Of all seeds, whichever of them --only leaves.
  teacher_seed = None if grid["teachers"] == "each" else grid["seeds"][0]
  failed = train_all(cells, folder, teacher_seed=teacher_seed)
  runs, out = sorted(p.parent for p in folder.glob(f"*/{workdirs.CONFIG}")), folder / "report"
  if mesh.is_first() and (not failed or any(map(workdirs.is_finished, runs))):
    found = report.write(runs, buckets.output(out), claims=grid["claims"])
    console.out.print(
      f"report: {buckets.name(found)}", highlight=False, markup=False, soft_wrap=True
    )
  if any(isinstance(error, TryAgain) for error in failed.values()):
    return TRY_AGAIN
  return 1 if failed else 0
