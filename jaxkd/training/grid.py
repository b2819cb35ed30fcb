"""The runs of a grid, trained one after the other beside their teacher."""

import logging
import pathlib
import time

import jax
from ml_collections import ConfigDict
from rich.table import Table

from jaxkd import buckets, console
from jaxkd.config.grids import Cell
from jaxkd.errors import UserError
from jaxkd.training import assembly, loop

log = logging.getLogger(__name__)


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
    UserError: the folder cannot be made, or the teacher cannot be trained or used.
    Interrupted: a signal came; the same cells go on.
  """
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
      console.err.print(_table(cells, rows))
  return {name: found for name, found in rows.items() if isinstance(found, str)}


def _teacher(config: ConfigDict, seed: int, folder: pathlib.Path, opened: dict) -> str:
  """The workdir of the teacher of a config with a seed, trained first."""
  config.seed = seed
  teacher = assembly.plan_run(config, folder / "run", opened).teacher
  loop.carry_out(teacher)
  return buckets.name(teacher.folder)


def _table(cells: list[Cell], rows: dict[str, dict | str]) -> Table:
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
