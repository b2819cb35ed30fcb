"""LASR with a CTC head (MedASR): log-mel features → strided convolutions → Conformer → classes.

A frame every 40 ms; rotary positions, batch norm, residuals with weights, layer norms without
biases. Every step is the one of Hugging Face transformers for an utterance alone: padding changes
nothing. `huggingface/lasr.py` has the names of the weights. Only `nnx.Param` leaves; evaluation
only.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.masks import length_mask
from jaxkd.models.classifier import FrameClassifier
from jaxkd.models.features import HOP, WINDOW, LogMel, frame_len, log_mel
from jaxkd.models.layers import (
  BatchNorm,
  ConvModule,
  FeedForward,
  LayerNorm,
  Linear,
  add_bias,
  rotated,
)
from jaxkd.models.stack import scan_stack
from jaxkd.models.wav2vec2 import attention, max_pool_frames
from jaxkd.models.waveform import convolve

_CONVOLUTIONS = 2


@dataclasses.dataclass(frozen=True)
class LasrConfig:
  """Structure and numerics.

  Attributes:
    family: `model_type` in transformers.
    mels: filters.
    subsampling_channels, subsampling_kernel, subsampling_stride: of two convolutions over the
      features, which see no frame outside of the utterance.
    layers, width, heads, ff_width: of the blocks.
    conv_kernel: frames of their depthwise convolution.
    activation: of their feed-forward layers and convolutions.
    bias: whether feed-forward layers and attention have biases.
    conv_bias: whether the blocks' convolutions have them.
    norm_eps: of the layer norms.
    rotary_base: of the rotary positions' wavelengths.
    ff_residual, conv_residual: weights of what goes past a feed-forward layer or a convolution, and
      of what comes out of it.
    pool: frames that are max-pooled into one before the head.
    dtype: of the arithmetic; features, parameters, norms and logits are float32.
  """

  family: str
  mels: int
  subsampling_channels: int
  subsampling_kernel: int
  subsampling_stride: int
  layers: int
  width: int
  heads: int
  ff_width: int
  conv_kernel: int
  activation: str
  bias: bool
  conv_bias: bool
  norm_eps: float
  rotary_base: float
  ff_residual: tuple[float, float]
  conv_residual: tuple[float, float]
  pool: int = 1
  dtype: str = "float32"

  @property
  def features(self) -> LogMel:
    """What it reads."""
    return LogMel("lasr", mels=self.mels)

  def frame_len(self, audio_len):
    """Frames, before they are pooled, of so many samples (ints, NumPy or JAX)."""
    return self.subsampled(frame_len(audio_len, "lasr"))

  def subsampled(self, feature_len):
    """Frames of so many feature frames."""
    for _ in range(_CONVOLUTIONS):
      feature_len = (feature_len - self.subsampling_kernel) // self.subsampling_stride + 1
    return (jnp if isinstance(feature_len, jax.Array) else np).maximum(feature_len, 0)

  @property
  def min_samples(self) -> int:
    """Samples of the first frame."""
    frames = 1
    for _ in range(_CONVOLUTIONS):
      frames = (frames - 1) * self.subsampling_stride + self.subsampling_kernel
    return (frames - 1) * HOP + WINDOW

  @property
  def frame_samples(self) -> int:
    """Audio samples in an output frame: 640 for each of those that are pooled, 40 ms."""
    return HOP * self.subsampling_stride**_CONVOLUTIONS * self.pool


class Subsampling(nnx.Module):
  """Features [B, N, F] to frames [B, T, D] by two strided convolutions between two projections."""

  def __init__(self, config: LasrConfig, *, rngs: nnx.Rngs):
    width, channels = config.width, config.subsampling_channels
    he = nnx.initializers.he_normal()
    draw = lambda outputs: nnx.Param(he(rngs.params(), (config.subsampling_kernel, width, outputs)))
    self.project = Linear(config.mels, width, rngs=rngs)
    self.kernels = nnx.List([draw(width), draw(channels)])
    self.biases = nnx.List([nnx.Param(jnp.zeros(size)) for size in (width, channels)])
    self.out = Linear(channels, width, rngs=rngs)
    self.stride = config.subsampling_stride

  def __call__(self, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(self.project(x))
    for kernel, bias in zip(self.kernels, self.biases, strict=True):
      x = jax.nn.relu(add_bias(convolve(x, kernel[...], stride=self.stride), bias))
    return self.out(x)


class Attention(nnx.Module):
  """Self-attention whose queries and keys are turned by their positions."""

  def __init__(self, config: LasrConfig, *, rngs: nnx.Rngs):
    make = lambda: Linear(config.width, config.width, bias=config.bias, rngs=rngs)
    self.norm = LayerNorm(config.width, config.norm_eps, bias=False)
    self.query, self.key, self.value, self.out = make(), make(), make(), make()
    self.heads, self.rotary_base = config.heads, config.rotary_base

  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """x[B, T, D] to the same shape; `mask` bool[B, T] is True for frames that are attended to."""
    y = self.norm(x)
    q, k, v = (
      linear(y).reshape(*x.shape[:2], self.heads, -1)
      for linear in (self.query, self.key, self.value)
    )
    q, k = rotated(q, self.rotary_base), rotated(k, self.rotary_base)
    return self.out(attention(q, k, v, None, mask, 0.0, None).reshape(x.shape))


class Block(nnx.Module):
  """Feed-forward, attention, convolution, feed-forward, layer norm; residuals with weights."""

  def __init__(self, config: LasrConfig, *, rngs: nnx.Rngs):
    width, norm = config.width, lambda: LayerNorm(config.width, config.norm_eps, bias=False)
    feed_forward = lambda: FeedForward(
      width,
      config.ff_width,
      bias=config.bias,
      activation=config.activation,
      norm=norm(),
      rngs=rngs,
    )
    self.ff_first = feed_forward()
    self.attention = Attention(config, rngs=rngs)
    self.conv = ConvModule(
      width,
      config.conv_kernel,
      bias=config.conv_bias,
      activation=config.activation,
      norm=norm(),
      inner_norm=BatchNorm(width),
      rngs=rngs,
    )
    self.ff_last = feed_forward()
    self.norm = norm()
    self.ff_residual, self.conv_residual = config.ff_residual, config.conv_residual

  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """x[B, T, D] to the same shape; `mask` bool[B, T] is True for real frames."""
    (past, out), (past_conv, out_conv) = self.ff_residual, self.conv_residual
    x = past * x + out * self.ff_first(x, 0.0, None)
    x = x + self.attention(x, mask)
    x = past_conv * x + out_conv * self.conv(x, mask, 0.0, None)
    x = past * x + out * self.ff_last(x, 0.0, None)
    return self.norm(x)


class LasrCTC(FrameClassifier):
  """Audio → features → subsampled frames → stacked blocks → class logits."""

  def __init__(self, config: LasrConfig, classes: int, *, rngs: nnx.Rngs):
    """Draws parameters from `rngs.params`; `classes` includes the blank."""
    self.subsampling = Subsampling(config, rngs=rngs)
    make = lambda key: Block(config, rngs=nnx.Rngs(params=key))
    self.layers = nnx.vmap(make)(jax.random.split(rngs.params(), config.layers))
    self.norm = LayerNorm(config.width, config.norm_eps, bias=False)
    self.head = Linear(config.width, classes, rngs=rngs)
    self.config = config

  def encode(self, audio: jax.Array, audio_len: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encoder output, pooled, [B, T, D] and mask bool[B, T]; arguments as for a call.

    A row of less than 145 ms has no real frame.
    """
    config = self.config
    audio = jnp.pad(audio, ((0, 0), (0, max(0, config.min_samples - audio.shape[1]))))
    x, _ = log_mel(audio, audio_len, config.features)
    x = self.subsampling(x.astype(config.dtype))
    mask = length_mask(config.frame_len(audio_len), x.shape[1])
    x = self.norm(scan_stack(self.layers, x, lambda block, x, _: block(x, mask)))
    return max_pool_frames(x, mask, config.pool)
