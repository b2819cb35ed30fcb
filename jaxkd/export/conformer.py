"""The Conformer of `models.conformer` as an ONNX graph: the same layers, one after the other.

Names and order are those of `models.layers`. A mask is float[N, T, 1], 1 for real frames, or None
where a graph reads one recording at a time.
"""

from typing import NamedTuple

import numpy as np
from flax import nnx

from jaxkd.export.features import length_mask
from jaxkd.export.graph import Graph
from jaxkd.models.acoustic import AcousticModel
from jaxkd.models.conformer import ConformerConfig, ConformerCTC
from jaxkd.models.layers import _sinusoids

_TO_THE_END = np.iinfo(np.int64).max  # of a slice


def conformer(g: Graph, features: str, lengths: str | None, model: AcousticModel):
  """Log probabilities f32[N, T, V] with the blank first, and their mask and lengths.

  Args:
    g: the graph.
    features: f32[N, M, F], 0 in padding.
    lengths: i64[N] real ones of M; None for all.
    model: whose network is a `ConformerCTC`.

  Returns:
    Log probabilities; f32[N, T, 1], 1 for real frames, and i64[N], both None without lengths.
  """
  net = nnx.merge(model.graphdef, model.params)
  x, mask, lengths = front_end(g, g.narrow(features), lengths, net.frontend)
  seen = Seen(sinusoids(net.config), distances(g, x, net.config.rel_clip), mask, keys(g, mask))
  log_probs = head(g, blocks(g, x, seen, net), net, model)
  mask = None if mask is None else length_mask(g, log_probs, lengths, axis=1)
  return log_probs, mask, lengths


def sinusoids(config: ConformerConfig) -> np.ndarray:
  """f32[2·clip + 1, D], one of each distance."""
  return np.asarray(_sinusoids(np.arange(-config.rel_clip, config.rel_clip + 1), config.width))


def blocks(g: Graph, x: str, seen: "Seen", net: ConformerCTC) -> str:
  """All of them, one after the other."""
  for layer in range(net.config.layers):
    g.prefix = f"block{layer}/"
    x = block(g, x, seen, net.blocks, layer)
  return x


def head(g: Graph, x: str, net: ConformerCTC, model: AcousticModel) -> str:
  """Log probabilities f32[N, T, V], the blank first."""
  g.prefix = "head/"
  order = classes(model)
  kernel, bias = (np.asarray(p[...])[..., order] for p in (net.head.kernel, net.head.bias))
  return g("LogSoftmax", g.widen(g("Add", g("MatMul", x, kernel), bias)), axis=-1)


def classes(model: AcousticModel) -> list[int]:
  """The model's classes in the order of the graph's: the blank first."""
  return [model.blank_id, *(i for i in range(len(model.labels)) if i != model.blank_id)]


class Past(NamedTuple):
  """What a chunk of a stream reads of those before, by name and layer: float[N, K, D] each.

  Attributes:
    before: the last K frames before the chunk.
    after: the last K frames up to its end, which `blocks` fills in.
  """

  before: dict[tuple[str, int], str]
  after: dict[tuple[str, int], str]


class Seen(NamedTuple):
  """What every block sees.

  Attributes:
    positions: f32[2·clip + 1, D], a sinusoid of each distance.
    places: see `distances`.
    mask: f32[N, T, 1], or None.
    keys: f32[N, 1, 1, K], what is added to the scores of K keys, or None.
    past: of a stream's chunk; None for whole recordings.
  """

  positions: np.ndarray
  places: tuple[str, ...]
  mask: str | None
  keys: str | None
  past: Past | None = None


def keys(g: Graph, mask: str | None) -> str | None:
  """f32[N, 1, 1, T] of a mask: 0 for real frames, a finite low value for padding."""
  if mask is None:
    return None
  low = g("Mul", g("Sub", mask, 1.0), 1e4 if g.half else 1e9)
  return g("Unsqueeze", g("Transpose", low, perm=[0, 2, 1]), [1])


