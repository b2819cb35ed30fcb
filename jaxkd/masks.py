"""Lengths and masks, and how arrays meet; True is real data everywhere."""

import jax
import jax.numpy as jnp

from jaxkd import arguments
from jaxkd.types import FrameOutput


def lift(x, ndim: int):
  """x[...] as [1, …, 1, ...] with so many axes, to meet an array of more of them."""
  return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def length_mask(lengths: jax.Array, size: int) -> jax.Array:
  """bool[..., size], True at positions below `lengths` [...] of any integer dtype, or lists."""
  lengths = arguments.integers("lengths", lengths, "...")[..., None]
  return lift(jnp.arange(size, dtype=jnp.int32), lengths.ndim) < lengths


def strided_len(lengths, stride: int):
  """Length after a stride with 'same' padding: ceil(lengths / stride), for ints and arrays."""
  return (lengths + (stride - 1)) // stride


def zero_padding(x: jax.Array, mask: jax.Array) -> jax.Array:
  """x[..., T, D] with padding (False in bool[..., T] `mask`) set to 0, even where it holds NaN."""
  return jnp.where(mask[..., None], x, 0)


def dilate(mask: jax.Array, *, before, after) -> jax.Array:
  """bool[..., T]: positions with a True of `mask` at most `after` behind or `before` ahead.

  Args:
    mask: bool[..., T].
    before, after: positions ≥ 0, int or traced i32[]; a True at t reaches from t - before to
      t + after. Where a traced one is below 0, the result is False everywhere.

  Raises:
    TypeError, ValueError: an argument is of another kind, or below 0 and known.
  """
  mask = arguments.truths("mask", mask, "..., T")
  (before, some), (after, other) = (
    arguments.count(name, x) for name, x in (("before", before), ("after", after))
  )
  size, axis = mask.shape[-1], mask.ndim - 1
  positions = lift(jnp.arange(size, dtype=jnp.int32), mask.ndim)
  last = jax.lax.cummax(jnp.where(mask, positions, -2 * size), axis=axis)
  following = jax.lax.cummin(jnp.where(mask, positions, 3 * size), axis=axis, reverse=True)
  near = (positions - last <= jnp.minimum(after, size)) | (
    following - positions <= jnp.minimum(before, size)
  )
  return near & some & other


def same_frames(a: FrameOutput, b: FrameOutput) -> tuple[FrameOutput, FrameOutput]:
  """Two outputs of the same audio, cut to the shorter one in array and in mask.

  Strides and padding conventions let frame counts differ by one now and then.
  """
  size = min(a.mask.shape[1], b.mask.shape[1])
  mask = a.mask[:, :size] & b.mask[:, :size]
  return FrameOutput(a.logits[:, :size], mask), FrameOutput(b.logits[:, :size], mask)
