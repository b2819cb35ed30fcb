"""Wav2Vec2-Conformer with a CTC head: wav2vec 2.0 with Conformer blocks (Gulati et al. 2020).

Waveform → strided convolutions → projection → blocks ff-mhsa-conv-ff with batch norm → classes, a
frame every 20 ms. Every step is the one of Hugging Face transformers for an utterance without
padding, and padding changes nothing; `huggingface/wav2vec2_conformer.py` has the names of the
weights. It teaches only, so nothing is random. Only `nnx.Param` leaves.
"""

import dataclasses

import jax
from flax import nnx

from jaxkd.masks import length_mask
from jaxkd.models.classifier import FrameClassifier
from jaxkd.models.layers import BatchNorm, ConvModule, FeedForward, LayerNorm, Linear
from jaxkd.models.stack import scan_stack
from jaxkd.models.wav2vec2 import max_pool_frames
from jaxkd.models.wav2vec2_bert import Attention
from jaxkd.models.waveform import WaveformConfig, conv_layers, frames, waveform

POSITIONS = ("relative", "rotary", None)


@dataclasses.dataclass(frozen=True)
class Wav2Vec2ConformerConfig(WaveformConfig):
  """Structure and numerics.

  Attributes:
    family: `model_type` in transformers.
    width, layers, heads, ff_width: of the blocks.
    activation: of their feed-forward layers and convolutions.
    kernel: of their convolutions, in frames, odd.
    positions: of their attention: "relative", projected sinusoids of the distance; "rotary"; None
      for none.
    rotary_base: of the rotary positions' wavelengths.
    norm_eps: of the layer norms before and after the blocks.
    dtype: of the arithmetic; parameters, norms, softmax and logits are float32.
  """

  family: str
  width: int
  layers: int
  heads: int
  ff_width: int
  activation: str
  kernel: int
  positions: str | None
  rotary_base: float
  norm_eps: float
  dtype: str = "float32"


class Block(nnx.Module):
  """Half a feed-forward layer, self-attention, a convolution, the other half; all residual."""

  def __init__(self, config: Wav2Vec2ConformerConfig, *, rngs: nnx.Rngs):
    width, options = config.width, dict(rngs=rngs, activation=config.activation)
    self.ff_first = FeedForward(width, config.ff_width, **options)
    self.attention_norm = LayerNorm(width)
    self.attention = Attention(config, width, config.positions, rngs=rngs)
    self.conv = ConvModule(width, config.kernel, bias=False, inner_norm=BatchNorm(width), **options)
    self.ff_last = FeedForward(width, config.ff_width, **options)
    self.norm = LayerNorm(width)

  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """x[B, M, D] to the same shape; `mask` bool[B, M] is True for real frames."""
    x = x + 0.5 * self.ff_first(x, 0.0, None)
    x = x + self.attention(self.attention_norm(x), mask)
    x = x + self.conv(x, mask, 0.0, None)
    x = x + 0.5 * self.ff_last(x, 0.0, None)
    return self.norm(x)


class Wav2Vec2ConformerCTC(FrameClassifier):
  """Audio → class logits of every frame (20 ms, times `config.pool`)."""

  def __init__(self, config: Wav2Vec2ConformerConfig, classes: int, *, rngs: nnx.Rngs):
    """Draws parameters from `rngs.params`; `classes` includes the blank."""
    channels = config.conv_channels[-1]
    self.conv = conv_layers(config, rngs=rngs)
    self.project_norm = LayerNorm(channels, config.norm_eps)
    self.project = Linear(channels, config.width, rngs=rngs)
    make = lambda key: Block(config, rngs=nnx.Rngs(params=key))
    self.layers = nnx.vmap(make)(jax.random.split(rngs.params(), config.layers))
    self.norm = LayerNorm(config.width, config.norm_eps)
    self.head = Linear(config.width, classes, rngs=rngs)
    self.config = config

  def encode(self, audio: jax.Array, audio_len: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encoder output, pooled, [B, T, D] and mask bool[B, T]; arguments as for a call.

    A row of less than 25 ms has no real frame.
    """
    config = self.config
    x = frames(self.conv, waveform(audio, audio_len, config), config.dtype, audio_len)
    mask = length_mask(config.frame_len(audio_len), x.shape[1])
    x = self.project(self.project_norm(x))
    x = self.norm(scan_stack(self.layers, x, lambda block, x, _: block(x, mask)))
    return max_pool_frames(x, mask, config.pool)
