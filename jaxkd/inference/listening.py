"""Recordings of any length → what a model says of their frames, in batches of like length."""

import collections
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.data import audio
from jaxkd.data.audio import BrokenAudio
from jaxkd.logits import is_distribution
from jaxkd.models.acoustic import LONGEST_SECONDS, AcousticModel, Windows
from jaxkd.types import SAMPLE_RATE_HZ

# Lengths that what is heard at once is padded to: each is compiled for once.
_LENGTHS_SECONDS = (2.5, 5.0, 10.0, 20.0, 40.0, LONGEST_SECONDS)
_BATCH_SECONDS = 80.0
_MOST_WAITING = 64  # recordings whose frames are there before those of an earlier one
_ALPHA = 1 / 3
_FULL_SCALE = {"int16": 2**15, "int32": 2**31}  # of samples that are no floats


class Frames(NamedTuple):
  """What a model says of a recording.

  Attributes:
    path: i32[T], the most probable class of each frame.
    confidence: f32[T], see `frame_confidence`.
    log_probs: f32[T, V]; None where they were not asked for.
    seconds: of audio.
  """

  path: np.ndarray
  confidence: np.ndarray
  log_probs: np.ndarray | None
  seconds: float


class _Piece(NamedTuple):
  """What is heard at once.

  Attributes:
    samples: f32[S].
    start: of them in the recording.
    kept: of its frames, those that are used.
  """

  samples: np.ndarray
  start: int
  kept: slice


@dataclasses.dataclass
class _Growing:
  """The frames of a recording so far.

  Attributes:
    parts: number of a piece → its frames.
    pieces: that there are; more may come until `whole`.
    samples: in all pieces.
    whole: all of it has been read.
    broken: why it cannot be used, or None.
  """

  parts: dict[int, tuple] = dataclasses.field(default_factory=dict)
  pieces: int = 0
  samples: int = 0
  whole: bool = False
  broken: BrokenAudio | None = None

  @property
  def done(self) -> bool:
    return self.whole and len(self.parts) == self.pieces

  def result(self) -> Frames | BrokenAudio:
    if self.broken is not None:
      return self.broken
    columns = zip(*(self.parts[i] for i in range(self.pieces)), strict=True)
    joined = [None if c[0] is None else np.concatenate(c) for c in columns]
    return Frames(*joined, self.samples / SAMPLE_RATE_HZ)


def frame_confidence(log_probs: jax.Array) -> jax.Array:
  """f32[...] in [0, 1] of f32[..., V]: 1 where one class has all, 0 where all classes are alike.

  1 - H(p) / H(uniform), with Tsallis' entropy of order 1/3: (Σ pᵅ - 1) / (V^(1 - α) - 1) is
  what is taken off (Laptev and Ginsburg, "Fast entropy-based methods of word-level confidence
  estimation for end-to-end automatic speech recognition", SLT 2022).
  """
  classes = log_probs.shape[-1]
  spread = jnp.exp(_ALPHA * log_probs).sum(-1) - 1
  return jnp.clip(1 - spread / (classes ** (1 - _ALPHA) - 1), 0, 1)


def unsound(path: np.ndarray) -> BrokenAudio | None:
  """Why i32[T] of `said` says nothing of a recording; None where it does."""
  count = int((path < 0).sum())
  if not count:
    return None
  return BrokenAudio(f"the model's output has NaN or infinities in {count} of {len(path)} frames")


@functools.partial(jax.jit, static_argnames="whole")
def said(logits: jax.Array, *, whole: bool) -> tuple:
  """Best classes i32[...] of f32[..., V], their frames' confidence, and log p where wanted.

  A frame without a softmax, such as one of NaN, has the class -1.
  """
  log_probs = jax.nn.log_softmax(logits)
  path = jnp.where(is_distribution(logits), logits.argmax(-1), -1).astype(jnp.int32)
  return path, frame_confidence(log_probs), log_probs if whole else None


