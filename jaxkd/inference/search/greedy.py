"""Best-path decoding: argmax on the device, collapse on the host."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import arguments
from jaxkd.logits import is_distribution
from jaxkd.placement import split_alike


def best_path(logits: jax.Array, mask: jax.Array, *, blank_id: int) -> jax.Array:
  """i32[B, T]: the most probable class of each frame, blank where the frame is padding.

  -1 for a real frame without one: NaN, +inf, or -inf for every class, or a traced blank_id that is
  no class.

  Args:
    logits: float[B, T, V].
    mask: bool[B, T], True for real frames.
    blank_id: class of the blank, int or traced i32[].

  Raises:
    TypeError, ValueError: shapes or dtypes do not fit, or blank_id is no class.
  """
  logits = arguments.floats("logits", logits, "B, T, V")
  mask = arguments.truths("mask", mask, "B, T")
  arguments.check_shape("mask", mask, logits.shape[:2], "the frames of logits")
  blank_id, exists = arguments.class_id("blank_id", blank_id, logits.shape[2])
  return split_alike(_best_path, 2, logits, mask, blank_id, exists)


def _best_path(logits, mask, blank_id, exists):
  best = jnp.where(is_distribution(logits) & exists, jnp.argmax(logits, -1), -1)
  return jnp.where(mask, best, blank_id).astype(jnp.int32)


def collapse(path: np.ndarray, *, blank_id: int) -> np.ndarray:
  """i32[≤T]: labels of i32[T] `path` after merging repeats and dropping blanks.

  Raises:
    ValueError: a frame has no class, which `best_path` writes as -1.
  """
  if (path < 0).any():
    frame = int(np.argmax(path < 0))
    raise ValueError(f"path[{frame}] is {path[frame]}: the model's logits have no softmax there")
  changes = np.ones(len(path), bool)
  changes[1:] = path[1:] != path[:-1]
  return path[changes & (path != blank_id)]
