"""Layers of the Conformer. Only `nnx.Param` leaves; no key means evaluation.

Masks travel with values: padding goes in as 0 where a neighbour could see it, and what comes out
in padding is finite and unused.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.masks import lift, zero_padding
from jaxkd.models import draws
from jaxkd.placement import on_tpu

_glorot = nnx.initializers.glorot_uniform()
ACTIVATIONS = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_python": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_new": jax.nn.gelu,
  "gelu_pytorch_tanh": jax.nn.gelu,
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "swish": jax.nn.silu,
}


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """x with each element 0 at probability `rate`, the others scaled up; x itself without a key."""
  if key is None or rate == 0:
    return x
  kept = draws.sixteen_bits(key, x.shape) >= round(rate * 2**16)
  return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


class Linear(nnx.Module):
  """x[..., in] @ kernel + bias, if it has one, in the type of x."""

  def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, bias: bool = True):
    self.kernel = nnx.Param(_glorot(rngs.params(), (inputs, outputs)))
    if bias:
      self.bias = nnx.Param(jnp.zeros(outputs))

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x @ self.kernel[...].astype(x.dtype)
    return add_bias(x, self.bias) if hasattr(self, "bias") else x


def add_bias(x: jax.Array, bias: nnx.Param) -> jax.Array:
  """x[..., D] plus bias[D], in the type of x."""
  return x + lift(bias[...].astype(x.dtype), x.ndim)


def standardise(
  x: jax.Array, axis: int = -1, eps: float = 1e-5, real: jax.Array | None = None
) -> jax.Array:
  """f32: x with zero mean and unit variance over an axis.

  Args:
    x: of any float type.
    axis: what is averaged over.
    eps: added to the variance.
    real: bool of x's axes, or 1 of them: elements that count; None for all.
  """

  def mean(y):
    if real is None:
      return y.mean(axis, keepdims=True)
    counted = jnp.where(real, y, 0).sum(axis, keepdims=True)
    return counted / jnp.maximum(real.sum(axis, keepdims=True), 1)

  y = x.astype(jnp.float32)
  y = y - mean(y)
  return y * jax.lax.rsqrt(mean(y**2) + eps)


class LayerNorm(nnx.Module):
  """Zero mean and unit variance in float32, then a scale, and a bias if any, for each channel."""

  def __init__(self, width: int, eps: float = 1e-5, *, bias: bool = True):
    self.scale = nnx.Param(jnp.ones(width))
    if bias:
      self.bias = nnx.Param(jnp.zeros(width))
    self.eps = eps

  def __call__(self, x: jax.Array, axis: int = -1, real: jax.Array | None = None) -> jax.Array:
    """x[..., D], normalised over `axis`: the channels, or 1 for each channel over time.

    `real` says what counts, as for `standardise`.
    """
    y = standardise(x, axis, self.eps, real) * lift(self.scale[...], x.ndim)
    if hasattr(self, "bias"):
      y = y + lift(self.bias[...], x.ndim)
    return y.astype(x.dtype)


class BatchNorm(nnx.Module):
  """Batch norm whose statistics are given: a scale and a bias for each channel, in float32.

  Without statistics of its own the mean is 0 and the variance 1: the scale and the bias are all
  that is learnt, and a reader who adds those two has the same model.
  """

  def __init__(self, width: int, eps: float = 1e-5, *, statistics: bool = True):
    self.scale = nnx.Param(jnp.ones(width))
    self.bias = nnx.Param(jnp.zeros(width))
    if statistics:
      self.mean = nnx.Param(jnp.zeros(width))
      self.variance = nnx.Param(jnp.ones(width))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    """x[..., D] to the same shape and type."""
    get = lambda p: lift(p[...], x.ndim)
    y = x.astype(jnp.float32)
    if hasattr(self, "mean"):
      y = (y - get(self.mean)) * jax.lax.rsqrt(get(self.variance) + self.eps)
    else:
      y = y * (1 + self.eps) ** -0.5
    return (y * get(self.scale) + get(self.bias)).astype(x.dtype)


class FeedForward(nnx.Module):
  """Layer norm, wide layer with swish, back; half a residual step in the Conformer."""

  def __init__(
    self,
    width: int,
    hidden: int,
    *,
    rngs: nnx.Rngs,
    bias: bool = True,
    activation: str = "silu",
    norm: nnx.Module | None = None,
  ):
    self.norm = LayerNorm(width) if norm is None else norm
    self.inner = Linear(width, hidden, rngs=rngs, bias=bias)
    self.outer = Linear(hidden, width, rngs=rngs, bias=bias)
    self.activation = activation

  def __call__(self, x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    inner_key, outer_key = _split(key, 2)
    y = dropout(ACTIVATIONS[self.activation](self.inner(self.norm(x))), rate, inner_key)
    return dropout(self.outer(y), rate, outer_key)


class ConvModule(nnx.Module):
  """Gated pointwise, depthwise over time, a norm, swish, pointwise.

  The inner norm is a layer norm, instead of the batch norm that others have, unless another is
  given; so is the one before all.
  """

  def __init__(
    self,
    width: int,
    kernel: int,
    *,
    rngs: nnx.Rngs,
    bias: bool = True,
    activation: str = "silu",
    norm: nnx.Module | None = None,
    inner_norm: nnx.Module | None = None,
  ):
    self.norm = LayerNorm(width) if norm is None else norm
    self.gated = Linear(width, 2 * width, rngs=rngs, bias=bias)
    bound = (3 / kernel) ** 0.5
    init = jax.random.uniform(rngs.params(), (kernel, width), minval=-bound, maxval=bound)
    self.depthwise = nnx.Param(init)
    if bias:
      self.depthwise_bias = nnx.Param(jnp.zeros(width))
    self.inner_norm = LayerNorm(width) if inner_norm is None else inner_norm
    self.pointwise = Linear(width, width, rngs=rngs, bias=bias)
    self.activation = activation

  def __call__(
    self, x: jax.Array, mask: jax.Array, rate: float, key, heard: "Heard | None" = None
  ) -> jax.Array:
    y = zero_padding(jax.nn.glu(self.gated(self.norm(x))), mask)
    return dropout(self._convolved(depthwise(y, self.depthwise[...], heard=heard)), rate, key)

  def step(self, x: jax.Array, mask: jax.Array, past: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a call gives for a chunk x[B, C, D], and the new past.

    Args:
      x: after those that the past is of.
      mask: bool[B, C].
      past: [B, K // 2, D], what the depthwise convolution read last; 0 at the start.
    """
    y = zero_padding(jax.nn.glu(self.gated(self.norm(x))), mask)
    y, before = jnp.concatenate([past, y], 1), past.shape[1]
    convolved = depthwise(y, self.depthwise[...])[:, before:]
    return self._convolved(convolved), y[:, y.shape[1] - before :]

  def _convolved(self, y: jax.Array) -> jax.Array:
    """What follows the depthwise convolution."""
    if hasattr(self, "depthwise_bias"):
      y = add_bias(y, self.depthwise_bias)
    return self.pointwise(ACTIVATIONS[self.activation](self.inner_norm(y)))


