"""What a run says before it trains: of data, batches and stores that serve it badly."""

import logging

import numpy as np

from jaxkd import config as config_lib
from jaxkd.data import plan
from jaxkd.data.sources import Source
from jaxkd.devices import mesh
from jaxkd.teacher.stored import Stored
from jaxkd.training.run import Data

log = logging.getLogger(__name__)
# Training on more with the smallest models is worth a line.
_TINY_HOURS = 10.0
_MUCH_PADDING = 0.2


def size(recipe: str, train: Source) -> None:
  """Says what else there is, where much is to be learnt by the smallest models."""
  data, models = config_lib.parts(recipe)
  hours = float(train.durations.sum()) / 3600
  if models == "tiny" and hours > _TINY_HOURS:
    others = [f"{name} ({s.about})" for name, s in config_lib.SIZES.items() if name != "tiny"]
    log.warning(
      "%s has %.0f hours, and this recipe's models are tiny: --config=VARIANT:%s-SIZE with %s can "
      "learn more from so much",
      train.name,
      hours,
      data,
      ", ".join(others),
    )


def spoken_for(teacher: Stored, data: Data) -> frozenset[str]:
  """Which of dev and test a store can speak for its teacher on; says where it cannot."""
  found = set()
  for split, source in data.held_out().items():
    if teacher.has(source):
      found.add(split)
    else:
      log.warning(
        "%s has not all of %s: there are no figures of the teacher on it",
        teacher.source,
        source.name,
      )
  return frozenset(found)


def padding(rate: float, buckets: int) -> None:
  if rate > _MUCH_PADDING:
    log.warning(
      "%.0f %% of the training batches are padding: more than config.training.buckets=%d, "
      "config.training.join_seconds, or another config.data.max_seconds make it less",
      100 * rate,
      buckets,
    )


def filler(shapes: tuple[plan.Shape, ...], devices: int) -> None:
  """Says which batches would fill the devices, where rows without audio are many."""
  rows = np.array([[shape.rows, mesh.padded_rows(shape.rows, devices)] for shape in shapes])
  filler = 1 - rows[:, 0] / rows[:, 1]
  worst = int(filler.argmax())
  if filler[worst] > _MUCH_PADDING:
    seconds = int(np.ceil(rows[worst, 1] * shapes[worst].seconds))
    log.warning(
      "batches of %d rows of %.1f s are filled up to %d, one for each device at least: "
      "config.training.batch_seconds=%d fills them with audio",
      rows[worst, 0],
      shapes[worst].seconds,
      rows[worst, 1],
      seconds,
    )
