"""FastConformer with a CTC head (Rekesh et al. 2023), as NeMo and transformers' Parakeet have it.

Audio → NeMo's mel features → depthwise strided convolutions → Conformer blocks ff-mhsa-conv-ff with
relative positions and batch norm → classes, a frame every 80 ms where features are subsampled by 8.
`huggingface/parakeet.py` has the names of the weights. Only `nnx.Param` leaves; no key means
evaluation.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.masks import length_mask, strided_len, zero_padding
from jaxkd.models.augment import SpecAugment, spec_augment_if
from jaxkd.models.classifier import FrameClassifier
from jaxkd.models.features import HOP, LogMel, frame_len, log_mel
from jaxkd.models.layers import (
  BatchNorm,
  ConvModule,
  FeedForward,
  LayerNorm,
  Linear,
  add_bias,
  dropout,
)
from jaxkd.models.stack import scan_stack
from jaxkd.models.wav2vec2 import attention, max_pool_frames
from jaxkd.types import FrameOutput


@dataclasses.dataclass(frozen=True)
class FastConformerConfig:
  """Structure, numerics and what is random in training.

  Attributes:
    mels: filters of the features.
    layers, width, heads, ff_width: of the blocks.
    conv_kernel: frames of the depthwise convolution, odd.
    subsampling: features to a frame, a power of 2; it divides `mels`.
    subsampling_channels: of the convolutions before the blocks.
    activation: of the blocks.
    bias: whether feed-forward layers and attention have biases.
    conv_bias: whether the blocks' convolutions have them.
    scale_input: whether frames are multiplied by the root of their width before the blocks.
    statistics: whether batch norms have a mean and a variance of their own, which are not learnt.
    pool: frames that are max-pooled into one before the head.
    dtype: of the arithmetic; parameters, norms and logits are float32.
    dropout: rate, in every layer and of the attention's weights.
    layer_drop: probability that a block is skipped.
    remat: in training a block's products, too, are computed again for its gradient.
    family: `model_type` in transformers.
  """

  mels: int
  layers: int
  width: int
  heads: int
  ff_width: int
  conv_kernel: int
  subsampling: int
  subsampling_channels: int
  activation: str = "silu"
  bias: bool = True
  conv_bias: bool = True
  scale_input: bool = True
  statistics: bool = True
  pool: int = 1
  dtype: str = "float32"
  dropout: float = 0.0
  layer_drop: float = 0.0
  remat: bool = False
  family: str = "parakeet_ctc"

  @property
  def features(self) -> LogMel:
    """What it reads."""
    return LogMel("nemo", mels=self.mels)

  @property
  def strides(self) -> int:
    """Convolutions that halve the number of frames."""
    return self.subsampling.bit_length() - 1

  @property
  def frame_samples(self) -> int:
    """Audio samples in an output frame: 1280 for each of those that are pooled, 80 ms."""
    return HOP * self.subsampling * self.pool

  def frame_len(self, audio_len):
    """Frames, before they are pooled, of so many samples (ints, NumPy or JAX)."""
    return self.subsampled(frame_len(audio_len, "nemo"))

  def subsampled(self, feature_len):
    """Frames of so many feature frames."""
    for _ in range(self.strides):
      feature_len = strided_len(feature_len, 2)
    return feature_len


class Subsampling(nnx.Module):
  """Features to frames by 3×3 convolutions of stride 2; all but the first are depthwise.

  [B, N, F] becomes [B, ceil(N / subsampling), D].
  """

  def __init__(self, config: FastConformerConfig, *, rngs: nnx.Rngs):
    channels, he = config.subsampling_channels, nnx.initializers.he_uniform()
    draw = lambda inputs: nnx.Param(he(rngs.params(), (3, 3, inputs, channels)))
    rest = range(config.strides - 1)
    self.kernel, self.bias = draw(1), nnx.Param(jnp.zeros(channels))
    self.depthwise = nnx.List([draw(1) for _ in rest])
    self.depthwise_bias = nnx.List([nnx.Param(jnp.zeros(channels)) for _ in rest])
    self.pointwise = nnx.List([Linear(channels, channels, rngs=rngs) for _ in rest])
    self.project = Linear(channels * (config.mels // config.subsampling), config.width, rngs=rngs)

  def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Frames [B, T, D] and their number i32[B]; `lengths` i32[B] are those of x[B, N, F].

    Padding is 0 wherever a convolution could see it.
    """
    x = zero_padding(x, length_mask(lengths, x.shape[1]))
    x = add_bias(_strided(x, self.kernel), self.bias)
    for kernel, bias, pointwise in zip(
      self.depthwise, self.depthwise_bias, self.pointwise, strict=True
    ):
      x, lengths = self._rectified(x, lengths)
      x = pointwise(add_bias(strided_depthwise(x, kernel[...][:, :, 0]), bias))
    x, lengths = self._rectified(x, lengths)
    # The channels come before the filters in the projection's rows.
    return self.project(x.swapaxes(2, 3).reshape(*x.shape[:2], -1)), lengths

  def _rectified(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """ReLU of what a stride has left, with padding at 0."""
    lengths = strided_len(lengths, 2)
    mask = length_mask(lengths, x.shape[1])[..., None, None]
    return jnp.where(mask, jax.nn.relu(x), 0), lengths


def _strided(x: jax.Array, kernel: nnx.Param) -> jax.Array:
  """Convolution of x[B, N, F], one channel, with kernel[3, 3, 1, C], stride 2, a frame around."""
  return jax.lax.conv_general_dilated(
    x[..., None],
    kernel[...].astype(x.dtype),
    (2, 2),
    [(1, 1), (1, 1)],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def strided_depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolution of x[B, N, F, C] with kernel[3, 3, C], each channel on its own, stride 2.

  [B, ceil(N / 2), ceil(F / 2), C]. A sum of shifted copies, as `layers.depthwise`.
  """
  frames, filters = strided_len(x.shape[1], 2), strided_len(x.shape[2], 2)
  # One more behind where a number is odd, so that every shift has as many positions.
  more = 2 * frames - x.shape[1], 2 * filters - x.shape[2]
  padded = jnp.pad(x, ((0, 0), (1, more[0] + 1), (1, more[1] + 1), (0, 0)))

  def taken(i: int, j: int) -> jax.Array:
    part = padded[:, i : i + 2 * frames : 2, j : j + 2 * filters : 2]
    return part * kernel[i, j][None, None, None].astype(x.dtype)

  return sum(taken(i, j) for i in range(3) for j in range(3))


class Attention(nnx.Module):
  """Self-attention with relative positions (Dai et al. 2019), each distance with its own sinusoids.

  The score of query i and key j is (q_i + u)·k_j + (q_i + v)·r_(i-j) with learnt biases u and v.
  """

  def __init__(self, config: FastConformerConfig, *, rngs: nnx.Rngs):
    width, heads = config.width, config.heads
    make = lambda bias: Linear(width, width, rngs=rngs, bias=bias)
    self.norm = LayerNorm(width)
    self.query, self.key, self.value = (make(config.bias) for _ in range(3))
    self.out, self.positions = make(config.bias), make(False)
    self.content_bias = nnx.Param(jnp.zeros((heads, width // heads)))
    self.position_bias = nnx.Param(jnp.zeros((heads, width // heads)))
    self.heads = heads

  def __call__(self, x: jax.Array, mask: jax.Array, table: jax.Array, rate: float, key):
    """x[B, T, D] to the same shape.

    Args:
      x: frames.
      mask: bool[B, T], True for real frames.
      table: `distances` of T.
      rate: of dropout.
      key: None is evaluation.
    """
    keys = (None, None) if key is None else jax.random.split(key)
    split = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)
    y = self.norm(x)
    q, k, v = (split(linear(y)) for linear in (self.query, self.key, self.value))
    add = lambda bias: q + bias[...].astype(x.dtype)[None, None]
    far = jnp.einsum("bthd,phd->bhtp", add(self.position_bias), split(self.positions(table)))
    bias = by_distance(far) * (x.shape[-1] // self.heads) ** -0.5
    mixed = attention(add(self.content_bias), k, v, bias, mask, rate, keys[0])
    return dropout(self.out(mixed.reshape(x.shape)), rate, keys[1])


def distances(frames: int, width: int, dtype) -> jax.Array:
  """[2·T - 1, D]: sine and cosine in turn of every distance, from T - 1 down to 1 - T."""
  rates = 10_000 ** -(np.arange(0, width, 2, dtype=np.float32) / width)
  angles = (frames - 1 - jnp.arange(2 * frames - 1)).astype(jnp.float32)[:, None] * rates[None]
  pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1)
  return pairs.reshape(2 * frames - 1, width).astype(dtype)


def by_distance(scores: jax.Array) -> jax.Array:
  """[B, H, T, 2·T - 1] by distance, from T - 1 down, to [B, H, T, T] by key, by reshaping."""
  batch, heads, frames, _ = scores.shape
  padded = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0)))
  sheared = padded.reshape(batch, heads, 2 * frames, frames)[:, :, 1:]
  return sheared.reshape(batch, heads, frames, 2 * frames - 1)[..., :frames]


class Block(nnx.Module):
  """Half feed-forward, attention, convolution, half feed-forward, layer norm."""

  def __init__(self, config: FastConformerConfig, *, rngs: nnx.Rngs):
    width = config.width
    feed_forward = lambda: FeedForward(
      width, config.ff_width, rngs=rngs, bias=config.bias, activation=config.activation
    )
    self.ff_first = feed_forward()
    self.attention = Attention(config, rngs=rngs)
    self.conv = ConvModule(
      width,
      config.conv_kernel,
      rngs=rngs,
      bias=config.conv_bias,
      activation=config.activation,
      inner_norm=BatchNorm(width, statistics=config.statistics),
    )
    self.ff_last = feed_forward()
    self.norm = LayerNorm(width)
    self.rate = config.dropout

  def __call__(self, x: jax.Array, mask: jax.Array, table: jax.Array, key: jax.Array | None):
    """x[B, T, D] → the same shape; arguments as for `Attention`."""
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    x = x + 0.5 * self.ff_first(x, self.rate, keys[0])
    x = x + self.attention(x, mask, table, self.rate, keys[1])
    x = x + self.conv(x, mask, self.rate, keys[2])
    x = x + 0.5 * self.ff_last(x, self.rate, keys[3])
    return self.norm(x)


class FastConformerCTC(FrameClassifier):
  """Audio → features → subsampled frames → stacked blocks → class logits."""

  def __init__(
    self,
    config: FastConformerConfig,
    classes: int,
    *,
    rngs: nnx.Rngs,
    project_to: int | None = None,
  ):
    """Draws parameters from `rngs.params`.

    Args:
      config: sizes.
      classes: of the head, the blank included.
      rngs: with a stream `params`.
      project_to: width of a teacher's frames, for a `projection` to compare them in; None for none.
    """
    self.subsampling = Subsampling(config, rngs=rngs)
    make = lambda key: Block(config, rngs=nnx.Rngs(params=key))
    self.layers = nnx.vmap(make)(jax.random.split(rngs.params(), config.layers))
    self.head = Linear(config.width, classes, rngs=rngs)
    if project_to is not None:
      self.projection = Linear(config.width, project_to, rngs=rngs)
    self.config = config

  def __call__(
    self,
    audio: jax.Array,
    audio_len: jax.Array,
    *,
    key: jax.Array | None = None,
    spec_augment: SpecAugment | None = None,
    augment_on: jax.Array | bool = True,
  ) -> FrameOutput:
    """Logits of every frame.

    Args:
      audio: i16[B, S], or float[B, S] of full scale 1, 16 kHz; padding may hold anything.
      audio_len: i32[B], real samples; a row of less than 10 ms has no real frame.
      key: for dropout, layer drop and SpecAugment; None is evaluation.
      spec_augment: masks on the features where there is a key; None for none.
      augment_on: bool[], whether they apply.

    Returns:
      Logits f32[B, T, V] and mask bool[B, T], T = ceil(ceil(S / 160) / (subsampling · pool)).
    """
    options = dict(key=key, spec_augment=spec_augment, augment_on=augment_on)
    return self.classify(*self.encode(audio, audio_len, **options))

  def encode(
    self,
    audio: jax.Array,
    audio_len: jax.Array,
    *,
    key: jax.Array | None = None,
    spec_augment: SpecAugment | None = None,
    augment_on: jax.Array | bool = True,
  ) -> tuple[jax.Array, jax.Array]:
    """Encoder output, pooled, [B, T, D] and mask bool[B, T]; arguments as for a call."""
    config = self.config
    augment_key, dropout_key = (None, None) if key is None else jax.random.split(key)
    features, mask = log_mel(audio, audio_len, config.features)
    if spec_augment is not None and key is not None:
      features = spec_augment_if(augment_on, features, mask, augment_key, spec_augment)
    lengths = mask.sum(-1, dtype=jnp.int32)
    x, lengths = self.subsampling(features.astype(config.dtype), lengths)
    if config.scale_input:
      x = x * math.sqrt(config.width)
    mask = length_mask(lengths, x.shape[1])
    return max_pool_frames(self._run_layers(x, mask, dropout_key), mask, config.pool)

  def _run_layers(self, x: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
    config = self.config
    table = distances(x.shape[1], config.width, x.dtype)
    keys = None
    if key is not None:
      x = dropout(x, config.dropout, jax.random.fold_in(key, 0))
      keys = jax.random.split(jax.random.fold_in(key, 1), config.layers)
    call = lambda block, x, key: block(x, mask, table, key)
    return scan_stack(self.layers, x, call, keys, layer_drop=config.layer_drop, remat=config.remat)
