"""Waveform → frames: the strided convolutions of wav2vec 2.0, which many models begin with."""

import dataclasses
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.masks import length_mask
from jaxkd.models.layers import ACTIVATIONS, LayerNorm, add_bias
from jaxkd.placement import for_tpu

_CHUNK_FRAMES = 16  # of 20 ms in a row, where the program is for TPUs


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaveformConfig:
  """Structure of the convolutions, and what a waveform goes through before them.

  Attributes:
    conv_activation: of every convolution.
    conv_channels, conv_kernels, conv_strides: of the convolutions over the waveform.
    conv_bias: whether they have one.
    conv_norm: "layer", after each of them, or "group", each channel over time after the first.
    normalise: zero mean and unit variance of every waveform.
    normalise_eps: added to that variance.
    pool: frames that are max-pooled into one before the head.
  """

  conv_activation: str
  conv_channels: tuple[int, ...]
  conv_kernels: tuple[int, ...]
  conv_strides: tuple[int, ...]
  conv_bias: bool
  conv_norm: str
  normalise: bool
  normalise_eps: float = 1e-7
  pool: int = 1

  def frame_len(self, audio_len):
    """20 ms frames of so many samples (ints, NumPy or JAX), as transformers counts them."""
    for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
      audio_len = (audio_len - kernel) // stride + 1
    return (jnp if isinstance(audio_len, jax.Array) else np).maximum(audio_len, 0)

  @property
  def min_samples(self) -> int:
    """Samples of the first frame."""
    samples = 1
    for kernel, stride in zip(self.conv_kernels[::-1], self.conv_strides[::-1], strict=True):
      samples = (samples - 1) * stride + kernel
    return samples

  @property
  def frame_samples(self) -> int:
    """Audio samples in an output frame: 320 for each of the frames that are pooled, 20 ms."""
    return math.prod(self.conv_strides) * self.pool


def waveform(audio: jax.Array, audio_len: jax.Array, config: WaveformConfig) -> jax.Array:
  """f32[B, max(S, samples of a frame)]: what the convolutions read, with padding at 0.

  Args:
    audio: i16[B, S], or float[B, S] of full scale 1; padding may hold anything.
    audio_len: i32[B], real samples.
    config: with `normalise`, real samples get zero mean and unit variance.
  """
  scale = 1 / 32768 if jnp.issubdtype(audio.dtype, jnp.integer) else 1
  real = length_mask(audio_len, audio.shape[1])
  audio = jnp.where(real, audio.astype(jnp.float32) * scale, 0)
  if config.normalise:
    count = jnp.maximum(audio_len, 1)[:, None]
    centred = jnp.where(real, audio - audio.sum(-1, keepdims=True) / count, 0)
    variance = (centred**2).sum(-1, keepdims=True) / count
    audio = centred * jax.lax.rsqrt(variance + config.normalise_eps)
  return jnp.pad(audio, ((0, 0), (0, max(0, config.min_samples - audio.shape[1]))))


class ConvLayer(nnx.Module):
  """One convolution over time with its norm: [B, N, I] to [B, (N - K) // stride + 1, O]."""

  def __init__(self, config: WaveformConfig, index: int, *, rngs: nnx.Rngs):
    inputs = config.conv_channels[index - 1] if index else 1
    outputs, kernel = config.conv_channels[index], config.conv_kernels[index]
    he = nnx.initializers.he_normal()
    self.kernel = nnx.Param(he(rngs.params(), (kernel, inputs, outputs)))
    if config.conv_bias:
      self.bias = nnx.Param(jnp.zeros(outputs))
    self.over = config.conv_norm if config.conv_norm == "layer" or index == 0 else None
    if self.over:
      self.norm = LayerNorm(outputs)
    self.stride, self.activation = config.conv_strides[index], config.conv_activation

  def __call__(self, x: jax.Array, real_len: jax.Array | None = None) -> jax.Array:
    """The convolution's frames.

    Args:
      x: [B, N, I].
      real_len: i32[B], inputs that count for a norm over time; None for all of them.
    """
    x = convolve(x, self.kernel[...], stride=self.stride)
    if hasattr(self, "bias"):
      x = add_bias(x, self.bias)
    if self.over == "layer":
      x = self.norm(x)
    elif self.over == "group":
      real = None
      if real_len is not None:
        real_len = (real_len - self.kernel.shape[0]) // self.stride + 1
        real = length_mask(real_len, x.shape[1])[..., None]
      x = self.norm(x, axis=1, real=real)
    return ACTIVATIONS[self.activation](x)


def conv_layers(config: WaveformConfig, *, rngs: nnx.Rngs) -> nnx.List:
  """All convolutions over the waveform."""
  return nnx.List([ConvLayer(config, i, rngs=rngs) for i in range(len(config.conv_channels))])


def frames(
  layers: Iterable[ConvLayer], audio: jax.Array, dtype: str, audio_len: jax.Array | None = None
) -> jax.Array:
  """[B, M, C] of a waveform f32[B, S] that `waveform` has made.

  Args:
    layers: of `conv_layers`.
    audio: the waveform.
    dtype: of the arithmetic.
    audio_len: i32[B], samples that count for a norm over time; None for all, padding too.
  """
  layers = list(layers)
  if for_tpu() and all(layer.over != "group" for layer in layers):
    return frames_in_chunks(layers, audio, dtype)
  return _frames(layers, audio, dtype, audio_len)


def _frames(layers, audio, dtype, audio_len=None):
  x = audio[..., None].astype(dtype)
  for index, layer in enumerate(layers):
    x = layer(x, None if index else audio_len)
  return x


def frames_in_chunks(layers: list[ConvLayer], audio: jax.Array, dtype: str) -> jax.Array:
  """The same, of layers without a norm over time: many short rows for a few long ones.

  TPU's compiler divides long rows of a small batch itself, for each convolution anew, and half of
  the time goes into taking them apart and putting them together.
  """
  stride, reads, count = 1, 1, audio.shape[1]
  for layer in layers:
    kernel = layer.kernel.shape[0]
    reads, stride = reads + (kernel - 1) * stride, stride * layer.stride
    count = (count - kernel) // layer.stride + 1
  hop, more = _CHUNK_FRAMES * stride, max(0, reads - stride)
  chunks = -(-count // _CHUNK_FRAMES)
  size = (chunks + -(-more // hop)) * hop
  audio = jnp.pad(audio, ((0, 0), (0, max(0, size - audio.shape[1]))))[:, :size]
  hops = audio.reshape(audio.shape[0], -1, hop)
  parts = [hops[:, i : i + chunks] for i in range(hops.shape[1] - chunks + 1)]
  rows = jnp.concatenate(parts, 2)[:, :, : hop + more].reshape(-1, hop + more)
  x = _frames(layers, rows, dtype)
  return x.reshape(audio.shape[0], chunks * _CHUNK_FRAMES, -1)[:, :count]


def convolve(x: jax.Array, kernel: jax.Array, *, stride=1, padding=0, groups=1) -> jax.Array:
  """Convolution over time of x[B, N, I] with kernel[K, I / groups, O], in the type of x."""
  return jax.lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    (stride,),
    [(padding, padding)],
    dimension_numbers=("NWC", "WIO", "NWC"),
    feature_group_count=groups,
  )