# More frames than any audio has.
EVERYTHING = 2**30


class Heard(NamedTuple):
  """What a frame of a stream may hear: its chunk to the end, and some frames before the chunk.

  Attributes:
    chunk: i32[B], frames of a chunk, 1 or more; EVERYTHING for all.
    left: i32[B], frames before the chunk that attention reads.
  """

  chunk: jax.Array
  left: jax.Array

  def by(self, frames: int) -> jax.Array:
    """bool[B, T, T], whether query i may attend to key j (Zhang et al. 2020, "WeNet")."""
    place = jnp.arange(frames, dtype=jnp.int32)[None]
    start = (place // self.chunk[:, None] * self.chunk[:, None])[..., None]
    key, chunk, left = place[:, None], self.chunk[:, None, None], self.left[:, None, None]
    # What is compared cannot overflow.
    return (start - key <= left) & (key - start < chunk)

  def ahead(self, frames: int, by: int) -> jax.Array:
    """bool[B, T], whether the frame so many behind a frame is in its chunk."""
    place = jnp.arange(frames, dtype=jnp.int32)[None]
    return self.chunk[:, None] - place % self.chunk[:, None] > by


def draw_heard(
  key: jax.Array, rows: int, chunks: Sequence[int], left: Sequence[int], *, beside_whole: bool
) -> Heard:
  """What the frames of each of B = `rows` rows hear, drawn alike from each list.

  Args:
    key: of the draw.
    rows: of the batch.
    chunks: frames of a chunk, 0 for everything.
    left: frames before the chunk.
    beside_whole: whether even rows hear everything, and odd ones chunks alone.
  """
  sizes = jnp.array([c or EVERYTHING for c in chunks if c or not beside_whole], jnp.int32)
  of_chunk, of_left = jax.random.split(key)
  chunk = jax.random.choice(of_chunk, sizes, (rows,))
  if beside_whole:
    chunk = jnp.where(jnp.arange(rows) % 2 == 0, EVERYTHING, chunk)
  return Heard(chunk, jax.random.choice(of_left, jnp.array(left, jnp.int32), (rows,)))


def depthwise(
  x: jax.Array, kernel: jax.Array, before: int | None = None, heard: Heard | None = None
) -> jax.Array:
  """Convolution over time of x[B, T, D] with kernel[K, D], each channel on its own, to T frames.

  `before` of a frame's taps lie before it; where None, as many as behind it, or one less. With
  `heard` no tap lies behind the frame's chunk. A sum of shifted copies: one fused loop, where a
  grouped convolution is slow on CPU.
  """
  taps, frames = kernel.shape[0], x.shape[1]
  before = (taps - 1) // 2 if before is None else before
  padded = jnp.pad(x, ((0, 0), (before, taps - 1 - before), (0, 0)))

  def taken(i):
    values = padded[:, i : i + frames]
    if heard is not None and i > before:
      values = zero_padding(values, heard.ahead(frames, i - before))
    return values * kernel[i][None, None].astype(x.dtype)

  return sum(taken(i) for i in range(taps))


class RelativeAttention(nnx.Module):
  """Self-attention with relative positions (Dai et al. 2019, Transformer-XL).

  The score of query i and key j is (q_i + u)·k_j + (q_i + v)·r_(i-j) with learnt biases u and v;
  r is a linear projection of sinusoids, and distances beyond `clip` frames share one.
  """

  def __init__(self, width: int, heads: int, clip: int, *, rngs: nnx.Rngs):
    self.norm = LayerNorm(width)
    self.qkv = Linear(width, 3 * width, rngs=rngs)
    self.positions = nnx.Param(_glorot(rngs.params(), (width, width)))
    self.content_bias = nnx.Param(jnp.zeros((heads, width // heads)))
    self.position_bias = nnx.Param(jnp.zeros((heads, width // heads)))
    self.out = Linear(width, width, rngs=rngs)
    self.heads, self.clip = heads, clip

  def __call__(
    self, x: jax.Array, mask: jax.Array, rate: float, key, heard: Heard | None = None
  ) -> jax.Array:
    attention_key, out_key = _split(key, 2)
    q, k, v = self._projected(x, mask)
    by_distance = spread(self._by_distance(q), x.shape[1], self.clip)
    allowed = mask[:, None]
    if heard is not None:
      allowed = allowed & heard.by(x.shape[1])
    mixed = self._mixed(q, k, v, by_distance, allowed, rate, attention_key)
    return dropout(self.out(mixed), rate, out_key)

  def step(self, x: jax.Array, mask: jax.Array, past: "Past") -> tuple[jax.Array, "Past"]:
    """What a call gives for a chunk x[B, C, D] with its mask bool[B, C], and the new past."""
    q, k, v = self._projected(x, mask)
    k, v = (jnp.concatenate(pair, 2) for pair in ((past.keys, k), (past.values, v)))
    real, left = jnp.concatenate([past.real, mask], 1), past.real.shape[1]
    distance = left + jnp.arange(x.shape[1])[:, None] - jnp.arange(real.shape[1])[None]
    distance = lift(jnp.clip(distance, -self.clip, self.clip) + self.clip, q.ndim)
    by_distance = jnp.take_along_axis(self._by_distance(q), distance, -1)
    mixed = self._mixed(q, k, v, by_distance, real[:, None], 0.0, None)
    last = slice(real.shape[1] - left, None)
    return self.out(mixed), Past(k[:, :, last], v[:, :, last], real[:, last])

  def _projected(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values, [B, H, T, D / H]."""
    qkv = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, self.heads, -1)
    q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
    return q, k, zero_padding(v, mask[:, None])

  def _mixed(self, q, k, v, by_distance, allowed, rate: float, key) -> jax.Array:
    """[B, T, D] of values, for queries that may attend where bool[B, T or 1, keys] allows."""
    scores = (q + self._bias(self.content_bias, q)) @ k.swapaxes(2, 3) + by_distance
    scores = scores.astype(jnp.float32) * q.shape[-1] ** -0.5
    # A finite low value: a row without any real key must not become NaN.
    scores = jnp.where(allowed[:, None], scores, -1e9)
    weights = dropout(jax.nn.softmax(scores), rate, key).astype(q.dtype)
    mixed = (weights @ v).swapaxes(1, 2)
    return mixed.reshape(*mixed.shape[:2], -1)

  def _bias(self, bias: nnx.Param, q: jax.Array) -> jax.Array:
    return bias[...].astype(q.dtype)[None, :, None]

  def _by_distance(self, q: jax.Array) -> jax.Array:
    """q_i · r_d, [B, H, T, 2·clip + 1], of the distances d from -clip to clip."""
    q = q + self._bias(self.position_bias, q)
    width = self.positions.shape[0]
    table = _sinusoids(jnp.arange(-self.clip, self.clip + 1), width).astype(q.dtype)
    table = table @ self.positions[...].astype(q.dtype)
    table = table.reshape(-1, self.heads, width // self.heads)
    return jnp.einsum("bhtd,phd->bhtp", q, table)


class Past(NamedTuple):
  """What attention keeps of the last L frames of a stream.

  Attributes:
    keys, values: [B, H, L, D / H]; 0 at the start.
    real: bool[B, L], False where there was no frame.
  """

  keys: jax.Array
  values: jax.Array
  real: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def spread(scores: jax.Array, frames: int, clip: int) -> jax.Array:
  """[..., T, 2·clip + 1] by distance to [..., T, T] by key: out[i, j] = scores[i, clip(i - j)]."""
  if not isinstance(frames, int):  # an export for audio of any length
    return _spread_by_gather(scores, frames, clip)
  # A gather is slow on TPU, and shifts are slow on CPU.
  sheared = functools.partial(_spread_by_shifts, frames=frames, clip=clip)
  gathered = functools.partial(_spread_by_gather, frames=frames, clip=clip)
  return on_tpu(sheared, gathered, scores)


def _spread_by_gather(scores: jax.Array, frames: int, clip: int) -> jax.Array:
  distance = jnp.clip(_distances(frames, scores.ndim), -clip, clip) + clip
  return jnp.take_along_axis(scores, distance, -1)


def _spread_by_shifts(scores: jax.Array, frames: int, clip: int) -> jax.Array:
  """Row i moves to the right by i: by 1, 2, 4, ... where that bit of i is set."""
  x = scores[..., ::-1]
  for bit in range((frames - 1).bit_length()):
    right, left = _widened(x, 1 << bit, 0), _widened(x, 0, 1 << bit)
    x = jnp.where(_has_bit(frames, bit, x.ndim), right, left)
  distance = _distances(frames, x.ndim)
  x = jnp.where(distance < -clip, scores[..., :1], x[..., clip : clip + frames])
  return jnp.where(distance > clip, scores[..., -1:], x)


def _spread_forward(scores, frames, clip):
  return spread(scores, frames, clip), None


def _spread_backward(frames, clip, _, cotangent):
  """Sums of diagonals: by the same shifts back, since a scatter is slow on every device."""
  distance = _distances(frames, cotangent.ndim)
  bits = (frames - 1).bit_length()
  x = jnp.where(abs(distance) < clip, cotangent, 0)
  x = _widened(x, clip, clip + (1 << bits) - frames)
  for bit in reversed(range(bits)):
    by = 1 << bit
    x = jnp.where(_has_bit(frames, bit, x.ndim), x[..., by:], x[..., :-by])
  low = jnp.where(distance <= -clip, cotangent, 0).sum(-1, keepdims=True)
  high = jnp.where(distance >= clip, cotangent, 0).sum(-1, keepdims=True)
  place = lift(jnp.arange(2 * clip + 1), x.ndim)
  return (jnp.where(place == 0, low, jnp.where(place == 2 * clip, high, x[..., ::-1])),)


def _distances(frames: int, ndim: int) -> jax.Array:
  """i32[..., T, T]: of query i and key j, i - j."""
  i = jnp.arange(frames)
  return lift(i[:, None] - i[None], ndim)


def _has_bit(frames: int, bit: int, ndim: int) -> jax.Array:
  """bool[..., T, 1]: whether a bit of the row's number is set."""
  return lift((jnp.arange(frames)[:, None] >> bit) % 2 == 1, ndim)


def _widened(x: jax.Array, before: int, after: int) -> jax.Array:
  """x[..., N] with so many zeros at its ends."""
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])


spread.defvjp(_spread_forward, _spread_backward)


def _sinusoids(positions: jax.Array, width: int) -> jax.Array:
  """f32[P, width]: sines of each position, then cosines, of wavelengths from 2π to 20000π."""
  rates = 10_000 ** (-jnp.arange(0, width, 2) / width)
  angles = positions[:, None] * rates[None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)[:, :width]


def rotated(x: jax.Array, base: float) -> jax.Array:
  """x[B, T, H, E] turned by its frame's angles (rotary positions, Su et al. 2021), in its type.

  The first half of E and the second are the two coordinates; `base` sets the slowest wavelength.
  """
  rates = base ** (-jnp.arange(0, x.shape[-1], 2) / x.shape[-1])
  angles = (jnp.arange(x.shape[1])[:, None] * rates[None])[None, :, None]
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  sines, cosines = jnp.sin(angles), jnp.cos(angles)
  return jnp.concatenate([a * cosines - b * sines, b * cosines + a * sines], -1).astype(x.dtype)


def largest(arrays: list[jax.Array]) -> jax.Array:
  """Elementwise; the gradient goes to the first of the largest.

  By choices: the gradient of max() compares with the maximum, and where a compiler computes what is
  compared anew, rounded otherwise, nothing is equal to it and the gradient is lost or infinite.
  """
  return functools.reduce(lambda a, b: jnp.where(b > a, b, a), arrays)


def _split(key: jax.Array | None, count: int) -> Any:
  return (None,) * count if key is None else jax.random.split(key, count)
