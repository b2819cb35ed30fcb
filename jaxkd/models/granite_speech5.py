"""Granite Speech 5 with a CTC head: log-mel features and deltas → Conformer in blocks → classes.

Two feature frames of 10 ms are one of the model's; layers that halve the frames make 80 ms of them.
Attention stays within blocks of frames, and what the model says half-way is fed back to it. Every
step is the one of Hugging Face transformers for an utterance alone: padding changes nothing.
`huggingface/granite_speech5.py` has the names of the weights. Only `nnx.Param` leaves; evaluation
only.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.devices import sharding
from jaxkd.masks import length_mask, zero_padding
from jaxkd.models.classifier import FrameClassifier
from jaxkd.models.fastconformer import by_distance
from jaxkd.models.features import HOP, LogMel, frame_len, log_mel
from jaxkd.models.layers import BatchNorm, FeedForward, LayerNorm, Linear, depthwise
from jaxkd.models.stack import scan_stack
from jaxkd.models.wav2vec2 import attention, max_pool_frames

STACKED = 2  # feature frames in one of the model's
_FEATURES = 2  # of each filter: its logarithm and how that changes


@dataclasses.dataclass(frozen=True)
class GraniteSpeech5Config:
  """Structure and numerics.

  Attributes:
    family: `model_type` in transformers.
    mels: filters.
    floor: how far below an utterance's loudest filter the features end, in powers of ten.
    layers, width, heads, head_width, ff_width: of the Conformer.
    context: frames of a block of attention.
    distances: farthest that has a learnt key.
    conv_kernel: frames of the layers' depthwise convolution, odd.
    conv_width: its channels.
    activation: of the feed-forward layers.
    bias: whether these have biases.
    halving: layers that halve the frames.
    tied: whether the head is also what speaks half-way.
    pool: frames that are max-pooled into one before the head.
    dtype: of the arithmetic; features, parameters, norms and logits are float32.
  """

  family: str
  mels: int
  floor: float
  layers: int
  width: int
  heads: int
  head_width: int
  ff_width: int
  context: int
  distances: int
  conv_kernel: int
  conv_width: int
  activation: str
  bias: bool
  halving: tuple[int, ...]
  tied: bool
  pool: int = 1
  dtype: str = "float32"

  def frame_len(self, audio_len):
    """Frames, before they are pooled, of so many samples (ints, NumPy or JAX)."""
    return frame_len(audio_len, "granite") // STACKED // 2 ** len(self.halving)

  @property
  def frame_samples(self) -> int:
    """Audio samples in an output frame: 1280, 80 ms, where two layers halve and none are pooled."""
    return STACKED * HOP * 2 ** len(self.halving) * self.pool

  @property
  def runs(self) -> list[tuple[int, int]]:
    """First layer and the one after the last, of layers that follow one another without more."""
    cuts = {0, self.layers // 2, self.layers, *self.halving, *(i + 1 for i in self.halving)}
    return list(itertools.pairwise(sorted(cuts)))


class Attention(nnx.Module):
  """Self-attention within blocks of frames, with a learnt key for every distance (Shaw et al.)."""

  def __init__(self, config: GraniteSpeech5Config, *, rngs: nnx.Rngs):
    width, inner = config.width, config.heads * config.head_width
    make = lambda: Linear(width, inner, bias=False, rngs=rngs)
    self.norm = LayerNorm(width)
    self.query, self.key, self.value = make(), make(), make()
    self.out = Linear(inner, width, rngs=rngs)
    shape = 2 * config.distances + 1, config.head_width
    self.distances = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
    self.config = config

  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """x[B, T, D] to the same shape; `mask` bool[B, T] is True for frames that are attended to."""
    config, (batch, frames, _) = self.config, x.shape
    more = -frames % config.context
    y = jnp.pad(self.norm(x), ((0, 0), (0, more), (0, 0)))
    blocks = -1, config.context
    q, k, v = (
      linear(y).reshape(*blocks, config.heads, config.head_width)
      for linear in (self.query, self.key, self.value)
    )
    mask = jnp.pad(mask, ((0, 0), (0, more))).reshape(blocks)
    mixed = attention(q, k, v, self._by_distance(q), mask, 0.0, None)
    return self.out(mixed.reshape(batch, frames + more, -1)[:, :frames])

  def _by_distance(self, q: jax.Array) -> jax.Array:
    """[B, H, C, C] of q[B, C, H, E]: the query times what was learnt for each key's distance."""
    far, zero = self.config.context - 1, self.config.distances
    # From a key that is as far behind as can be to one as far ahead.
    table = self.distances[...][zero - far : zero + far + 1][::-1].astype(q.dtype)
    return by_distance(jnp.einsum("bqhe,pe->bhqp", q, table) * q.shape[-1] ** -0.5)


