"""Several teachers as one."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.models.acoustic import AcousticModel
from jaxkd.types import FrameOutput


class Ensemble(nnx.Module):
  """Several models as one, by the mean of their probabilities."""

  def __init__(self, members: list[nnx.Module]):
    self.members = nnx.List(members)

  def __call__(self, audio: jax.Array, audio_len: jax.Array) -> FrameOutput:
    """Logits f32[B, T, V], normalised, and mask bool[B, T]; T is that of the shortest output."""
    outputs = [member(audio, audio_len) for member in self.members]
    size = min(out.mask.shape[1] for out in outputs)
    log_probs = jnp.stack([jax.nn.log_softmax(out.logits[:, :size]) for out in outputs])
    mask = functools.reduce(jnp.logical_and, (out.mask[:, :size] for out in outputs))
    mean = jax.nn.logsumexp(log_probs, 0) - jnp.log(len(outputs))
    return FrameOutput(mean, mask)


def ensemble(teachers: list[AcousticModel]) -> AcousticModel:
  """One teacher whose posterior is the mean of those of several.

  Args:
    teachers: with one vocabulary and one frame length.
  """
  models = [nnx.merge(teacher.graphdef, teacher.params) for teacher in teachers]
  first = teachers[0]
  return AcousticModel(*nnx.split(Ensemble(models)), first.vocabulary, first.frame_samples)
