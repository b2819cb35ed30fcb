"""SEW and SEW-D with a CTC head (Wu et al. 2022): wav2vec 2.0, its Transformer squeezed in time.

Waveform → strided convolutions → pairs of frames averaged → Transformer → each frame becomes two
again → classes, a frame every 20 ms. SEW-D attends as DeBERTa does, by content and by distance
apart. Every step is the one of Hugging Face transformers for an utterance without padding, and
padding changes nothing; `huggingface/sew.py` has the names of the weights. They teach only, so
nothing is random. Only `nnx.Param` leaves.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.masks import length_mask, lift, zero_padding
from jaxkd.models.classifier import FrameClassifier
from jaxkd.models.layers import ACTIVATIONS, LayerNorm, Linear
from jaxkd.models.stack import scan_stack
from jaxkd.models.wav2vec2 import PositionConv, attention, max_pool_frames
from jaxkd.models.waveform import WaveformConfig, conv_layers, frames, waveform


@dataclasses.dataclass(frozen=True)
class SewConfig(WaveformConfig):
  """Structure and numerics.

  Attributes:
    family: `model_type` in transformers.
    width, layers, heads, ff_width: of the Transformer.
    activation: of its feed-forward layers.
    squeeze: frames that become one before the Transformer.
    position_kernel, position_groups: of the positional convolution, in frames before that.
    feature_eps: of the layer norm after the convolutions.
    norm_eps: of the Transformer's layer norms.
    dtype: of the arithmetic; parameters, norms, softmax and logits are float32.
    distances: SEW-D's attention by distance; None for SEW.
  """

  family: str
  width: int
  layers: int
  heads: int
  ff_width: int
  activation: str
  squeeze: int
  position_kernel: int
  position_groups: int
  feature_eps: float
  norm_eps: float
  dtype: str = "float32"
  distances: "Distances | None" = None
  position_norm: str = "weight"


@dataclasses.dataclass(frozen=True)
class Distances:
  """Attention by distance (He et al. 2021, DeBERTa), "disentangled" from that by content.

  Attributes:
    span: distances beyond it share a vector; each has one of 2·span.
    farthest: where distances share vectors as they grow, the one that is not told from those
      beyond; 0 where each up to `span` has its own.
    shared: distances are projected as contents are, and not by projections of their own.
    by_query: the score of query and key has a part by content of the query and distance.
    by_key: it has one by content of the key and distance.
    norm: layer norm of the distances' vectors.
  """

  span: int
  farthest: int
  shared: bool
  by_query: bool
  by_key: bool
  norm: bool

  def rows(self, frames: int) -> np.ndarray:
    """i32[2·frames - 1]: vector of each distance, from 1 - frames to frames - 1.

    With `farthest`, half of the vectors are for exact distances, the others grow with the
    logarithm, as transformers rounds it.
    """
    distance = np.arange(1 - frames, frames)
    if self.farthest:
      middle = self.span // 2
      far = np.maximum(np.abs(distance), max(middle, 1)).astype(np.float32) / np.float32(middle)
      longest = np.log(np.float32((self.farthest - 1) / middle))
      steps = np.ceil(np.log(far) / longest * np.float32(middle - 1)) + middle
      near = np.abs(distance) <= middle
      distance = np.where(near, distance, steps * np.sign(distance)).astype(np.int64)
    return np.clip(distance + self.span, 0, 2 * self.span - 1).astype(np.int32)


class Layer(nnx.Module):
  """Self-attention and a feed-forward layer, each with a residual and then a layer norm."""

  def __init__(self, config: SewConfig, *, rngs: nnx.Rngs):
    width, distances = config.width, config.distances
    self.query = Linear(width, width, rngs=rngs)
    self.key = Linear(width, width, rngs=rngs)
    self.value = Linear(width, width, rngs=rngs)
    self.out = Linear(width, width, rngs=rngs)
    if distances and not distances.shared:
      if distances.by_query:
        self.distance_key = Linear(width, width, rngs=rngs)
      if distances.by_key:
        self.distance_query = Linear(width, width, rngs=rngs)
    self.attention_norm = LayerNorm(width, config.norm_eps)
    self.inner = Linear(width, config.ff_width, rngs=rngs)
    self.outer = Linear(config.ff_width, width, rngs=rngs)
    self.ff_norm = LayerNorm(width, config.norm_eps)
    self.config = config

  def __call__(self, x: jax.Array, mask: jax.Array, vectors: jax.Array | None) -> jax.Array:
    """x[B, T, D] to the same shape.

    Args:
      x: squeezed frames.
      mask: bool[B, T], True for frames that may be attended to.
      vectors: SEW-D's [2·span, D], one for each distance; None for SEW.
    """
    heads = lambda y: y.reshape(*y.shape[:-1], self.config.heads, -1)
    q, k, v = (heads(linear(x)) for linear in (self.query, self.key, self.value))
    bias = None
    if vectors is not None:
      q, bias = self._by_distance(q, k, vectors, heads)
    mixed = attention(q, k, v, bias, mask, 0.0, None)
    x = self.attention_norm(x + self.out(mixed.reshape(x.shape)))
    y = self.outer(ACTIVATIONS[self.config.activation](self.inner(x)))
    return self.ff_norm(x + y)

  def _by_distance(self, q, k, vectors, heads):
    """q[B, T, H, D / H], scaled for the parts of a score, and their sum by distance, [B, H, T, T].

    Parts are of one size by the root of how many there are, beside that of the heads' width.
    """
    distances, size = self.config.distances, q.shape[1]
    parts = 1 + distances.by_query + distances.by_key
    at = jnp.arange(size)
    rows = jnp.asarray(distances.rows(size))[at[:, None] - at[None] + size - 1]  # [query, key]
    bias = jnp.zeros((), q.dtype)
    if distances.by_query:
      project = self.key if distances.shared else self.distance_key
      scores = jnp.einsum("bqhd,phd->bhqp", q, heads(project(vectors)))
      bias += jnp.take_along_axis(scores, lift(rows, 4), -1)
    if distances.by_key:
      project = self.query if distances.shared else self.distance_query
      scores = jnp.einsum("bkhd,phd->bhkp", k, heads(project(vectors)))
      bias += jnp.take_along_axis(scores, lift(rows.T, 4), -1).swapaxes(2, 3)
    return q * parts**-0.5, bias * (parts * q.shape[-1]) ** -0.5


class SewCTC(FrameClassifier):
  """Audio → class logits of every frame (20 ms, times `config.pool`)."""

  def __init__(self, config: SewConfig, classes: int, *, rngs: nnx.Rngs):
    """Draws parameters from `rngs.params`; `classes` includes the blank."""
    channels, distances = config.conv_channels[-1], config.distances
    self.conv = conv_layers(config, rngs=rngs)
    self.project_norm = LayerNorm(channels, config.feature_eps)
    if channels != config.width:
      self.project = Linear(channels, config.width, rngs=rngs)
    self.position = PositionConv(config, rngs=rngs, stride=config.squeeze)
    if distances is None:
      self.norm = LayerNorm(config.width, config.norm_eps)
    else:
      draw = jax.random.normal(rngs.params(), (2 * distances.span, config.width))
      self.distances = nnx.Param(0.02 * draw)
      if distances.norm:
        self.distances_norm = LayerNorm(config.width, config.norm_eps)
    make = lambda key: Layer(config, rngs=nnx.Rngs(params=key))
    self.layers = nnx.vmap(make)(jax.random.split(rngs.params(), config.layers))
    self.unsqueeze = Linear(config.width, config.width * config.squeeze, rngs=rngs)
    self.head = Linear(config.width, classes, rngs=rngs)
    self.config = config

  def encode(self, audio: jax.Array, audio_len: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encoder output, pooled, [B, T, D] and mask bool[B, T]; arguments as for a call."""
    config, squeeze = self.config, self.config.squeeze
    x = frames(self.conv, waveform(audio, audio_len, config), config.dtype, audio_len)
    x = self.project_norm(x)
    if hasattr(self, "project"):
      x = self.project(x)
    frame_len = config.frame_len(audio_len)
    mask = length_mask(frame_len, x.shape[1])
    # Frames that fill no group are left out, and come back as 0.
    squeezed_len = frame_len // squeeze
    x = self._transform(self._squeeze(zero_padding(x, mask)), squeezed_len)
    x = ACTIVATIONS[config.conv_activation](self.unsqueeze(x))
    x = x.reshape(x.shape[0], -1, config.width)
    x = jnp.pad(x, ((0, 0), (0, mask.shape[1] - x.shape[1]), (0, 0)))
    x = zero_padding(x, length_mask(squeezed_len * squeeze, x.shape[1]))
    return max_pool_frames(x, mask, config.pool)

  def _squeeze(self, x: jax.Array) -> jax.Array:
    """[B, M, D] to [B, max(M // squeeze, 1), D]: averages of frames, and positions."""
    squeeze = self.config.squeeze
    x = jnp.pad(x, ((0, 0), (0, max(0, squeeze - x.shape[1])), (0, 0)))
    whole = x[:, : x.shape[1] // squeeze * squeeze]
    means = whole.reshape(x.shape[0], -1, squeeze, x.shape[2]).mean(2)
    return means + self.position(x)

  def _transform(self, x: jax.Array, frame_len: jax.Array) -> jax.Array:
    """Transformer on x[B, T, D]."""
    mask, vectors = length_mask(frame_len, x.shape[1]), None
    if self.config.distances is None:
      x = self.norm(x)
    else:
      vectors = self.distances[...]
      if self.config.distances.norm:
        vectors = self.distances_norm(vectors)
      vectors = vectors.astype(x.dtype)
    return scan_stack(self.layers, x, lambda layer, x, _: layer(x, mask, vectors))
