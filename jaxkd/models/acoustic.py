"""A model with its parameters and classes: what teaches, what was taught, and what is used."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd import arguments
from jaxkd.devices import sharding
from jaxkd.labels import Vocabulary
from jaxkd.types import SAMPLE_RATE_HZ, FrameOutput

# Audio that is heard at once; longer audio is heard in windows, each with a margin of what comes
# before and after it.
LONGEST_SECONDS = 60.0
_WINDOW_SECONDS, _MARGIN_SECONDS = 40.0, 4.0


class Windows(NamedTuple):
  """How long audio is divided, in output frames.

  Attributes:
    size: of a window.
    margin: at each end, where a window's output is not used but at the ends of the audio.
  """

  size: int
  margin: int

  @classmethod
  def of(cls, frame_samples: int) -> "Windows":
    """For a model with so many audio samples in a frame."""
    in_frames = lambda seconds: max(1, int(seconds * SAMPLE_RATE_HZ) // frame_samples)
    return cls(in_frames(_WINDOW_SECONDS), in_frames(_MARGIN_SECONDS))

  @property
  def hop(self) -> int:
    """From the start of one to that of the next."""
    return self.size - 2 * self.margin


class Chunks(NamedTuple):
  """How a stream is heard, in output frames.

  Attributes:
    chunk: that are heard together.
    left: before them, that attention reads.
  """

  chunk: int
  left: int


@dataclasses.dataclass(frozen=True)
class AcousticModel:
  """A model in evaluation mode for good: it is called without a key, so nothing in it is random.

  Attributes:
    graphdef: its structure (`nnx.split`).
    params: its parameters.
    vocabulary: its classes.
    frame_samples: audio samples in an output frame.
    chunks: in which it hears what it is given, as a stream does; None for all at once.
  """

  graphdef: Any
  params: Any
  vocabulary: Vocabulary
  frame_samples: int
  chunks: Chunks | None = None

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
    """What the model says of every frame; of long audio in windows that overlap.

    Memory grows with the square of what is heard at once, and models have learnt from utterances.

    Args:
      audio: i16, or float of full scale 1, [B, S], 16 kHz.
      audio_len: int[B] of any integer dtype, real samples.

    Returns:
      Logits f32[B, T, V] and mask bool[B, T].

    Raises:
      TypeError, ValueError: arrays of other axes or dtypes, or with nothing in them.
    """
    audio = audio if hasattr(audio, "shape") else np.asarray(audio, np.float32)
    audio_len = arguments.integers("audio_len", audio_len, "B")
    if len(audio.shape) != 2 or not audio.size:
      raise ValueError(f"audio has shape {audio.shape}; it must be [B, S], and neither of them 0")
    arguments.check_shape("audio_len", audio_len, audio.shape[:1], "the rows of audio")
    static = self.graphdef, self.frame_samples, self.chunks
    return _apply(*static, self.params, audio, audio_len)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(
  graphdef, frame_samples: int, chunks: Chunks | None, params, audio, audio_len
) -> FrameOutput:
  def whole(audio, audio_len):
    out = nnx.merge(graphdef, params)(audio, audio_len)
    return FrameOutput(out.logits.astype(jnp.float32), out.mask)

  if chunks is not None:
    return sharding.by_rows(nnx.merge(graphdef, params).stream(*chunks).whole(audio, audio_len))
  if audio.shape[1] <= LONGEST_SECONDS * SAMPLE_RATE_HZ:
    return sharding.by_rows(whole(audio, audio_len))
  return sharding.by_rows(_in_windows(whole, audio, audio_len, frame_samples))


def _in_windows(model, audio: jax.Array, audio_len: jax.Array, frame_samples: int) -> FrameOutput:
  """A model's output of long audio, pieced together from the middles of windows."""
  windows = Windows.of(frame_samples)
  window, margin, hop = windows.size, windows.margin, windows.hop
  count = -(-max(0, -(-audio.shape[1] // frame_samples) - window) // hop) + 1
  size = ((count - 1) * hop + window) * frame_samples
  audio = jnp.pad(audio, ((0, 0), (0, size - audio.shape[1])))

  def one(number):
    start = number * hop * frame_samples
    part = jax.lax.dynamic_slice_in_dim(audio, start, window * frame_samples, axis=1)
    part_len = jnp.clip(audio_len - start, 0, part.shape[1])
    nothing = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(model, part, part_len)
    )
    return jax.lax.cond((part_len > 0).any(), model, lambda *_: nothing, part, part_len)

  def pieced(x):  # [windows, B, frames, ...]
    middle = jnp.moveaxis(x[:, :, margin : margin + hop], 0, 1)
    middle = middle.reshape(middle.shape[0], count * hop, *middle.shape[3:])
    return jnp.concatenate([x[0, :, :margin], middle, x[-1, :, margin + hop :]], axis=1)

  return jax.tree.map(pieced, jax.lax.map(one, jnp.arange(count)))


def parameter_count(params) -> int:
  """Numbers in a tree of parameters."""
  return sum(x.size for x in jax.tree.leaves(params))
