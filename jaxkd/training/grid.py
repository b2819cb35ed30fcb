"""The runs of a grid, trained one after the other beside their teacher."""

import logging
import pathlib
import time

import jax
from ml_collections import ConfigDict
from rich.table import Table

from jaxkd import buckets, console
from jaxkd.config.grids import Cell
from jaxkd.errors import TryAgain, UserError
from jaxkd.training import assembly, loop

log = logging.getLogger(__name__)


def train_all(
  cells: list[Cell], folder: pathlib.Path, *, teacher_seed: int | None = None
) -> dict[str, UserError]:
  """Trains what is not finished; a run that fails is left, and the others go on.

  Args:
    cells: of the grid, or those of it that are wanted now.
    folder: of its workdirs.
    teacher_seed: of the one teacher of all seeds; None where each has its own.

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
  opened: dict = {}
  sources: dict[int, str] = {}  # seed → workdir of its teacher
  rows: dict[str, dict | UserError] = {}
  for cell in cells:
    started = time.monotonic()
    config = cell.config.copy_and_resolve_references().unlock()
    if config.teacher.source == "train":
      seed = config.seed if teacher_seed is None else teacher_seed
      if seed not in sources:
        sources[seed] = _teacher(config.copy_and_resolve_references(), seed, folder, opened)
      config.teacher.source = sources[seed]
    try:
      rows[cell.name] = _trained(config.lock(), folder / cell.name, opened)
    except UserError as error:
      rows[cell.name] = error
      log.warning("%s failed: %s", cell.name, error)
    seconds, left = time.monotonic() - started, len(cells) - len(rows)
    log.info("%s: %.0f s; %d of %d runs to go", cell.name, seconds, left, len(cells))
    if console.err.is_terminal or not left:
      console.err.print(_table(cells, rows))
  return {name: found for name, found in rows.items() if isinstance(found, UserError)}


def _trained(config: ConfigDict, workdir: pathlib.Path, opened: dict) -> dict:
  """The results of a run; what may pass is tried once more.

  Raises:
    UserError: it failed, also for want of memory, where one process can tell that alone.
  """
  run = lambda: loop.carry_out(assembly.plan_run(config, workdir, opened))
  try:
    try:
      return run()
    except TryAgain as error:
      log.warning("%s: %s; once more", workdir.name, error)
      return run()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error) or jax.process_count() > 1:
      raise
    raise UserError(f"not enough memory: {str(error).splitlines()[0]}") from error


def _teacher(config: ConfigDict, seed: int, folder: pathlib.Path, opened: dict) -> str:
  """The workdir of the teacher of a config with a seed, trained first."""
  config.seed = seed
  teacher = assembly.plan_run(config, folder / "run", opened).teacher
  loop.carry_out(teacher, wait=True)  # the same grid may run beside this one
  return buckets.name(teacher.folder)


def _table(cells: list[Cell], rows: dict[str, dict | UserError]) -> Table:
  """How the runs stand: results by name, or why one failed."""
  found = Table(title=f"{len(rows)} of {len(cells)} runs", title_justify="left")
  for heading in ("run", "dev WER %", "test WER %", "seconds"):
    found.add_column(heading, justify="left" if heading == "run" else "right")
  for cell in cells:
    result = rows.get(cell.name)
    if result is None:
      found.add_row(cell.name, "", "", "", style="dim")
    elif isinstance(result, UserError):
      found.add_row(cell.name, "failed", "", "", style="red")
    else:
      rates = [console.percent(_wer(result, split)) for split in ("dev", "test")]
      found.add_row(cell.name, *rates, f"{result['wall_seconds']:.0f}")
  return found


def _wer(result: dict, split: str) -> float | None:
  return result.get(split, {}).get("student", {}).get("wer")
