"""A model's log prior: the logarithm of its mean posterior over some audio."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import buckets, files
from jaxkd.data.sources import Source
from jaxkd.devices import mesh as mesh_lib
from jaxkd.devices import sharding
from jaxkd.inference.frames import frames
from jaxkd.models.acoustic import AcousticModel
from jaxkd.teacher.stored import Stored
from jaxkd.types import FrameOutput

OWN = "log_prior.json"  # of a workdir's own model
TEACHERS = "teacher_log_prior.json"  # where the teacher has none beside it


def log_prior(
  model: AcousticModel | Stored, source: Source, devices: jax.sharding.Mesh
) -> np.ndarray:
  """f32[V]: log of a model's mean posterior over all real frames of a source."""
  total, count = np.zeros(len(model.vocabulary.symbols)), 0
  for spoken in frames({"model": model}, source, devices, description="log prior"):
    summed, real = _posterior_sum(spoken.outputs["model"], devices)
    total, count = total + np.asarray(summed, np.float64), count + int(real)
  return np.log(np.maximum(total / max(count, 1), 1e-10)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=1)
def _posterior_sum(out: FrameOutput, devices: jax.sharding.Mesh):
  """f32[V] and i32[], a copy on every device: sums over real frames, and their number."""
  real = out.mask[..., None]
  posterior = jnp.where(real, jax.nn.softmax(jnp.where(real, out.logits, 0)), 0)
  found = posterior.sum((0, 1)), out.mask.sum()
  return jax.lax.with_sharding_constraint(found, sharding.replicated(devices))


def keep_log_prior(
  model: AcousticModel | Stored, source: Source, path: pathlib.Path, devices: jax.sharding.Mesh
) -> None:
  """Writes the log prior to a JSON file, over that of what the model was before."""
  found = log_prior(model, source, devices)
  if mesh_lib.is_first():
    files.write_json(path, found.tolist())
  mesh_lib.wait_for_all(f"{path} is written")


def kept_log_prior(
  model: AcousticModel | Stored, source: Source, path: pathlib.Path, devices: jax.sharding.Mesh
) -> np.ndarray:
  """f32[V]: the log prior in a JSON file, which is made first where it is not there."""
  if not mesh_lib.agreed(path.exists()):
    keep_log_prior(model, source, path, devices)
  return np.array(files.read_json(path), np.float32)


def place(teacher: str, workdir: pathlib.Path) -> pathlib.Path:
  """The file of a teacher's log prior: beside the teacher where that is there, else in a workdir.

  Args:
    teacher: its source.
    workdir: of the run that needs it.
  """
  beside = buckets.here(teacher) / OWN
  return beside if beside.exists() else workdir / TEACHERS
