"""The values that travel between layers."""

import dataclasses
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Parts of a batch that are there only where an objective asks for them.
TRANSCRIPTS, HYPOTHESES = "transcripts", "hypotheses"
# Frames of a stored teacher, and the classes of those that are not kept in the order of classes.
STORED, STORED_IDS = "stored frames", "stored frames' classes"

# Audio is at this rate everywhere; what is read at another is resampled.
SAMPLE_RATE_HZ = 16_000


class StoredFrames(NamedTuple):
  """What a stored teacher says of the rows of a batch, S numbers a frame (`teacher.store`).

  Attributes:
    log_probs: f32[B, T, S]; -inf in slots that were not kept.
    tail: f32[B, T, 2], log of Σ p and of Σ p^(1 / temperature) over classes that were not kept.
    mask: bool[B, T], True where the teacher has a frame.
    ids: i32[B, T, S], classes of the slots; None where slot i is class i.
  """

  log_probs: jax.Array
  tail: jax.Array
  mask: jax.Array
  ids: jax.Array | None = None

  @classmethod
  def like(
    cls, make, needs: Collection[str], *, rows: int, frames: int, slots: int
  ) -> "StoredFrames":
    """`make(shape, dtype)` in the place of each array; see `batch_like`."""
    size = (rows, frames)
    ids = make((*size, slots), np.int32) if STORED_IDS in needs else None
    values, tail = make((*size, slots), np.float32), make((*size, 2), np.float32)
    return cls(values, tail, make(size, np.bool_), ids)


class Batch(NamedTuple):
  """Utterances padded to one length; a filler row has `audio_len == 0`.

  Attributes:
    audio: f32[B, S], 16 kHz mono, at the amplitude of the recording.
    audio_len: i32[B], real samples.
    labels: i32[B, U], class ids; None where no transcript is read.
    label_len: i32[B], real labels; may exceed U only where it also exceeds the output frames, which
      makes the row infeasible for CTC; -1 in a row without a transcript.
    hypothesis: i32[B, U], class ids of what the teacher may have heard; None where that is not
      learnt from.
    hypothesis_len: i32[B], as `label_len`.
    taught: what a stored teacher says of these rows; None where none is learnt from.
  """

  audio: jax.Array
  audio_len: jax.Array
  labels: jax.Array | None = None
  label_len: jax.Array | None = None
  hypothesis: jax.Array | None = None
  hypothesis_len: jax.Array | None = None
  taught: StoredFrames | None = None


class BatchField(NamedTuple):
  """What one array of a `Batch` is.

  Attributes:
    dtype: NumPy's.
    axes: names of its sizes.
    need: what must be asked for to have it; None for what is always there.
  """

  dtype: type
  axes: tuple[str, ...]
  need: str | None = None


BATCH_FIELDS = {
  "audio": BatchField(np.float32, ("rows", "samples")),
  "audio_len": BatchField(np.int32, ("rows",)),
  "labels": BatchField(np.int32, ("rows", "labels"), TRANSCRIPTS),
  "label_len": BatchField(np.int32, ("rows",), TRANSCRIPTS),
  "hypothesis": BatchField(np.int32, ("rows", "labels"), HYPOTHESES),
  "hypothesis_len": BatchField(np.int32, ("rows",), HYPOTHESES),
}


def batch_like(make, needs: Collection[str], **sizes: int) -> Batch:
  """A batch of `make(shape, dtype)` in the place of each array, such as `np.zeros`.

  Args:
    make: of one array.
    needs: of the objective; fields that none of them asks for are None.
    **sizes: rows, samples and labels; with STORED also frames and slots.
  """
  fields = {
    name: make(tuple(sizes[axis] for axis in field.axes), field.dtype)
    for name, field in BATCH_FIELDS.items()
    if field.need is None or field.need in needs
  }
  if STORED in needs:
    sizes = {axis: sizes[axis] for axis in ("rows", "frames", "slots")}
    fields["taught"] = StoredFrames.like(make, needs, **sizes)
  return Batch(**fields)


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

  @classmethod
  def zero(cls) -> "WeightedSum":
    """A sum of no summands: total 0, weight 0."""
    return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

  def mean(self) -> jax.Array:
    """f32[]: total / max(weight, 1), so that an empty sum has mean 0."""
    return self.total / jnp.maximum(self.weight, 1)

  def __add__(self, other: "WeightedSum") -> "WeightedSum":
    return WeightedSum(self.total + other.total, self.weight + other.weight)
