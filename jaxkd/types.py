"""The values that travel between layers."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Audio is at this rate everywhere; what is read at another is resampled.
SAMPLE_RATE_HZ = 16_000


class Batch(NamedTuple):
  """Utterances padded to one length; a filler row has `audio_len == 0`.

  Attributes:
    audio: i16[B, S], 16 kHz mono.
    audio_len: i32[B], real samples.
    labels: i32[B, U], class ids; U is 0 where no transcript is read.
    label_len: i32[B], real labels; may exceed U only where it also exceeds the output frames, which
      makes the row infeasible for CTC.
    hypothesis: i32[B, U], class ids of what the teacher may have heard; None where that is not
      learnt from.
    hypothesis_len: i32[B], as `label_len`.
  """

  audio: jax.Array
  audio_len: jax.Array
  labels: jax.Array
  label_len: jax.Array
  hypothesis: jax.Array | None = None
  hypothesis_len: jax.Array | None = None


class FrameOutput(NamedTuple):
  """What an acoustic model says of every frame.

  Attributes:
    logits: f32[B, T, V], unnormalised; padded frames hold anything.
    mask: bool[B, T], True for real frames.
  """

  logits: jax.Array
  mask: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedSum:
  """A sum and the weight it is to be divided by: adding two of them averages correctly.

  Attributes:
    total: f32[], the sum.
    weight: f32[], the number (or weight) of summands.
  """

  total: jax.Array
  weight: jax.Array

  def mean(self) -> jax.Array:
    """f32[]: total / max(weight, 1), so that an empty sum has mean 0."""
    return self.total / jnp.maximum(self.weight, 1)

  def __add__(self, other: "WeightedSum") -> "WeightedSum":
    return WeightedSum(self.total + other.total, self.weight + other.weight)
