"""A frozen acoustic model: what a student learns from, and what a finished run leaves behind."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from jaxkd.labels import Labels
from jaxkd.types import FrameOutput


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


def parameter_count(params) -> int:
  """Numbers in a tree of parameters."""
  return sum(x.size for x in jax.tree.leaves(params))
