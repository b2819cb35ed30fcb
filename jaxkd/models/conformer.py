"""The Conformer of Hilmes et al. 2025: ff-conv-mhsa-ff, layer norm, relative positions, CTC."""

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.masks import length_mask, strided_len
from jaxkd.models import layers as layers_lib
from jaxkd.models.augment import SpecAugment, spec_augment_if
from jaxkd.models.classifier import FrameClassifier
from jaxkd.models.features import HOP, LogMel, log_mel
from jaxkd.models.frontend import FrontEnd
from jaxkd.models.stack import scan_stack
from jaxkd.models.streaming import Stream
from jaxkd.types import FrameOutput


@dataclasses.dataclass(frozen=True)
class ConformerConfig:
  """Sizes.

  Attributes:
    layers: Conformer blocks.
    width: of their frames.
    heads: of the attention; they divide the width.
    ff_mult: hidden width of the feed-forward layers over `width`.
    conv_kernel: frames of the depthwise convolution, odd.
    dropout: rate.
    rel_clip: frames beyond which relative positions are one.
    frontend_channels: of the four convolutions.
    frontend_pool: (time, mel) after convolutions 2 and 4.
    inner_layers: blocks, counted from 1, behind which a head of its own tells classes in training.
    chunk_frames: sizes of the chunks that streams are heard in; training draws one of them for each
      row. 0 is all of the audio; () only that.
    left_frames: how many frames before its chunk a frame may attend to; drawn as `chunk_frames`.
    dtype: of the arithmetic, "float32" or "bfloat16"; parameters and logits are float32.
    remat: in training a block's products, too, are computed again for its gradient.
  """

  layers: int
  width: int
  heads: int
  ff_mult: int
  conv_kernel: int
  dropout: float
  rel_clip: int
  frontend_channels: tuple[int, int, int, int]
  frontend_pool: tuple[tuple[int, int], tuple[int, int]]
  inner_layers: tuple[int, ...] = ()
  chunk_frames: tuple[int, ...] = ()
  left_frames: tuple[int, ...] = ()
  dtype: str = "float32"
  remat: bool = False

  @property
  def frame_samples(self) -> int:
    """Audio samples in an output frame: 640, which are 40 ms, where time is pooled by 2 twice."""
    return HOP * math.prod(time for time, _ in self.frontend_pool)

  def frame_len(self, feature_len):
    """Output frames of so many feature frames, ints or arrays."""
    for time, _ in self.frontend_pool:
      feature_len = strided_len(feature_len, time)
    return feature_len


class Block(nnx.Module):
  """Half feed-forward, convolution, attention, half feed-forward, layer norm."""

  def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs):
    width, hidden = config.width, config.width * config.ff_mult
    self.ff_first = layers_lib.FeedForward(width, hidden, rngs=rngs)
    self.conv = layers_lib.ConvModule(width, config.conv_kernel, rngs=rngs)
    self.attention = layers_lib.RelativeAttention(width, config.heads, config.rel_clip, rngs=rngs)
    self.ff_last = layers_lib.FeedForward(width, hidden, rngs=rngs)
    self.norm = layers_lib.LayerNorm(width)
    self.rate = config.dropout

  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array,
    key: jax.Array | None,
    heard: layers_lib.Heard | None = None,
  ) -> jax.Array:
    """x[B, T, D] → the same shape; `mask` bool[B, T] is True for real frames."""
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    x = x + 0.5 * self.ff_first(x, self.rate, keys[0])
    x = x + self.conv(x, mask, self.rate, keys[1], heard)
    x = x + self.attention(x, mask, self.rate, keys[2], heard)
    x = x + 0.5 * self.ff_last(x, self.rate, keys[3])
    return self.norm(x)

  def step(self, x: jax.Array, mask: jax.Array, past: "BlockPast") -> tuple[jax.Array, "BlockPast"]:
    """What a call gives for a chunk x[B, C, D] of a stream, and the new past."""
    x = x + 0.5 * self.ff_first(x, self.rate, None)
    convolved, inputs = self.conv.step(x, mask, past.inputs)
    x = x + convolved
    mixed, attention = self.attention.step(x, mask, past.attention)
    x = x + mixed
    x = x + 0.5 * self.ff_last(x, self.rate, None)
    return self.norm(x), BlockPast(inputs, attention)


class BlockPast(NamedTuple):
  """What a block keeps of a stream.

  Attributes:
    inputs: [B, K // 2, D], what its convolution read last.
    attention: keys and values.
  """

  inputs: jax.Array
  attention: layers_lib.Past


