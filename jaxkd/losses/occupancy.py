"""Which class the paths of a target are in, frame by frame."""

import jax
import jax.numpy as jnp

from jaxkd.logits import log_softmax, relative
from jaxkd.losses.ctc import checked_targets, paths_and_gradient
from jaxkd.masks import length_mask
from jaxkd.placement import split_alike


def ctc_occupancy(
  logits: jax.Array,
  logit_len: jax.Array,
  labels: jax.Array,
  label_len: jax.Array,
  *,
  blank_id: int,
) -> jax.Array:
  """The share γ of the probability of all paths of the labels that is in each class at each frame.

  γ_t(k) = p(path is in k at t | labels), the expected alignment of the forward-backward recursion
  (Graves et al. 2006, equation 16): softmax(logits) - ∂ctc_loss/∂logits. It gets no gradient.

  Args:
    logits, logit_len, labels, label_len, blank_id: as for `ctc_loss`.

  Returns:
    f32[B, T, V], at least 0, each real frame's sum 1; 0 in padding and in rows without a path. NaN
    for rows with NaN, +inf, or -inf for every class in a real frame.

  Raises:
    TypeError, ValueError: as for `ctc_loss`.
  """
  arrays = checked_targets(logits, logit_len, labels, label_len, blank_id)
  if not arrays[0].shape[1]:
    return jnp.zeros(arrays[0].shape, jnp.float32)
  return split_alike(_occupancy, 2, *arrays)


def _occupancy(logits, logit_len, *target):
  real = length_mask(logit_len, logits.shape[1])[..., None]
  logits = relative(jax.lax.stop_gradient(jnp.where(real, logits, 0)))
  _, (gradient, possible) = paths_and_gradient(logits, logit_len, *target)
  occupied = jnp.maximum(jnp.exp(log_softmax(logits)) - gradient, 0)
  return jnp.where(real & possible[:, None, None], occupied, 0)
