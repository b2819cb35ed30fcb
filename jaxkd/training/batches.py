"""How much audio is in a run's batches, and what their rows are a multiple of."""

import logging
import pathlib
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxkd import files, workdirs
from jaxkd.devices import mesh
from jaxkd.errors import UserError

log = logging.getLogger(__name__)
FILE = "batches.json"


class Budget(NamedTuple):
  """What `plan.shapes` makes batches of.

  Attributes:
    batch_seconds: of audio in a batch.
    multiple: its rows are a multiple of this, where that changes little.
    strict: they always are, whatever it changes.
  """

  batch_seconds: float
  multiple: int
  strict: bool


def of_config(training: ConfigDict, devices: int) -> Budget:
  """What a config asks for.

  Args:
    training: its block of that name.
    devices: that the run begins with.
  """
  if each := training.batch_seconds_per_device:
    return Budget(each * devices, devices, True)
  return Budget(training.batch_seconds, training.row_multiple or devices, False)


def join_seconds(training: ConfigDict, stored: bool) -> float:
  """Seconds that rows are joined up to; 0 beside stored frames, of each utterance alone.

  A CTC model puts its labels elsewhere where an utterance has others beside it.

  Args:
    training: as in `of_config`.
    stored: whether the teacher's frames are.
  """
  return 0.0 if stored else training.join_seconds


def of_run(training: ConfigDict, devices: int, workdir: pathlib.Path) -> Budget:
  """What a run began with: it resumes with the same batches on any number of devices.

  Args:
    training, devices: as in `of_config`.
    workdir: of the run, which is claimed.
  """
  wanted = of_config(training, devices)
  found = Budget(*mesh.agreed(_recorded(workdir, wanted)))
  if found != wanted:
    log.info(
      "goes on with the batches that it began with: %g s, rows in multiples of %d",
      found.batch_seconds,
      found.multiple,
    )
  return found


def _recorded(workdir: pathlib.Path, wanted: Budget) -> Budget:
  """By the first process: what is recorded of a run that can be resumed; else it is `wanted`."""
  if not mesh.is_first():
    return wanted
  path = workdir / FILE
  if workdirs.saved_steps(workdir):
    # Before there was a record, batches did not depend on devices.
    return _read(path) if path.exists() else wanted._replace(multiple=1)
  files.write_json(path, wanted._asdict())
  return wanted


def _read(path: pathlib.Path) -> Budget:
  found = files.read_json(path, kind=dict)
  try:
    return Budget(**found)
  except TypeError as error:
    raise UserError(f"{path} cannot be read: it must have {', '.join(Budget._fields)}") from error
