"""A Conformer as a folder that is passed on: weights as safetensors, its structure, its classes.

`config.json` has `model_type` "jaxkd-conformer" and of the run's config what the structure needs;
`labels.json` is that of the workdir. Models of Hugging Face's families have a layout of their own.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from jaxkd import config as config_lib
from jaxkd import files, workdirs
from jaxkd.devices import sharding
from jaxkd.errors import UserError
from jaxkd.labels import Vocabulary
from jaxkd.models import registry
from jaxkd.models.acoustic import AcousticModel
from jaxkd.models.huggingface import tensors, weights
from jaxkd.models.kept import Kept
from jaxkd.models.registry import Architecture
from jaxkd.types import SAMPLE_RATE_HZ

MODEL_TYPE = "jaxkd-conformer"
# Of a run's config, and by the names that it has there.
_FIELDS = ("schema", "dtype", "student", "features")


@dataclasses.dataclass(frozen=True)
class Shared:
  """All of such a folder but its weights.

  Attributes:
    folder: where it lies.
    vocabulary: its classes.
    architecture: of the model.
    graphdef, like: its structure and abstract parameters.
  """

  folder: pathlib.Path
  vocabulary: Vocabulary
  architecture: Architecture
  graphdef: Any
  like: Any

  def load(self, devices: jax.sharding.Mesh) -> AcousticModel:
    """The model, laid out on the devices.

    Raises:
      UserError: weights that cannot be read, are missing, unused or of another shape.
    """
    params = _weights(self.folder, self.like)
    params = jax.tree.map(jax.device_put, params, sharding.of_state(devices, params))
    return AcousticModel(self.graphdef, params, self.vocabulary, self.architecture.frame_samples)


def save(folder: pathlib.Path, kept: Kept, params) -> list[pathlib.Path]:
  """Writes what `read` reads.

  Args:
    folder: made if absent.
    kept: of a run whose model is a Conformer.
    params: its parameters.

  Returns:
    The files that were written.

  Raises:
    UserError: safetensors is not installed.
    OSError: the folder cannot be written.
  """
  stored = config_lib.stored(kept.config)
  described = {"model_type": MODEL_TYPE} | {name: stored[name] for name in _FIELDS}
  described["student"] = described["student"] | {"init": ""}  # a path where it was trained
  described |= {
    "frame_samples": kept.architecture.frame_samples,
    "sampling_rate": SAMPLE_RATE_HZ,
  }
  path = tensors.write(folder, {_name(p): np.asarray(x) for p, x in _leaves(params)}, "flax")
  files.write_json(folder / "config.json", described)
  return [path, folder / "config.json", *kept.vocabulary.save(folder / workdirs.LABELS)]


def is_one(folder: pathlib.Path) -> bool:
  """Whether a folder says that it is one of these.

  Raises:
    UserError: its config.json cannot be read.
  """
  path = folder / "config.json"
  return path.exists() and files.read_json(path, kind=dict).get("model_type") == MODEL_TYPE


def read(folder: pathlib.Path) -> Shared:
  """What a folder says of its model.

  Raises:
    UserError: it is not one of these, or cannot be read.
  """
  path = folder / "config.json"
  stored = files.read_json(path, kind=dict)
  try:
    config = _config(stored)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  vocabulary = Vocabulary.load(folder / workdirs.LABELS)
  architecture = registry.architecture(config.student, config.features, dtype=config.dtype)
  return Shared(folder, vocabulary, architecture, *architecture.structure(len(vocabulary.symbols)))


def _config(stored: dict):
  """A complete config of what is stored; of the rest it has what any other has.

  Raises:
    UserError: it lacks a field, or holds a value that none may have.
  """
  if absent := [name for name in _FIELDS if name not in stored]:
    raise UserError(f"it lacks {', '.join(absent)}, which every {MODEL_TYPE} has")
  any_other = config_lib.stored(config_lib.base("demo"))
  config = config_lib.upgrade(any_other | {name: stored[name] for name in _FIELDS})
  config_lib.check(config)
  if config.student.name != "conformer":
    raise UserError(f"config.student.name is {config.student.name!r}: it must be conformer")
  return config


def _leaves(tree) -> list:
  return jax.tree_util.tree_leaves_with_path(tree)


def _name(path) -> str:
  """A leaf's path in the model, such as blocks.attention.qkv.kernel."""
  return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _weights(folder: pathlib.Path, like):
  """Parameters (NumPy) in the structure of `like`.

  Raises:
    UserError: see `Shared.load`.
  """
  names = weights.read_names(folder)
  wanted = {_name(path): leaf for path, leaf in _leaves(like)}
  found = {name: names[name] for name in wanted if name in names}
  for name, tensor in found.items():
    tensors.check_floats(name, tensor)
  shapes = {name: (tensor.shape, wanted[name].shape) for name, tensor in found.items()}
  sizes = {name: tuple(map(tensors.size, pair)) for name, pair in shapes.items()}
  problems = {
    "missing": [name for name in wanted if name not in names],
    "unused": sorted(name for name in names if name not in wanted),
    "misshapen": [f"{n} ({a} instead of {b})" for n, (a, b) in sizes.items() if a != b],
  }
  weights.refuse(folder, problems)
  arrays = [found[name].read().astype(leaf.dtype) for name, leaf in wanted.items()]
  return jax.tree.unflatten(jax.tree.structure(like), arrays)
