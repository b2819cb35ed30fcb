"""A Conformer on audio that comes bit by bit: the same frames as of the whole, chunk by chunk."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.config.meaning import STREAMED
from jaxkd.masks import length_mask
from jaxkd.models import features
from jaxkd.types import SAMPLE_RATE_HZ, FrameOutput

# Samples of audio that goes on, and the longest stream: 37 hours.
_UNKNOWN = 2**31 - 2**10


class StreamState(NamedTuple):
  """All that is kept between two packets.

  Attributes:
    audio: f32[B, K], the last samples that came; 0 before the first.
    came: i32[], samples that came, in every row.
    real: i32[B], how many of them are audio; a row with less than `came` has ended.
    chunks: i32[], that were heard.
    past: of the blocks, stacked over them.
  """

  audio: jax.Array
  came: jax.Array
  real: jax.Array
  chunks: jax.Array
  past: Any


class Stream:
  """Hears audio in packets of any size, and tells frames as soon as their chunk is complete.

  A stream may last 37 hours: samples are counted in 32 bits.

  Attributes:
    chunk, left: frames that are heard together, and before them.
    lookahead: samples behind a chunk's own that it waits for.
  """

  def __init__(self, model, chunk: int, left: int):
    why = unfit(model.features)
    if why:
      raise ValueError(why)
    if chunk < 1 or left < 0:
      raise ValueError(f"chunk is {chunk} and left {left}; they must be at least 1 and 0 frames")
    self.model, self.chunk, self.left = model, chunk, left
    self._after, self._before = margins(model.config.frontend_pool)
    ends = features.window_start(model.features.kind) + features.WINDOW - features.HOP
    self.lookahead = self._after * features.HOP + ends

  @property
  def latency_ms(self) -> float:
    """From the first sample of a chunk to the last that its frames wait for."""
    return 1000 * (self._chunk_samples + self.lookahead) / SAMPLE_RATE_HZ

  @property
  def _chunk_samples(self) -> int:
    return self.chunk * self.model.config.frame_samples

  def init(self, batch: int) -> StreamState:
    """Before the first packet, for so many rows."""
    kept = self._chunk_samples + self.lookahead + self._before * features.HOP + features.WINDOW
    return StreamState(
      jnp.zeros((batch, kept)),
      jnp.int32(0),
      jnp.zeros(batch, jnp.int32),
      jnp.int32(0),
      self.model.no_past(batch, self.left),
    )

  def step(
    self, state: StreamState, samples: jax.Array, samples_len: jax.Array | None = None
  ) -> tuple[StreamState, FrameOutput]:
    """Hears a packet.

    Args:
      state: of `init` or the last step.
      samples: i16[B, S], or float[B, S] of full scale 1, 16 kHz.
      samples_len: i32[B], how many are audio; a row with less than S ends with it. None for all.

    Returns:
      The new state, and frames that are complete: logits f32[B, N, V] and mask bool[B, N], where N
      depends on S alone; those that are there come first.
    """
    batch, size = samples.shape
    samples_len = jnp.full(batch, size, jnp.int32) if samples_len is None else samples_len
    scale = 1 / 32768 if jnp.issubdtype(samples.dtype, jnp.integer) else 1
    samples = samples.astype(jnp.float32) * scale
    samples = jnp.where(length_mask(samples_len, size), samples, 0)
    # With what came before: chunks that become complete in between are still there.
    audio = jnp.concatenate([state.audio, samples], 1)
    state = state._replace(came=state.came + size, real=state.real + samples_len)
    state, output = self._hear(state, audio, -(-size // self._chunk_samples), ends=False)
    return state._replace(audio=audio[:, size:]), output

  def finish(self, state: StreamState) -> FrameOutput:
    """The frames that wait for more audio, where no more comes: as from `step`."""
    count = 1 + -(-self.lookahead // self._chunk_samples)
    return self._hear(state, state.audio, count, ends=True)[1]

  def whole(self, audio: jax.Array, audio_len: jax.Array) -> FrameOutput:
    """The frames of whole utterances, i16 or float[B, S] and i32[B], as a stream tells them."""
    state, told = self.step(self.init(audio.shape[0]), audio, audio_len)
    rest = self.finish(state)
    # Those that are there come first, in as many places for every row.
    count = state.chunks * self.chunk
    size = told.mask.shape[1]
    place = lambda x, y: jax.lax.dynamic_update_slice_in_dim(
      jnp.pad(x, [(0, 0), (0, y.shape[1])] + [(0, 0)] * (x.ndim - 2)), y, count, 1
    )
    frames = min(size + rest.mask.shape[1], -(-audio.shape[1] // self.model.config.frame_samples))
    return jax.tree.map(lambda x, y: place(x, y)[:, :frames], told, rest)

  def _hear(self, state, audio: jax.Array, count: int, *, ends: bool):
    """Up to `count` more chunks; those that are not complete are left, unless the audio ends."""
    start = state.came - audio.shape[1]
    ended = True if ends else state.real < state.came
    audio_len = jnp.where(ended, state.real, _UNKNOWN)

    def hear(state):
      x, mask = self._frames(state.chunks, audio, start, audio_len)
      x, past = self.model.step_blocks(x, mask, state.past)
      return state._replace(chunks=state.chunks + 1, past=past), self.model.classify(x, mask)

    def wait(state):
      like = jax.eval_shape(hear, state)[1]
      return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def one(state, _):
      needed = (state.chunks + 1) * self._chunk_samples + self.lookahead
      return jax.lax.cond(ends | (needed <= state.came), hear, wait, state)

    state, output = jax.lax.scan(one, state, length=count)
    joined = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])
    return state, jax.tree.map(joined, output)

  def _frames(self, number, audio, start, audio_len) -> tuple[jax.Array, jax.Array]:
    """[B, C, D] of a chunk behind the front-end, and bool[B, C]."""
    model, hops = self.model, self.model.config.frame_samples // features.HOP
    first = number * self.chunk * hops - self._before
    size = self._before + self.chunk * hops + self._after
    x, length = features.log_mel_between(audio, start, audio_len, first, size, model.features)
    skipped = jnp.maximum(-first, 0)
    x, length = model.frontend(x.astype(model.config.dtype), length, skipped)
    wanted = slice(self._before // hops, self._before // hops + self.chunk)
    return x[:, wanted], length_mask(length, x.shape[1])[:, wanted]


def unfit(settings: features.LogMel) -> str | None:
  """Why a stream cannot have these features; None where it can."""
  if settings.kind not in STREAMED:
    kinds = " or ".join(STREAMED)
    return f"features.kind is {settings.kind}, over the whole utterance; a stream has {kinds}"
  if settings.normalise != "none":
    return (
      f"features.normalise is {settings.normalise}, over the whole utterance; a stream has none"
    )
  return None


def margins(pools: tuple[tuple[int, int], ...]) -> tuple[int, int]:
  """Features that the convolutions read behind a frame and before it, in whole frames before it."""
  (first, _), (second, _) = pools
  reach = 2 + 2 * first
  frame = first * second
  return reach, -(-reach // frame) * frame
