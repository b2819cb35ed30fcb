"""What all models are: an encoder of audio, and a head over its frames."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.types import FrameOutput


class FrameClassifier(nnx.Module):
  """Audio → class logits of every frame.

  A subclass has `encode` and `head`; one that learns is called with more than audio.
  """

  def __call__(self, audio: jax.Array, audio_len: jax.Array) -> FrameOutput:
    """Logits of every frame, without dropout or masks.

    Args:
      audio: i16[B, S], or float[B, S] of full scale 1, 16 kHz; padding may hold anything.
      audio_len: i32[B], real samples; a row of less than a frame's has no real frame.

    Returns:
      Logits f32[B, T, V] and mask bool[B, T].
    """
    return self.classify(*self.encode(audio, audio_len))

  def classify(self, x: jax.Array, mask: jax.Array) -> FrameOutput:
    """Logits of what `encode` returns."""
    return FrameOutput(self.head(x).astype(jnp.float32), mask)
