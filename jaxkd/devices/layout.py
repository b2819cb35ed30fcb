"""Arrays that are laid out on devices while they are read: the host never holds a whole model."""

from collections.abc import Iterable

import jax
import numpy as np

from jaxkd.devices import mesh


def fill(like, where, arrays: Iterable[np.ndarray], *, stacked: bool) -> jax.Array:
  """An array on devices, from what is read on the way.

  The host holds each shard of this process once, and one of `arrays` at a time.

  Args:
    like: its shape, and its type, to which what is read is converted.
    where: its sharding; None for the default device.
    arrays: the whole array, or its rows one after the other.
    stacked: whether they are its rows.
  """
  indices = [()] if where is None else where.addressable_devices_indices_map(like.shape).values()
  ranges = {_ranges(index, like.shape) for index in indices}
  parts = {r: np.empty([end - start for start, end in r], like.dtype) for r in ranges}
  for row, array in enumerate(arrays):
    for r, part in parts.items():
      inner = tuple(slice(*pair) for pair in (r[1:] if stacked else r))
      if not stacked:
        part[...] = array[inner]
      elif r[0][0] <= row < r[0][1]:
        part[row - r[0][0]] = array[inner]
  if where is None:
    (part,) = parts.values()
    made = jax.device_put(part)
  else:
    shard = lambda index: parts[_ranges(index, like.shape)]
    made = jax.make_array_from_callback(like.shape, where, shard)
  return jax.block_until_ready(made)  # then what it was made from can go


def put(tree, shardings):
  """`mesh.put` of what does not lie there yet, such as what `fill` made."""
  is_there = lambda x, where: isinstance(x, jax.Array) and x.sharding == where
  return jax.tree.map(lambda x, w: x if is_there(x, w) else mesh.put(x, w), tree, shardings)


def _ranges(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
  """(start, end) of every axis; axes that are not in the index are whole."""
  index += (slice(None),) * (len(shape) - len(index))
  return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
