"""The model that a finished run has left in its workdir."""

import dataclasses
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxkd import config as config_lib
from jaxkd import files, workdirs
from jaxkd.devices import sharding
from jaxkd.errors import UserError
from jaxkd.labels import Vocabulary
from jaxkd.models import parameters, registry
from jaxkd.models.acoustic import AcousticModel
from jaxkd.models.registry import Architecture

FINAL = pathlib.Path("checkpoints", "final")
DESCRIPTION = "huggingface.json"


@dataclasses.dataclass(frozen=True)
class Kept:
  """All of a finished run's model but its parameters.

  Attributes:
    folder: the workdir.
    config: of the run, complete.
    vocabulary: its classes.
    architecture: of the model.
    graphdef, like: its structure and abstract parameters.
  """

  folder: pathlib.Path
  config: ConfigDict
  vocabulary: Vocabulary
  architecture: Architecture
  graphdef: Any
  like: Any

  def load(self, devices: jax.sharding.Mesh) -> AcousticModel:
    """The model, laid out on the devices.

    Raises:
      UserError: parameters that cannot be read or are of another model.
    """
    like = jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      self.like,
      sharding.of_state(devices, self.like),
    )
    params = parameters.load_params(self.folder / FINAL, like)
    return AcousticModel(self.graphdef, params, self.vocabulary, self.architecture.frame_samples)


def read(folder: pathlib.Path) -> Kept:
  """What a workdir says of its model; of any version.

  Raises:
    UserError: not the workdir of a finished run, or one that cannot be read.
  """
  workdirs.check_finished(folder)
  vocabulary = Vocabulary.load(folder / workdirs.LABELS)
  try:
    config = config_lib.upgrade(files.read_json(folder / workdirs.CONFIG, kind=dict))
  except UserError as error:
    told = str(folder) in str(error)
    raise error if told else UserError(f"{folder / workdirs.CONFIG}: {error}") from error
  description = None
  if config.student.name == "huggingface":
    description = files.read_json(folder / DESCRIPTION)
  architecture = registry.architecture(
    config.student, config.features, dtype=config.dtype, description=description
  )
  structure = architecture.structure(len(vocabulary.symbols))
  return Kept(folder, config, vocabulary, architecture, *structure)
