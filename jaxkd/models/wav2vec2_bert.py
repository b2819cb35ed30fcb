"""Wav2Vec2-BERT (w2v-BERT 2.0) with a CTC head: log-mel features → Conformer → classes.

Kaldi's filters, of zero mean and unit variance over the utterance, two frames to one of 20 ms;
Conformer layers whose convolutions see no frame ahead; layers that halve the frames, where a model
has them. Every step is the one of Hugging Face transformers for an utterance alone: padding changes
nothing. `huggingface/wav2vec2_bert.py` has the names of the weights. Only `nnx.Param` leaves;
evaluation only.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.masks import length_mask, zero_padding
from jaxkd.models import features
from jaxkd.models.classifier import FrameClassifier
from jaxkd.models.fastconformer import by_distance, distances
from jaxkd.models.layers import (
  ACTIVATIONS,
  LayerNorm,
  Linear,
  add_bias,
  depthwise,
  rotated,
  spread,
)
from jaxkd.models.stack import scan_stack
from jaxkd.models.wav2vec2 import attention, max_pool_frames
from jaxkd.models.waveform import convolve

STACKED = 2  # feature frames in one of the model's
POSITIONS = ("relative_key", "relative", "rotary", None)


@dataclasses.dataclass(frozen=True)
class Wav2Vec2BertConfig:
  """Structure and numerics.

  Attributes:
    family: `model_type` in transformers.
    mels: filters; a frame of the model has twice as many numbers.
    width, layers, heads, ff_width: of the Conformer.
    activation: of its feed-forward layers and convolutions.
    kernel: of its convolutions, in frames.
    norm_eps: of the layer norms.
    positions: "relative_key", a learnt key for each distance (Shaw et al. 2018); "relative",
      projected sinusoids of the distance (Transformer-XL); "rotary"; None for none.
    left, right: frames before and after a query beyond which distances share a key.
    rotary_base: of the rotary positions' wavelengths.
    adapter_layers: that follow the Conformer and stride over its frames.
    adapter_kernel, adapter_stride: of their convolutions, in frames.
    adapter_width, adapter_activation: of theirs.
    adapter_ff: a feed-forward layer before them.
    pool: frames that are max-pooled into one before the head.
    dtype: of the arithmetic; features, parameters, norms and logits are float32.
  """

  family: str
  mels: int
  width: int
  layers: int
  heads: int
  ff_width: int
  activation: str
  kernel: int
  norm_eps: float
  positions: str | None
  left: int
  right: int
  rotary_base: float
  adapter_layers: int
  adapter_kernel: int
  adapter_stride: int
  adapter_width: int
  adapter_activation: str
  adapter_ff: bool
  pool: int = 1
  dtype: str = "float32"

  def frame_len(self, audio_len):
    """Frames of so many samples (ints, NumPy or JAX), as transformers counts them."""
    frames = features.frame_len(audio_len, "kaldi") // STACKED
    for _ in range(self.adapter_layers):
      frames = self.strided(frames)
    return frames

  def strided(self, frames):
    """Frames that an adapter's layer makes of so many; none of none."""
    around = 2 * (self.adapter_kernel // 2) - self.adapter_kernel
    return ((frames + around) // self.adapter_stride + 1) * (frames > 0)

  @property
  def frame_samples(self) -> int:
    """Audio samples in an output frame."""
    return STACKED * features.HOP * self.adapter_stride**self.adapter_layers * self.pool


class FeedForward(nnx.Module):
  """x[..., D] → hidden → x[..., D]."""

  def __init__(self, width: int, hidden: int, activation: str, *, rngs: nnx.Rngs):
    self.inner = Linear(width, hidden, rngs=rngs)
    self.outer = Linear(hidden, width, rngs=rngs)
    self.activation = activation

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.outer(ACTIVATIONS[self.activation](self.inner(x)))


class Attention(nnx.Module):
  """Self-attention of x[B, M, D], with one of POSITIONS."""

  def __init__(
    self, config: Wav2Vec2BertConfig, width: int, positions: str | None, *, rngs: nnx.Rngs
  ):
    self.query = Linear(width, width, rngs=rngs)
    self.key = Linear(width, width, rngs=rngs)
    self.value = Linear(width, width, rngs=rngs)
    self.out = Linear(width, width, rngs=rngs)
    heads, size = config.heads, width // config.heads
    draw = lambda shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
    if positions == "relative_key":
      self.distances = draw((config.left + config.right + 1, size))
    if positions == "relative":
      self.distance = Linear(width, width, bias=False, rngs=rngs)
      self.content_bias, self.position_bias = draw((heads, size)), draw((heads, size))
    self.positions, self.config = positions, config

  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """x[B, M, D] to the same shape; `mask` bool[B, M] is True for frames that are attended to."""
    split = lambda x: x.reshape(*x.shape[:2], self.config.heads, -1)
    placed = x
    if self.positions == "rotary":
      placed = rotated(split(x), self.config.rotary_base).reshape(x.shape)
    q, k, v = split(self.query(placed)), split(self.key(placed)), split(self.value(x))
    bias = None
    if self.positions == "relative_key":
      bias = self._by_clipped_distance(q)
    if self.positions == "relative":
      bias = self._by_distance(add_bias(q, self.position_bias))
      q = add_bias(q, self.content_bias)
    return self.out(attention(q, k, v, bias, mask, 0.0, None).reshape(x.shape))

  def _by_clipped_distance(self, q: jax.Array) -> jax.Array:
    """[B, H, M, M] of q[B, M, H, E]: the query times what was learnt for each key's distance."""
    left, right = self.config.left, self.config.right
    clip = max(left, right)
    ahead = np.clip(np.arange(clip, -clip - 1, -1), -left, right)
    table = self.distances[...][ahead + left].astype(q.dtype)
    scores = jnp.einsum("bqhe,pe->bhqp", q, table) * q.shape[-1] ** -0.5
    return spread(scores, q.shape[1], clip)

  def _by_distance(self, q: jax.Array) -> jax.Array:
    """[B, H, M, M] of q[B, M, H, E]: the query times a projection of each distance's sinusoids."""
    table = self.distance(distances(q.shape[1], self.config.width, q.dtype))
    table = table.reshape(-1, *q.shape[2:])
    return by_distance(jnp.einsum("bqhe,phe->bhqp", q, table) * q.shape[-1] ** -0.5)


class Layer(nnx.Module):
  """Half a feed-forward layer, self-attention, a convolution, the other half; all residual."""

  def __init__(self, config: Wav2Vec2BertConfig, *, rngs: nnx.Rngs):
    width, norm = config.width, lambda: LayerNorm(config.width, config.norm_eps)
    feed_forward = lambda: FeedForward(width, config.ff_width, config.activation, rngs=rngs)
    self.ff1_norm, self.ff1 = norm(), feed_forward()
    self.attention_norm = norm()
    self.attention = Attention(config, width, config.positions, rngs=rngs)
    self.conv_norm = norm()
    self.gated = Linear(width, 2 * width, bias=False, rngs=rngs)
    self.depthwise = nnx.Param(
      jax.random.normal(rngs.params(), (config.kernel, width)) * config.kernel**-0.5
    )
    self.inner_norm = norm()
    self.pointwise = Linear(width, width, bias=False, rngs=rngs)
    self.ff2_norm, self.ff2 = norm(), feed_forward()
    self.norm = norm()
    self.activation = config.activation

  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """x[B, M, D] to the same shape; `mask` bool[B, M] is True for real frames."""
    x = x + 0.5 * self.ff1(self.ff1_norm(x))
    x = x + self.attention(self.attention_norm(x), mask)
    x = x + self._convolve(x, mask)
    x = x + 0.5 * self.ff2(self.ff2_norm(x))
    return self.norm(x)

  def _convolve(self, x, mask):
    y = jax.nn.glu(self.gated(zero_padding(self.conv_norm(x), mask)))
    y = depthwise(y, self.depthwise[...], before=self.depthwise.shape[0] - 1)
    return self.pointwise(ACTIVATIONS[self.activation](self.inner_norm(y)))


class AdapterLayer(nnx.Module):
  """A strided convolution, and a Transformer layer whose attention reads another one."""

  def __init__(self, config: Wav2Vec2BertConfig, *, rngs: nnx.Rngs):
    width, norm = config.adapter_width, lambda: LayerNorm(config.adapter_width, config.norm_eps)
    self.residual_norm, self.residual = norm(), StridedGate(config, rngs=rngs)
    self.attention_norm, self.strided = norm(), StridedGate(config, rngs=rngs)
    self.attention = Attention(config, width, None, rngs=rngs)
    self.ff_norm = norm()
    self.ff = FeedForward(width, config.ff_width, config.adapter_activation, rngs=rngs)

  def __call__(self, x: jax.Array, there: jax.Array, mask: jax.Array) -> jax.Array:
    """x[B, M, D] to [B, M', D].

    Args:
      x: frames.
      there: bool[B, M], frames that an utterance alone has: its last one may be no real one.
      mask: bool[B, M'], True for real frames of the result.
    """
    residual = self.residual(zero_padding(self.residual_norm(x), there))
    y = self.strided(zero_padding(self.attention_norm(x), there))
    x = residual + self.attention(y, mask)
    return x + self.ff(self.ff_norm(x))


class StridedGate(nnx.Module):
  """A strided convolution of [B, M, D] to twice the channels, one half the gate of the other."""

  def __init__(self, config: Wav2Vec2BertConfig, *, rngs: nnx.Rngs):
    width, taps = config.adapter_width, config.adapter_kernel
    he = nnx.initializers.he_normal()
    self.kernel = nnx.Param(he(rngs.params(), (taps, width, 2 * width)))
    self.bias = nnx.Param(jnp.zeros(2 * width))
    self.stride = config.adapter_stride

  def __call__(self, x: jax.Array) -> jax.Array:
    padding = self.kernel.shape[0] // 2
    y = convolve(x, self.kernel[...], stride=self.stride, padding=padding)
    return jax.nn.glu(add_bias(y, self.bias))


class Wav2Vec2BertCTC(FrameClassifier):
  """Audio → class logits of every frame (20 ms, times the adapter's strides and `config.pool`)."""

  def __init__(self, config: Wav2Vec2BertConfig, classes: int, *, rngs: nnx.Rngs):
    """Draws parameters from `rngs.params`; `classes` includes the blank."""
    self.project_norm = LayerNorm(STACKED * config.mels, config.norm_eps)
    self.project = Linear(STACKED * config.mels, config.width, rngs=rngs)
    make = lambda key: Layer(config, rngs=nnx.Rngs(params=key))
    self.layers = nnx.vmap(make)(jax.random.split(rngs.params(), config.layers))
    if config.adapter_ff:
      self.adapter_ff = FeedForward(config.width, config.ff_width, "relu", rngs=rngs)
    if config.adapter_layers and config.adapter_width != config.width:
      self.adapter_project = Linear(config.width, config.adapter_width, rngs=rngs)
      self.adapter_norm = LayerNorm(config.adapter_width, config.norm_eps)
    self.adapter = nnx.List([AdapterLayer(config, rngs=rngs) for _ in range(config.adapter_layers)])
    self.head = Linear(
      config.adapter_width if config.adapter_layers else config.width, classes, rngs=rngs
    )
    self.config = config

  def encode(self, audio: jax.Array, audio_len: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encoder output, pooled, [B, T, D] and mask bool[B, T]; arguments as for a call.

    A row of less than 35 ms has no real frame.
    """
    config = self.config
    x, feature_len = stacked_features(audio, audio_len, config.mels)
    mask = length_mask(feature_len // STACKED, x.shape[1])
    x = self.project(self.project_norm(x).astype(config.dtype))
    x = zero_padding(x, mask)
    x = scan_stack(self.layers, x, lambda layer, x, _: layer(x, mask))
    if config.adapter_layers:
      x, mask = self._adapt(x, feature_len)
    return max_pool_frames(x, mask, config.pool)

  def _adapt(self, x, feature_len):
    """Fewer frames, and their mask.

    An utterance alone, of an odd number of feature frames, has half a frame behind its real ones:
    nothing attends to it, but the adapter's convolutions read what the encoder has made of it.
    """
    config, real, there = self.config, feature_len // STACKED, -(-feature_len // STACKED)
    if config.adapter_ff:
      x = x + 0.5 * self.adapter_ff(x)
    if config.adapter_width != config.width:
      x = self.adapter_norm(self.adapter_project(x))
    for layer in self.adapter:
      before = length_mask(there, x.shape[1])
      real, there = config.strided(real), config.strided(there)
      mask = length_mask(real, config.strided(x.shape[1]))
      x = layer(x, before, mask)
    return x, mask


def stacked_features(
  audio: jax.Array, audio_len: jax.Array, mels: int
) -> tuple[jax.Array, jax.Array]:
  """What SeamlessM4TFeatureExtractor gives: f32[B, M, 2F], and feature frames i32[B], not stacked.

  Args:
    audio: i16[B, S], or float[B, S] of full scale 1; padding may hold anything.
    audio_len: i32[B], real samples.
    mels: F, Kaldi's filters from 20 to 8000 Hz.
  """
  audio = jnp.pad(audio, ((0, 0), (0, max(0, features.WINDOW - audio.shape[1]))))
  settings = features.LogMel("kaldi", mels, 20.0, 8000.0)
  x, mask = features.log_mel(audio, audio_len, settings)
  x = features.standardise(x, mask, eps=1e-7, unbiased=True)
  x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % STACKED), (0, 0)))
  return x.reshape(x.shape[0], -1, STACKED * mels), features.frame_len(audio_len, "kaldi")
