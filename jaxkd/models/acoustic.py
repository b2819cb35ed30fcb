"""A model with its parameters and classes: what teaches, what was taught, and what is used."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.devices import sharding
from jaxkd.labels import Vocabulary
from jaxkd.types import SAMPLE_RATE_HZ, FrameOutput


@dataclasses.dataclass(frozen=True)
class AcousticModel:
  """A model in evaluation mode for good: it is called without a key, so nothing in it is random.

  Attributes:
    graphdef: its structure (`nnx.split`).
    params: its parameters.
    vocabulary: its classes.
    frame_samples: audio samples in an output frame.
  """

  graphdef: Any
  params: Any
  vocabulary: Vocabulary
  frame_samples: int

  @property
  def blank_id(self) -> int:
    return self.vocabulary.blank_id

  @property
  def labels(self) -> tuple[str, ...]:
    """The symbols of the classes."""
    return self.vocabulary.symbols

  @property
  def frame_ms(self) -> float:
    """Milliseconds of an output frame."""
    return 1000 * self.frame_samples / SAMPLE_RATE_HZ

  @property
  def parameter_count(self) -> int:
    """Numbers in its parameters."""
    return parameter_count(self.params)

  def __call__(self, audio: jax.Array, audio_len: jax.Array) -> FrameOutput:
    """Logits f32[B, T, V] and mask bool[B, T] of audio (i16 or f32 in [-1, 1])[B, S] at 16 kHz."""
    return _apply(self.graphdef, self.params, audio, audio_len)


@functools.partial(jax.jit, static_argnums=0)
def _apply(graphdef, params, audio: jax.Array, audio_len: jax.Array) -> FrameOutput:
  out = nnx.merge(graphdef, params)(audio, audio_len)
  return sharding.by_rows(FrameOutput(out.logits.astype(jnp.float32), out.mask))


def parameter_count(params) -> int:
  """Numbers in a tree of parameters."""
  return sum(x.size for x in jax.tree.leaves(params))