class ConvModule(nnx.Module):
  """Gated pointwise to more channels, depthwise over time, batch norm, swish, pointwise."""

  def __init__(self, config: GraniteSpeech5Config, *, rngs: nnx.Rngs):
    width, inner = config.width, config.conv_width
    self.norm = LayerNorm(width)
    self.gated = Linear(width, 2 * inner, rngs=rngs)
    taps = config.conv_kernel
    self.depthwise = nnx.Param(taps**-0.5 * jax.random.normal(rngs.params(), (taps, inner)))
    self.inner_norm = BatchNorm(inner)
    self.pointwise = Linear(inner, width, rngs=rngs)

  def __call__(self, x: jax.Array, mask: jax.Array, stride: int) -> jax.Array:
    """x[B, T, D] to [B, T // stride, D]; `mask` bool[B, T] is True for real frames."""
    y = zero_padding(jax.nn.glu(self.gated(self.norm(x))), mask)
    y = depthwise(y, self.depthwise[...])[:, ::stride][:, : x.shape[1] // stride]
    return self.pointwise(jax.nn.silu(self.inner_norm(y)))


class Block(nnx.Module):
  """Half feed-forward, attention, convolution, half feed-forward, layer norm."""

  def __init__(self, config: GraniteSpeech5Config, *, rngs: nnx.Rngs):
    feed_forward = lambda: FeedForward(
      config.width, config.ff_width, bias=config.bias, activation=config.activation, rngs=rngs
    )
    self.ff_first = feed_forward()
    self.attention = Attention(config, rngs=rngs)
    self.conv = ConvModule(config, rngs=rngs)
    self.ff_last = feed_forward()
    self.norm = LayerNorm(config.width)

  def __call__(self, x: jax.Array, mask: jax.Array, stride: int = 1) -> jax.Array:
    """x[B, T, D] to [B, T // stride, D]; `mask` bool[B, T] is True for real frames."""
    x = x + 0.5 * self.ff_first(x, 0.0, None)
    x = x + self.attention(x, mask)
    x = _means(x, stride) + self.conv(x, mask, stride)
    x = x + 0.5 * self.ff_last(x, 0.0, None)
    return self.norm(x)


def _means(x: jax.Array, size: int) -> jax.Array:
  """[B, T // size, D] of x[B, T, D]: the mean of every `size` frames; what is left over is not."""
  if size == 1:
    return x
  blocks = x.shape[1] // size
  return x[:, : blocks * size].reshape(x.shape[0], blocks, size, -1).mean(2)


class GraniteSpeech5CTC(FrameClassifier):
  """Audio → features → stacked blocks, with the classes' probabilities fed back → class logits."""

  def __init__(self, config: GraniteSpeech5Config, classes: int, *, rngs: nnx.Rngs):
    """Draws parameters from `rngs.params`; `classes` includes the blank."""
    self.project = Linear(STACKED * _FEATURES * config.mels, config.width, rngs=rngs)
    make = lambda key: Block(config, rngs=nnx.Rngs(params=key))
    self.layers = nnx.vmap(make)(jax.random.split(rngs.params(), config.layers))
    self.feedback = Linear(classes, config.width, rngs=rngs)
    self.head = Linear(config.width, classes, rngs=rngs)
    if not config.tied:
      self.middle = Linear(config.width, classes, rngs=rngs)
    self.config = config

  def encode(self, audio: jax.Array, audio_len: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encoder output, pooled, [B, T, D] and mask bool[B, T]; arguments as for a call."""
    config = self.config
    least = config.frame_samples // config.pool
    audio = jnp.pad(audio, ((0, 0), (0, max(0, least - audio.shape[1]))))
    x = stacked_features(audio, audio_len, config)
    lengths = frame_len(audio_len, "granite") // STACKED
    x = zero_padding(self.project(x.astype(config.dtype)), length_mask(lengths, x.shape[1]))
    x = self._run_layers(x, lengths)
    mask = length_mask(config.frame_len(audio_len), x.shape[1])
    return max_pool_frames(x, mask, config.pool)

  def _run_layers(self, x, lengths):
    """Every run of stacked blocks that have frames of one length; `lengths` i32[B] are x's."""
    config = self.config
    for first, end in config.runs:
      mask = length_mask(lengths, x.shape[1])
      if first in config.halving:
        x, lengths = self._halve(first, x, mask), lengths // 2
      else:
        call = lambda block, x, _, mask=mask: block(x, mask)
        x = scan_stack(self.layers, x, call, part=slice(first, end))
      if end == config.layers // 2:
        x = x + self._said(x)
    return x

  def _halve(self, index: int, x: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, T // 2, D] of x[B, T, D]: what a block that halves the frames makes of them."""
    graphdef, params = nnx.split(self.layers)
    params = sharding.layer(jax.tree.map(lambda p: p[index], params))
    return nnx.merge(graphdef, params)(x, mask, 2)

  def _said(self, x: jax.Array) -> jax.Array:
    """[B, T, D] of x[B, T, D]: a projection of the classes' probabilities."""
    speaks = self.head if self.config.tied else self.middle
    probabilities = jax.nn.softmax(speaks(x).astype(jnp.float32))
    return self.feedback(probabilities.astype(x.dtype))


def stacked_features(
  audio: jax.Array, audio_len: jax.Array, config: GraniteSpeech5Config
) -> jax.Array:
  """What GraniteSpeech5FeatureExtractor gives: f32[B, M, 4F].

  Args:
    audio: i16[B, S], or float[B, S] of full scale 1; padding may hold anything.
    audio_len: i32[B], real samples.
    config: with `mels` F and `floor`.
  """
  x, mask = log_mel(audio, audio_len, LogMel("granite", config.mels))
  x = x / np.float32(np.log(10))
  loudest = jnp.where(mask[..., None], x, -jnp.inf).max((1, 2), keepdims=True)
  x = zero_padding(jnp.maximum(x, loudest - config.floor) / 4 + 1, mask)
  # The first and the last frame stand for those that are not there.
  before = jnp.concatenate([x[:, :1], x[:, :-1]], 1)
  after = jnp.concatenate([x[:, 1:], x[:, -1:]], 1)
  after_mask = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
  after = jnp.where(after_mask[..., None], after, x)
  x = jnp.concatenate([x, (after - before) / 2], -1)
  return x.reshape(x.shape[0], -1, STACKED * x.shape[-1])
