"""HuBERT, wav2vec 2.0, WavLM, UniSpeech and data2vec-audio with a CTC head: one encoder.

Waveform → strided convolutions → projection → positional convolution → Transformer → classes, a
frame every 20 ms. Every step is the one of Hugging Face transformers, down to its rounding of
lengths; `huggingface/wav2vec2.py` has the names of the weights. Only `nnx.Param` leaves; no key
means evaluation.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.masks import dilate, length_mask, strided_len, zero_padding
from jaxkd.models.classifier import FrameClassifier
from jaxkd.models.layers import (
  ACTIVATIONS,
  LayerNorm,
  Linear,
  add_bias,
  dropout,
  largest,
  standardise,
)
from jaxkd.models.stack import scan_stack
from jaxkd.models.waveform import (
  WaveformConfig,
  conv_layers,
  convolve,
  frames,
  waveform,
)
from jaxkd.placement import on_nvidia
from jaxkd.types import FrameOutput


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config(WaveformConfig):
  """Structure, numerics and what is random in training.

  Attributes:
    family: `model_type` in transformers.
    width, layers, heads, ff_width: of the Transformer.
    activation: of its feed-forward layers.
    projection_norm: layer norm before the projection.
    position_kernel, position_groups, position_layers: of the positional convolution, in frames.
    position_norm: of it: "weight", its kernel's taps have a gain each; "layer", of what comes out;
      or "none".
    pre_norm: layer norms before the sublayers ("stable") instead of after them.
    norm_eps: of the Transformer's layer norms.
    buckets, max_distance: WavLM's relative positions.
    adapter_width: of what follows every layer in models with a part for each language (MMS); 0 for
      none.
    mask_attention: whether padding is hidden from the Transformer. Models with group norm were
      trained without, and change with padding; those of data2vec-audio do so too, since every
      positional convolution but the first reads what the one before left there.
    dtype: of the arithmetic; parameters, layer norms and logits are float32.
    head_dropout, dropout, attention_dropout, activation_dropout, projection_dropout: rates.
    layer_drop: probability that a layer is skipped.
    time_mask, feature_mask: (probability, length, least number) of masked spans of frames, which
      become a learnt vector, and of channels, which become 0 (wav2vec 2.0, appendix B).
    freeze_conv: the convolutions over the waveform are not trained.
    remat: in training a layer's products, too, are computed again for its gradient.
  """

  family: str
  width: int
  layers: int
  heads: int
  ff_width: int
  activation: str
  projection_norm: bool
  position_kernel: int
  position_groups: int
  position_layers: int
  position_norm: str
  pre_norm: bool
  norm_eps: float
  buckets: int
  max_distance: int
  adapter_width: int
  mask_attention: bool
  dtype: str = "float32"
  head_dropout: float = 0.0
  dropout: float = 0.0
  attention_dropout: float = 0.0
  activation_dropout: float = 0.0
  projection_dropout: float = 0.0
  layer_drop: float = 0.0
  time_mask: tuple[float, int, int] = (0.0, 1, 0)
  feature_mask: tuple[float, int, int] = (0.0, 1, 0)
  freeze_conv: bool = False
  remat: bool = False


class PositionConv(nnx.Module):
  """Grouped convolution over frames."""

  def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs, stride: int = 1):
    """Draws parameters; `config` may be another's that has the same fields."""
    width, taps, groups = config.width, config.position_kernel, config.position_groups
    self.kernel = nnx.Param(
      (4 / (taps * width)) ** 0.5 * jax.random.normal(rngs.params(), (taps, width // groups, width))
    )
    if config.position_norm == "weight":
      self.gain = nnx.Param(jnp.sqrt((self.kernel[...] ** 2).sum((1, 2))))
    self.bias = nnx.Param(jnp.zeros(width))
    self.groups, self.activation, self.stride = groups, config.conv_activation, stride
    self.standardised = config.position_norm == "layer"

  def __call__(self, x: jax.Array) -> jax.Array:
    """x[B, M, D] to [B, M // stride, D]."""
    kernel, taps = self.kernel[...], self.kernel.shape[0]
    if hasattr(self, "gain"):
      norm = jnp.sqrt((kernel**2).sum((1, 2), keepdims=True))
      kernel = kernel * (self.gain[...][:, None, None] / norm)
    y = convolve(x, kernel, stride=self.stride, padding=taps // 2, groups=self.groups)
    y = y[:, : x.shape[1] // self.stride]
    y = add_bias(y, self.bias)
    if self.standardised:
      y = standardise(y).astype(x.dtype)
    return ACTIVATIONS[self.activation](y)


class Layer(nnx.Module):
  """Self-attention and a feed-forward layer, each with a residual and a layer norm."""

  def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs):
    width = config.width
    self.query = Linear(width, width, rngs=rngs)
    self.key = Linear(width, width, rngs=rngs)
    self.value = Linear(width, width, rngs=rngs)
    self.out = Linear(width, width, rngs=rngs)
    self.attention_norm = LayerNorm(width, config.norm_eps)
    self.inner = Linear(width, config.ff_width, rngs=rngs)
    self.outer = Linear(config.ff_width, width, rngs=rngs)
    self.ff_norm = LayerNorm(width, config.norm_eps)
    if config.adapter_width:
      self.adapter_norm = LayerNorm(width)
      self.adapter_inner = Linear(width, config.adapter_width, rngs=rngs)
      self.adapter_outer = Linear(config.adapter_width, width, rngs=rngs)
    if config.family == "wavlm":
      self.gate = Linear(width // config.heads, 8, rngs=rngs)
      self.gate_scale = nnx.Param(jnp.ones(config.heads))
    self.config = config

  def __call__(self, x: jax.Array, mask, distance_bias, key: jax.Array | None) -> jax.Array:
    """x[B, M, D] to the same shape.

    Args:
      x: frames.
      mask: bool[B, M], True for frames that may be attended to; None for all.
      distance_bias: WavLM's f32[H, M, M]; None elsewhere.
      key: for dropout; None is evaluation.
    """
    config = self.config
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    y = self.attention_norm(x) if config.pre_norm else x
    x = x + dropout(self._attend(y, mask, distance_bias, keys[0]), config.dropout, keys[1])
    if not config.pre_norm:
      x = self.attention_norm(x)
    y = self.ff_norm(x) if config.pre_norm else x
    y = ACTIVATIONS[config.activation](self.inner(y))
    y = self.outer(dropout(y, config.activation_dropout, keys[2]))
    x = x + dropout(y, config.dropout, keys[3])
    if config.adapter_width:
      x = x + self.adapter_outer(jax.nn.relu(self.adapter_inner(self.adapter_norm(x))))
    return x if config.pre_norm else self.ff_norm(x)

  def _attend(self, x, mask, distance_bias, key):
    heads = (*x.shape[:2], self.config.heads, -1)
    q, k, v = (linear(x).reshape(heads) for linear in (self.query, self.key, self.value))
    bias = None
    if distance_bias is not None:
      bias = (self._gate(x.reshape(heads))[..., None] * distance_bias[None]).astype(x.dtype)
    mixed = attention(q, k, v, bias, mask, self.config.attention_dropout, key)
    return self.out(mixed.reshape(x.shape))

  def _gate(self, x: jax.Array) -> jax.Array:
    """f32[B, H, M] of x[B, M, H, D / H]: how much of the distance bias a query takes (WavLM)."""
    pairs = self.gate(x).astype(jnp.float32).reshape(*x.shape[:3], 2, 4).sum(-1)
    a, b = jnp.moveaxis(jax.nn.sigmoid(pairs), -1, 0)
    return (a * (b * self.gate_scale[...][None, None] - 1) + 2).swapaxes(1, 2)


def attention(q, k, v, bias, mask, rate: float, key: jax.Array | None) -> jax.Array:
  """Softmax attention of q, k, v[B, M, H, D / H], with dropout of its weights where there is a key.

  Args:
    q, k, v: queries, keys, values.
    bias: [B, H, M, M] added to the scores, or None.
    mask: bool[B, M], True for keys that are attended to, which come first; None for all.
    rate: of the dropout.
    key: None is evaluation.
  """
  if key is None and q.dtype.itemsize == 2 and q.shape[-1] % 8 == 0:  # of what cuDNN can do
    return on_nvidia(_flash_attention, _plain_attention, q, k, v, bias, mask)
  if key is None or rate == 0:
    return _plain_attention(q, k, v, bias, mask)
  mask = None if mask is None else mask[:, None, None]
  scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
  if bias is not None:
    scores += bias
  if mask is not None:
    scores = jnp.where(mask, scores, -1e9)
  weights = dropout(jax.nn.softmax(scores), rate, key).astype(q.dtype)
  return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _plain_attention(q, k, v, bias, mask):
  mask = None if mask is None else mask[:, None, None]
  return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask)


def _flash_attention(q, k, v, bias, mask):
  """By cuDNN, which keeps no scores in memory. It takes a number of keys; of none it makes NaN."""
  keys = None if mask is None else jnp.maximum(mask.sum(-1, dtype=jnp.int32), 1)
  return jax.nn.dot_product_attention(
    q, k, v, bias=bias, key_value_seq_lengths=keys, implementation="cudnn"
  )


class Wav2Vec2CTC(FrameClassifier):
  """Audio → class logits of every frame (20 ms, times `config.pool`)."""

  def __init__(self, config: Wav2Vec2Config, classes: int, *, rngs: nnx.Rngs):
    """Draws parameters from `rngs.params`; `classes` includes the blank."""
    self.conv = conv_layers(config, rngs=rngs)
    if config.projection_norm:
      self.project_norm = LayerNorm(config.conv_channels[-1], config.norm_eps)
    self.project = Linear(config.conv_channels[-1], config.width, rngs=rngs)
    self.mask_embedding = nnx.Param(jax.random.uniform(rngs.params(), (config.width,)))
    self.positions = nnx.List(
      [PositionConv(config, rngs=rngs) for _ in range(config.position_layers)]
    )
    self.norm = LayerNorm(config.width, config.norm_eps)
    if config.family == "wavlm":
      self.distances = nnx.Param(
        0.02 * jax.random.normal(rngs.params(), (config.buckets, config.heads))
      )
    make = lambda key: Layer(config, rngs=nnx.Rngs(params=key))
    self.layers = nnx.vmap(make)(jax.random.split(rngs.params(), config.layers))
    self.head = Linear(config.width, classes, rngs=rngs)
    self.config = config

  def __call__(
    self,
    audio: jax.Array,
    audio_len: jax.Array,
    *,
    key: jax.Array | None = None,
    spec_augment: None = None,
    augment_on: jax.Array | bool = True,
  ) -> FrameOutput:
    """Logits of every frame.

    Args:
      audio: i16[B, S], or float[B, S] of full scale 1, 16 kHz; padding may hold anything.
      audio_len: i32[B], real samples; a row of less than 25 ms has no real frame.
      key: for dropout, layer drop and the family's own masks; None is evaluation.
      spec_augment: None: there are no log-mel features to mask.
      augment_on: bool[], whether spans are masked.

    Returns:
      Logits f32[B, T, V] and mask bool[B, T], T = ceil(frame_len(S) / pool).
    """
    x, mask = self.encode(audio, audio_len, key=key, augment_on=augment_on)
    head_key = None if key is None else jax.random.fold_in(jax.random.split(key)[1], 3)
    return self.classify(dropout(x, self.config.head_dropout, head_key), mask)

  def encode(
    self,
    audio: jax.Array,
    audio_len: jax.Array,
    *,
    key: jax.Array | None = None,
    spec_augment: None = None,
    augment_on: jax.Array | bool = True,
  ) -> tuple[jax.Array, jax.Array]:
    """Encoder output, pooled, [B, T, D] and mask bool[B, T]; arguments as for a call."""
    del spec_augment
    config = self.config
    mask_key, dropout_key = (None, None) if key is None else jax.random.split(key)
    x = self.conv_features(waveform(audio, audio_len, config))
    mask = length_mask(config.frame_len(audio_len), x.shape[1])
    x = self.embed(x, dropout_key)
    if key is not None:
      masked = self._mask_spans(x, mask, mask_key)
      x = jnp.where(augment_on, masked, x)
    x = self.transform(x, mask if config.mask_attention else None, dropout_key)
    return max_pool_frames(x, mask, config.pool)

  def conv_features(self, audio: jax.Array) -> jax.Array:
    """[B, M, C] of a waveform f32[B, S] that `waveform` has made."""
    x = frames(self.conv, audio, self.config.dtype)
    return jax.lax.stop_gradient(x) if self.config.freeze_conv else x

  def embed(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """[B, M, C] of the convolutions to [B, M, D]."""
    if self.config.projection_norm:
      x = self.project_norm(x)
    key = None if key is None else jax.random.fold_in(key, 0)
    return dropout(self.project(x), self.config.projection_dropout, key)

  def _mask_spans(self, x, mask, key):
    config, (time_key, feature_key) = self.config, jax.random.split(key)
    embedding = self.mask_embedding[...].astype(x.dtype)[None, None]
    x = jnp.where(spans(time_key, mask, *config.time_mask)[..., None], embedding, x)
    channels = jnp.ones((x.shape[0], x.shape[2]), bool)
    return jnp.where(spans(feature_key, channels, *config.feature_mask)[:, None], 0, x)

  def transform(self, x: jax.Array, mask, key: jax.Array | None = None) -> jax.Array:
    """Positions and Transformer on x[B, M, D]; `mask` bool[B, M] or None hides padding."""
    config = self.config
    if mask is not None:
      x = zero_padding(x, mask)
    y = x
    for layer in self.positions:
      y = layer(y)
    x = x + y
    if not config.pre_norm:
      x = self.norm(x)
    keys = None
    if key is not None:
      x = dropout(x, config.dropout, jax.random.fold_in(key, 1))
      keys = jax.random.split(jax.random.fold_in(key, 2), config.layers)
    x = self._run_layers(x, mask, keys)
    return self.norm(x) if config.pre_norm else x

  def _run_layers(self, x, mask, keys):
    config, bias, layer_drop = self.config, None, self.config.layer_drop
    if config.family == "wavlm":
      bias = distance_bias(self.distances[...], x.shape[1], config.max_distance)
      layer_drop = layer_drop * (np.arange(config.layers) > 0)  # the first is never skipped
    call = lambda layer, x, key: layer(x, mask, bias, key)
    return scan_stack(self.layers, x, call, keys, layer_drop=layer_drop, remat=config.remat)


def spans(
  key: jax.Array, mask: jax.Array, probability: float, length: int, least: int
) -> jax.Array:
  """bool[B, M]: random spans of real positions, as many as transformers would mask.

  A row of n real positions gets probability · n / length spans, rounded up or down at random, at
  least `least`, with different first positions; they may overlap. A draw does not depend on
  padding.

  Args:
    key: typed key.
    mask: bool[B, M], True for real positions, which come first.
    probability: upper bound of the masked share.
    length: of a span.
    least: spans in every row that has room for one.
  """
  if probability == 0:
    return jnp.zeros_like(mask)
  round_key, start_key = jax.random.split(key)
  rounding = jax.random.uniform(round_key)

  def row(mask, key):
    real = mask.sum(dtype=jnp.int32)
    starts = jnp.maximum(real - length + 1, 0)
    count = jnp.int32(probability * real / length + rounding)
    count = jnp.minimum(jnp.maximum(count, least), jnp.minimum(starts, real // length))
    positions = jnp.arange(mask.shape[0])
    scores = jax.random.uniform(key, mask.shape)
    scores = jnp.where(positions < starts, scores, 2.0)
    rank = jnp.argsort(jnp.argsort(scores))
    return dilate(rank < count, before=0, after=length - 1)

  return jax.vmap(row)(mask, jax.random.split(start_key, mask.shape[0])) & mask


def distance_bias(table: jax.Array, frames: int, max_distance: int) -> jax.Array:
  """f32[H, M, M] of f32[buckets, H]: WavLM's bias for each query and key, by their distance.

  Half of the buckets are for keys ahead; half of each half are exact distances, the others grow
  with the logarithm up to `max_distance` frames.
  """
  half = table.shape[0] // 2
  exact = half // 2
  distance = np.arange(frames)[None] - np.arange(frames)[:, None]
  near = np.abs(distance).astype(np.float32)
  with np.errstate(divide="ignore"):
    far = np.log(near / np.float32(exact)) / np.float32(np.log(max_distance / exact))
  far = np.maximum(far, 0) * (half - exact)
  bucket = np.where(near < exact, near, np.minimum(exact + far.astype(np.int64), half - 1))
  bucket = bucket.astype(np.int32) + half * (distance > 0)
  return jnp.moveaxis(table[bucket], -1, 0)


def max_pool_frames(x: jax.Array, mask: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """Largest of every `size` real frames: x[B, M, D], bool[B, M] to [B, T, D], bool[B, T].

  The last block may be smaller; a block without any real frame is 0.
  """
  if size == 1:
    return x, mask
  blocks = strided_len(x.shape[1], size)
  more = blocks * size - x.shape[1]
  mask = jnp.pad(mask, ((0, 0), (0, more)))
  x = jnp.where(mask[..., None], jnp.pad(x, ((0, 0), (0, more), (0, 0))), -jnp.inf)
  mask = mask.reshape(-1, blocks, size).any(-1)
  x = x.reshape(x.shape[0], blocks, size, -1)
  return zero_padding(largest([x[:, :, i] for i in range(size)]), mask), mask
