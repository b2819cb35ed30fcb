"""A frozen acoustic model: what a student learns from, and what a finished run leaves behind."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.labels import Labels
from jaxkd.types import Batch, FrameOutput


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A model in evaluation mode for good: it is called without a key, so nothing in it is random.

  Attributes:
    graphdef: its structure (`nnx.split`).
    params: its parameters.
    vocabulary: its classes.
  """

  graphdef: Any
  params: Any
  vocabulary: Labels

  @property
  def blank_id(self) -> int:
    return self.vocabulary.blank_id

  @property
  def labels(self) -> tuple[str, ...]:
    return self.vocabulary.symbols

  def __call__(self, audio: jax.Array, audio_len: jax.Array) -> FrameOutput:
    """Logits f32[B, T, V] and mask bool[B, T] of audio (i16 or f32 in [-1, 1])[B, S] at 16 kHz."""
    return nnx.merge(self.graphdef, self.params)(audio, audio_len)


def log_prior(teacher: Teacher, batches: Iterable[Batch]) -> np.ndarray:
  """f32[V]: log of the teacher's mean posterior over all real frames of some batches."""

  @jax.jit
  def posterior_sum(params, batch):
    out = nnx.merge(teacher.graphdef, params)(batch.audio, batch.audio_len)
    logits = jnp.where(out.mask[..., None], out.logits, 0)
    posterior = jnp.where(out.mask[..., None], jax.nn.softmax(logits), 0)
    return posterior.sum((0, 1)), out.mask.sum()

  total, frames = np.zeros(len(teacher.labels)), 0
  for batch in batches:
    batch_sum, count = posterior_sum(teacher.params, batch)
    total, frames = total + np.asarray(batch_sum, np.float64), frames + int(count)
  return np.log(np.maximum(total / max(frames, 1), 1e-10)).astype(np.float32)


def parameter_count(params) -> int:
  """Numbers in a tree of parameters."""
  return sum(x.size for x in jax.tree.leaves(params))
