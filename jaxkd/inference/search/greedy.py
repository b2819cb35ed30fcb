"""Best-path decoding: argmax on the device, collapse on the host."""

import jax
import jax.numpy as jnp
import numpy as np


def best_path(logits: jax.Array, mask: jax.Array, *, blank_id: int) -> jax.Array:
  """i32[B, T]: the most probable class of each frame, blank where the frame is padding.

  Args:
    logits: float[B, T, V].
    mask: bool[B, T], True for real frames.
    blank_id: class of the blank.
  """
  return jnp.where(mask, jnp.argmax(logits, -1), blank_id).astype(jnp.int32)


def collapse(path: np.ndarray, *, blank_id: int) -> np.ndarray:
  """i32[≤T]: labels of i32[T] `path` after merging repeats and dropping blanks."""
  changes = np.ones(len(path), bool)
  changes[1:] = path[1:] != path[:-1]
  return path[changes & (path != blank_id)]