def listen(
  model: AcousticModel,
  recordings: Iterable[str | os.PathLike | np.ndarray | jax.Array],
  *,
  log_probs: bool = False,
) -> Iterator[Frames | BrokenAudio]:
  """What a model says of recordings, in their order; the reason of one that cannot be used.

  Long ones are heard in windows that overlap: memory holds minutes of audio, whatever their length.

  Args:
    model: of the frames.
    recordings: files, or float[S], i16[S] or i32[S] samples at 16 kHz.
    log_probs: whether all classes' are wanted, beside the best class.
  """
  batches = _Batches(model, log_probs)
  growing: collections.deque[_Growing] = collections.deque()
  for recording in recordings:
    growing.append(found := _Growing())
    try:
      for piece in _pieces(recording, Windows.of(model.frame_samples), model.frame_samples):
        batches.add(piece, found)
    except BrokenAudio as error:
      found.broken = error
    found.whole = True
    if len(growing) > _MOST_WAITING:
      batches.finish()
    while growing and growing[0].done:
      yield growing.popleft().result()
  batches.finish()
  yield from (found.result() for found in growing)


class _Batches:
  """Pieces of like length that wait for one another."""

  def __init__(self, model: AcousticModel, log_probs: bool):
    self.model, self.log_probs = model, log_probs
    self._waiting: dict[float, list] = collections.defaultdict(list)

  def add(self, piece: _Piece, of: _Growing) -> None:
    """Takes a piece, which is heard when enough others are there."""
    length = next(n for n in _LENGTHS_SECONDS if len(piece.samples) <= n * SAMPLE_RATE_HZ)
    self._waiting[length].append((piece, of, of.pieces))
    of.pieces += 1
    of.samples = piece.start + len(piece.samples)
    if len(self._waiting[length]) * length >= _BATCH_SECONDS:
      self._hear(length)

  def finish(self) -> None:
    """Hears all that wait."""
    for length in list(self._waiting):
      self._hear(length)

  def _hear(self, length: float) -> None:
    waiting = self._waiting.pop(length)
    rows = 1 << (len(waiting) - 1).bit_length()  # few sizes, each of which is compiled for once
    frames = -(-int(length * SAMPLE_RATE_HZ) // self.model.frame_samples)
    batch = np.zeros((rows, frames * self.model.frame_samples), np.float32)
    lengths = np.zeros(rows, np.int32)
    for row, (piece, _, _) in enumerate(waiting):
      batch[row, : len(piece.samples)] = piece.samples
      lengths[row] = len(piece.samples)
    out = self.model(batch, lengths)
    real = np.asarray(out.mask.sum(-1))
    told = jax.device_get(said(out.logits, whole=self.log_probs))
    for row, (piece, of, number) in enumerate(waiting):
      cut = lambda x, row=row, piece=piece: None if x is None else x[row, : real[row]][piece.kept]
      of.parts[number] = tuple(map(cut, told))
      of.broken = of.broken or unsound(of.parts[number][0])


def _pieces(
  recording: str | os.PathLike | np.ndarray | jax.Array, windows: Windows, frame_samples: int
) -> Iterator[_Piece]:
  """All of a short recording, or windows of a long one whose kept frames follow one another.

  Raises:
    BrokenAudio: a file or samples that cannot be used.
  """
  if not isinstance(recording, (str, os.PathLike)):
    blocks = iter([audio.as_model_hears(_samples(recording), SAMPLE_RATE_HZ)])
  elif audio.duration(recording) <= LONGEST_SECONDS:
    blocks = iter([audio.read(recording)])
  else:
    blocks = _with_sound(audio.stream(recording))
  size, hop, longest = (
    windows.size * frame_samples,
    windows.hop * frame_samples,
    int(LONGEST_SECONDS * SAMPLE_RATE_HZ),
  )
  first, start, held = 0, 0, np.empty(0, np.float32)
  for block in blocks:
    held = np.concatenate([held, block])
    while len(held) > (longest if start == 0 else size):
      yield _Piece(held[:size], start, slice(first, windows.margin + windows.hop))
      held, start, first = held[hop:], start + hop, windows.margin
  yield _Piece(held, start, slice(first, None))


def _samples(given) -> np.ndarray:
  """f32[S] of an array; raises BrokenAudio for what holds no samples of one channel."""
  given = np.asarray(given)
  scale = 1 if jnp.issubdtype(given.dtype, jnp.floating) else _FULL_SCALE.get(given.dtype.name)
  if given.ndim != 1 or scale is None:
    shape = ", ".join(map(str, given.shape))
    raise BrokenAudio(f"{given.dtype}[{shape}]: they must be float[S], int16[S] or int32[S]")
  return given.astype(np.float32) / np.float32(scale)


def _with_sound(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
  """The same; raises BrokenAudio at the end where all were silent."""
  silent = True
  for block in blocks:
    silent = silent and not block.any()
    yield block
  if silent:
    raise BrokenAudio("silent: every sample is 0")