class ConformerCTC(FrameClassifier):
  """Audio → features → 40 ms frames → stacked blocks → class logits."""

  def __init__(
    self,
    config: ConformerConfig,
    features: LogMel,
    classes: int,
    *,
    rngs: nnx.Rngs,
    project_to: int | None = None,
    inner_heads: bool = False,
  ):
    """Draws parameters from `rngs.params`.

    Args:
      config, features: sizes.
      classes: of the head, the blank included.
      rngs: with a stream `params`.
      project_to: width of a teacher's frames, for a `projection` to compare them in; None for none.
      inner_heads: whether the heads behind `config.inner_layers` are there.
    """
    self.frontend = FrontEnd(
      features.mels, config.frontend_channels, config.frontend_pool, config.width, rngs=rngs
    )
    keys = jax.random.split(rngs.params(), config.layers)
    make = lambda key: Block(config, rngs=nnx.Rngs(params=key))
    self.blocks = nnx.vmap(make)(keys)
    self.head = layers_lib.Linear(config.width, classes, rngs=rngs)
    if project_to is not None:
      self.projection = layers_lib.Linear(config.width, project_to, rngs=rngs)
    if inner_heads:
      make_head = lambda key: layers_lib.Linear(config.width, classes, rngs=nnx.Rngs(params=key))
      self.inner_heads = nnx.vmap(make_head)(
        jax.random.split(rngs.params(), len(config.inner_layers))
      )
    self.config, self.features = config, features

  def __call__(
    self,
    audio: jax.Array,
    audio_len: jax.Array,
    *,
    key: jax.Array | None = None,
    spec_augment: SpecAugment | None = None,
    augment_on: jax.Array | bool = True,
    heard: layers_lib.Heard | None = None,
  ) -> FrameOutput:
    """Logits of every 40 ms frame.

    Args:
      audio: i16[B, S], or float[B, S] of full scale 1, 16 kHz; padding may hold anything.
      audio_len: i32[B], real samples; a row of 0 has no real frame.
      key: for dropout and SpecAugment; None is evaluation.
      spec_augment: masks on the features where there is a key; None for none.
      augment_on: bool[], whether they apply.
      heard: what each frame hears of the others; None for everything.

    Returns:
      Logits f32[B, T, V] and mask bool[B, T], T = ceil(ceil(S / 160) / 4).
    """
    options = dict(key=key, spec_augment=spec_augment, augment_on=augment_on, heard=heard)
    return self.classify(*self.encode(audio, audio_len, **options))

  def with_inner(
    self, audio: jax.Array, audio_len: jax.Array, **options
  ) -> tuple[FrameOutput, list[FrameOutput]]:
    """What a call with the same arguments gives, and the same of each inner head."""
    encoded, mask = self._encode(audio, audio_len, self.config.inner_layers, **options)
    graphdef, heads = nnx.split(self.inner_heads)
    told = [
      nnx.merge(graphdef, jax.tree.map(lambda x, i=i: x[i], heads))(x)
      for i, x in enumerate(encoded[:-1])
    ]
    inner = [FrameOutput(logits.astype(jnp.float32), mask) for logits in told]
    return self.classify(encoded[-1], mask), inner

  def encode(
    self,
    audio: jax.Array,
    audio_len: jax.Array,
    *,
    key: jax.Array | None = None,
    spec_augment: SpecAugment | None = None,
    augment_on: jax.Array | bool = True,
    heard: layers_lib.Heard | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Encoder output [B, T, D] and mask bool[B, T]; arguments as for a call."""
    options = dict(key=key, spec_augment=spec_augment, augment_on=augment_on, heard=heard)
    (encoded,), mask = self._encode(audio, audio_len, (), **options)
    return encoded, mask

  def _encode(
    self, audio, audio_len, stops, *, key=None, spec_augment=None, augment_on=True, heard=None
  ) -> tuple[list[jax.Array], jax.Array]:
    """[B, T, D] behind each of the blocks `stops` and behind the last, and bool[B, T]."""
    augment_key, dropout_key = (None, None) if key is None else jax.random.split(key)
    features, mask = log_mel(audio, audio_len, self.features)
    if spec_augment is not None and key is not None:
      features = spec_augment_if(augment_on, features, mask, augment_key, spec_augment)
    lengths = mask.sum(-1, dtype=jnp.int32)
    x, lengths = self.frontend(features.astype(self.config.dtype), lengths)
    mask = length_mask(lengths, x.shape[1])
    return self._run_blocks(x, mask, dropout_key, stops, heard), mask

  def stream(self, chunk: int, left: int) -> Stream:
    """The model for audio that comes bit by bit.

    Args:
      chunk: frames that are heard together, 1 or more.
      left: frames before them that attention reads, 0 or more.

    Raises:
      ValueError: features that need the whole utterance, or a number out of range.
    """
    return Stream(self, chunk, left)

  def no_past(self, batch: int, left: int) -> "BlockPast":
    """Of all blocks, before the first chunk of a stream that keeps `left` frames."""
    config = self.config
    zeros = lambda *shape: jnp.zeros((config.layers, batch, *shape), config.dtype)
    keys = zeros(config.heads, left, config.width // config.heads)
    real = jnp.zeros((config.layers, batch, left), bool)
    inputs = zeros((config.conv_kernel - 1) // 2, config.width)
    return BlockPast(inputs, layers_lib.Past(keys, keys, real))

  def step_blocks(self, x: jax.Array, mask: jax.Array, past) -> tuple[jax.Array, "BlockPast"]:
    """A chunk [B, C, D] through all blocks, and their new past, stacked over them."""
    graphdef, params = nnx.split(self.blocks)

    def layer(x, inputs):
      block_params, block_past = inputs
      return nnx.merge(graphdef, block_params).step(x, mask, block_past)

    return jax.lax.scan(layer, x, (params, past))

  def _run_blocks(self, x, mask, key, stops: tuple[int, ...], heard=None) -> list[jax.Array]:
    """What each stop and the last block make of x."""
    config = self.config
    keys = None if key is None else jax.random.split(key, config.layers)
    call = lambda block, x, key: block(x, mask, key, heard)
    found = []
    for first, last in itertools.pairwise((0, *stops, config.layers)):
      x = scan_stack(self.blocks, x, call, keys, part=slice(first, last), remat=config.remat)
      found.append(x)
    return found