def front_end(g: Graph, x: str, lengths: str | None, net, real=length_mask):
  """Frames f32[N, T, D], their mask and i64[N] lengths, of which `real` makes a mask."""
  g.prefix = "frontend/"
  x = g("Unsqueeze", x, [1])  # [N, 1, M, F]
  mask = real(g, x, lengths, axis=2)
  for layer in range(4):
    x = masked(g, x, mask, [1])
    kernel = np.asarray(net.kernels[layer][...]).transpose(3, 2, 0, 1)
    x = g("Conv", x, kernel, np.asarray(net.biases[layer][...]), pads=[1, 1, 1, 1])
    x = g("Relu", x)
    if layer in (1, 3):
      window = list(net.pools[layer // 2])
      x = g("MaxPool", masked(g, x, mask, [1]), kernel_shape=window, strides=window, ceil_mode=1)
      if lengths is not None:
        lengths = g("Div", g("Add", lengths, window[0] - 1), window[0])
      mask = real(g, x, lengths, axis=2)
  x = g("Transpose", x, perm=[0, 2, 3, 1])
  x = g("Reshape", x, [0, 0, -1])
  return linear(g, x, net.project, ()), mask, lengths


def masked(g: Graph, x: str, mask: str | None, axes: list[int] | None = None) -> str:
  """x with padding at 0; `axes` are those that the mask lacks."""
  if mask is None:
    return x
  return g("Mul", x, mask if axes is None else g("Unsqueeze", mask, axes))


def block(g: Graph, x: str, seen: Seen, net, layer: int) -> str:
  """Half feed-forward, convolution, attention, half feed-forward, layer norm."""
  x = g("Add", x, g("Mul", feed_forward(g, x, net.ff_first, layer), 0.5))
  x = g("Add", x, convolution(g, x, seen, net.conv, layer))
  x = g("Add", x, attention(g, x, seen, net.attention, layer))
  x = g("Add", x, g("Mul", feed_forward(g, x, net.ff_last, layer), 0.5))
  return layer_norm(g, x, net.norm, layer)


def linear(g: Graph, x: str, net, layer) -> str:
  return g("Add", g("MatMul", x, of_layer(net.kernel, layer)), of_layer(net.bias, layer))


def layer_norm(g: Graph, x: str, net, layer) -> str:
  scale, bias = of_layer(net.scale, layer), of_layer(net.bias, layer)
  return g("LayerNormalization", x, scale, bias, axis=-1, epsilon=net.eps)


def silu(g: Graph, x: str) -> str:
  return g("Mul", x, g("Sigmoid", x))


def feed_forward(g: Graph, x: str, net, layer) -> str:
  x = layer_norm(g, x, net.norm, layer)
  return linear(g, silu(g, linear(g, x, net.inner, layer)), net.outer, layer)


def convolution(g: Graph, x: str, seen: Seen, net, layer) -> str:
  """Gated pointwise, depthwise over time, layer norm, swish, pointwise."""
  x = linear(g, layer_norm(g, x, net.norm, layer), net.gated, layer)
  value, gate = g("Split", x, axis=2, outputs=2)
  x = masked(g, g("Mul", value, g("Sigmoid", gate)), seen.mask)
  x = behind(g, x, seen.past, "inputs", layer)
  kernel = of_layer(net.depthwise, layer)  # [taps, D]
  taps, width = kernel.shape
  x = g(
    "Conv",
    g("Transpose", x, perm=[0, 2, 1]),
    kernel.T[:, None],
    of_layer(net.depthwise_bias, layer),
    group=width,
    pads=[taps // 2 if seen.past is None else 0, taps // 2],
  )
  x = layer_norm(g, g("Transpose", x, perm=[0, 2, 1]), net.inner_norm, layer)
  return linear(g, silu(g, x), net.pointwise, layer)


def attention(g: Graph, x: str, seen: Seen, net, layer) -> str:
  """Self-attention with relative positions: (q + u)·k + (q + v)·r, by heads."""
  width, heads = seen.positions.shape[1], net.heads
  size = width // heads
  qkv = linear(g, layer_norm(g, x, net.norm, layer), net.qkv, layer)
  q, k, v = g("Split", qkv, axis=2, outputs=3)
  k = behind(g, k, seen.past, "keys", layer)
  v = behind(g, masked(g, v, seen.mask), seen.past, "values", layer)
  by_head = lambda x, perm: g("Transpose", g("Reshape", x, [0, 0, heads, size]), perm=perm)
  q, v = (by_head(x, [0, 2, 1, 3]) for x in (q, v))  # [N, H, T, D / H]
  bias = lambda p: of_layer(p, layer)[None, :, None]
  scores = g("MatMul", g("Add", q, bias(net.content_bias)), by_head(k, [0, 2, 3, 1]))
  table = seen.positions @ of_layer(net.positions, layer)
  table = table.reshape(-1, heads, size).transpose(1, 2, 0)  # [H, D / H, 2·clip + 1]
  table = g.constant(table, f"{g.prefix}positions")
  by_distance = g("MatMul", g("Add", q, bias(net.position_bias)), table)
  scores = g("Add", scores, spread(g, by_distance, seen.places))
  scores = g("Mul", scores, size**-0.5)
  if seen.keys is not None:
    scores = g("Add", scores, seen.keys)
  mixed = g("MatMul", g("Softmax", scores, axis=-1), v)
  mixed = g("Reshape", g("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, -1])
  return linear(g, mixed, net.out, layer)


def behind(g: Graph, x: str, past: Past | None, name: str, layer: int) -> str:
  """x[N, T, D] behind what is kept of the frames before, [N, K + T, D]; x itself without a past."""
  if past is None:
    return x
  joined = g("Concat", past.before[name, layer], x, axis=1)
  past.after[name, layer] = g("Slice", joined, g.size(x, 1), [_TO_THE_END], [1])
  return joined


def distances(g: Graph, x: str, clip: int, past: int = 0) -> tuple[str, ...]:
  """What `spread` needs for the T frames of x[N, T, D], once for all layers.

  Args:
    g: the graph.
    x: frames that attend.
    clip: the largest distance in the table.
    past: keys before them; with theirs these are K.

  Returns:
    i64[T + K], the distance in the table of each column of a row before the shear, and i64[1] each
    T, T - 1, K and T + K - 1.
  """
  g.prefix = "distances/"
  frames = g.size(x, 1)
  keys = g("Add", frames, past)
  stop = g("Add", frames, keys)
  columns = g("Range", np.int64(0), g("Squeeze", stop, [0]), np.int64(1))
  distance = g("Sub", g("Sub", keys, 1), columns)
  index = g("Add", g("Max", g("Min", distance, clip), -clip), clip)
  return index, frames, g("Sub", frames, 1), keys, g("Sub", stop, 1)


def spread(g: Graph, scores: str, places: tuple[str, ...]) -> str:
  """[N, H, T, 2·clip + 1] by distance to [N, H, T, K] by key, by a shear.

  Column m of T + K holds distance K - 1 - m; in the flattened rows key j of query i is at
  i (T + K - 1) + j + T - 1, so rows of T + K - 1 from position T - 1 on begin with key 0.
  """
  index, frames, last, keys, row = places
  wide = g("Gather", scores, index, axis=3)
  flat = g("Reshape", wide, [0, 0, -1])
  stop = g("Add", last, g("Mul", frames, row))
  flat = g("Slice", flat, last, stop, [2])
  shape = g("Concat", [0, 0], frames, row, axis=0)
  return g("Slice", g("Reshape", flat, shape), [0], keys, [3])


def of_layer(parameter, layer) -> np.ndarray:
  """A parameter's values, of one of the stacked layers; () for one that is not stacked."""
  return np.asarray(parameter[...])[layer]
