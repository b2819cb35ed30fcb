"""Log-mel features → frames: the convolutions that a Conformer begins with."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.masks import length_mask, lift, strided_len
from jaxkd.models.layers import Linear, add_bias, largest
from jaxkd.placement import for_tpu, on_cpu

FOLD = 4  # filters that are channels together, where the program is for TPUs


class FrontEnd(nnx.Module):
  """Four 3×3 convolutions with ReLU, max pooling after the second and the fourth, a projection.

  [B, N, F] of 10 ms becomes [B, ceil(N / 4), width] of 40 ms.
  """

  def __init__(self, mels: int, channels, pools, width: int, *, rngs: nnx.Rngs):
    sizes = (1, *channels)
    he = nnx.initializers.he_uniform()
    self.kernels = nnx.List(
      [nnx.Param(he(rngs.params(), (3, 3, sizes[i], sizes[i + 1]))) for i in range(4)]
    )
    self.biases = nnx.List([nnx.Param(jnp.zeros(c)) for c in channels])
    for _, mel_pool in pools:
      mels = strided_len(mels, mel_pool)
    self.project = Linear(mels * channels[-1], width, rngs=rngs)
    self.pools = tuple(pools)

  def __call__(
    self, features: jax.Array, feature_len: jax.Array, skipped: jax.Array | int = 0
  ) -> tuple[jax.Array, jax.Array]:
    """Frames [B, T, width] and i32[B] `frame_len`; padding in between is set to 0.

    Args:
      features: [B, N, F].
      feature_len: i32[B].
      skipped: i32[], of the first that are no features, either: a multiple of all that is pooled.
    """
    foldable = features.shape[2] % FOLD == 0 and all(mel == 1 for _, mel in self.pools)
    run = self.folded if foldable and for_tpu() else self.plain
    return run(features, feature_len, skipped)

  def plain(self, features, feature_len, skipped=0) -> tuple[jax.Array, jax.Array]:
    """Frames and lengths, convolution by convolution."""
    x, length = features[..., None], feature_len
    for layer in range(4):
      mask = _between(skipped, length, x.shape[1])[..., None, None]
      x = jnp.where(mask, x, 0)
      x = jax.nn.relu(add_bias(conv3x3(x, self.kernels[layer][...]), self.biases[layer]))
      if layer in (1, 3):
        time, mel = self.pools[layer // 2]
        # Zero is below nothing that follows a ReLU, so padding never wins.
        x = max_pool(jnp.where(mask, x, 0), time, mel)
        length, skipped = strided_len(length, time), strided_len(skipped, time)
    return self.project(x.reshape(*x.shape[:2], -1)), length

  def folded(self, features, feature_len, skipped=0) -> tuple[jax.Array, jax.Array]:
    """The same in the shapes of a TPU; FOLD divides the filters, and only time is pooled.

    Its vectors of 128 would be filled by 32 channels to a quarter, few rows make it divide the
    convolutions itself, and pooling would tear its tiles apart. Here FOLD filters with their
    channels are the channels of a convolution, in whose kernel most numbers are 0, and the frames
    that will be pooled into one are an axis of their own: [B, T, frames, F / FOLD, FOLD · C].
    """
    frames = math.prod(time for time, _ in self.pools)
    size = strided_len(features.shape[1], frames)
    more = size * frames - features.shape[1]
    x = jnp.pad(features, ((0, 0), (0, more), (0, 0)))
    mask = _between(skipped, feature_len, size * frames).reshape(-1, size, frames, 1, 1)
    x = x.reshape(-1, size, frames, features.shape[2] // FOLD, FOLD)
    for layer in range(4):
      if layer != 2:  # what was pooled is masked
        x = jnp.where(mask, x, 0)
      kernel = _folded_kernel(self.kernels[layer][...].astype(x.dtype))
      bias = jnp.tile(self.biases[layer][...].astype(x.dtype), FOLD)
      x = jax.nn.relu(_conv_folded(x, kernel) + lift(bias, x.ndim))
      if layer in (1, 3):
        time, _ = self.pools[layer // 2]
        x = jnp.where(mask, x, 0)
        x = largest([x[:, :, i::time] for i in range(time)])
        mask, feature_len = mask[:, :, ::time], strided_len(feature_len, time)
    kernel = self.project.kernel[...].astype(x.dtype).reshape(*x.shape[3:], -1)
    return add_bias(jnp.einsum("btgc,gcd->btd", x[:, :, 0], kernel), self.project.bias), feature_len


def _between(first, length: jax.Array, size: int) -> jax.Array:
  """bool[B, size], True at positions from `first` on and below `length` i32[B]."""
  mask = length_mask(length, size)
  return mask if isinstance(first, int) and first == 0 else mask & (jnp.arange(size) >= first)[None]


def _folded_kernel(kernel: jax.Array) -> jax.Array:
  """[3, 3, FOLD · C, FOLD · D] of kernel[3, 3, C, D]: of FOLD filters at a time."""
  block, given, made = np.ogrid[:3, :FOLD, :FOLD]
  tap = (block - 1) * FOLD + given - made + 1
  where = jnp.asarray(np.arange(3)[:, None, None, None] == tap, kernel.dtype)
  folded = jnp.einsum("tfcd,fgio->tgicod", kernel, where, precision="highest")
  return folded.reshape(3, 3, FOLD * kernel.shape[2], FOLD * kernel.shape[3])


def _conv_folded(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Same-padded convolution of x[B, T, frames, G, C], whose time is T and frames in one."""
  before = jnp.pad(x[:, :-1, -1:], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
  behind = jnp.pad(x[:, 1:, :1], ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
  rows = jnp.concatenate([before, x, behind], 2).reshape(-1, x.shape[2] + 2, *x.shape[3:])
  y = jax.lax.conv_general_dilated(
    rows, kernel, (1, 1), [(0, 0), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  return y.reshape(*x.shape[:4], -1)


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Same-padded convolution of x[B, N, F, C] with kernel[3, 3, C, D]."""
  kernel = kernel.astype(x.dtype)
  return _conv_of_one(x, kernel) if kernel.shape[2] == 1 else _convolved(x, kernel)


def _convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


@jax.custom_vjp
def _conv_of_one(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`_convolved` of one channel; on CPU one fused loop, where its convolution takes long."""
  return on_cpu(_by_taps, _convolved, x, kernel)


def _by_taps(x: jax.Array, kernel: jax.Array) -> jax.Array:
  frames, filters = x.shape[1:3]
  padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
  padded = jax.lax.optimization_barrier(padded)  # else what made x is computed for every tap
  tap = lambda i, j: padded[:, i : i + frames, j : j + filters] * lift(kernel[i, j, 0], 4)
  return sum(tap(i, j) for i in range(3) for j in range(3)).astype(x.dtype)


def _conv_of_one_forward(x, kernel):
  return _conv_of_one(x, kernel), (x, kernel)


def _conv_of_one_backward(residuals, cotangent):
  return jax.vjp(_convolved, *residuals)[1](cotangent)  # sums over taps are slower there


_conv_of_one.defvjp(_conv_of_one_forward, _conv_of_one_backward)


def max_pool(x: jax.Array, time: int, mel: int) -> jax.Array:
  """Largest of each (time, mel) block of x[B, N, F, C] ≥ 0; the last blocks may be smaller."""
  rows, columns = -x.shape[1] % time, -x.shape[2] % mel
  x = jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))
  shape = x.shape[0], x.shape[1] // time, time, x.shape[2] // mel, mel, x.shape[3]
  blocks = x.reshape(shape)
  return largest([blocks[:, :, i, :, j] for i in range(time) for j in range(mel)])
