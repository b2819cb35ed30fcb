"""The KL in two parts: whether a frame is blank, and which label it is where it is not."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxkd import arguments
from jaxkd.logits import relative
from jaxkd.losses.delayed import check_delays, frame_mask, reached, soft_minimum
from jaxkd.losses.distillation import check_temperature, divergence, paired
from jaxkd.masks import lift
from jaxkd.placement import split_alike
from jaxkd.types import WeightedSum


def split_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  blank_weights: jax.Array,
  label_weights: jax.Array,
  mask: jax.Array,
  *,
  temperature: float,
  blank_id: int,
  delays: Sequence[int] = (0,),
  softness: float = 1.0,
) -> WeightedSum:
  """T² · Σ α KL(blank or not) + β KL(which label, where it is not blank) over real frames.

  With b = p(blank) and p̂ the labels alone, renormalised, KL(p ‖ q) = KL(b_p ‖ b_q) +
  (1 - b_p) · KL(p̂ ‖ q̂): α = 1 and β = 1 - b_p is `kd_kl` of all frames. α = 1 everywhere teaches
  where there is silence, which a selection of label frames leaves out; β says which frames tell
  labels. After decoupled knowledge distillation (Zhao et al. 2022), with the blank as target.

  Args:
    student_logits, teacher_logits: float[..., T, V], as for `kd_kl`; at least two classes.
    blank_weights: α, bool[..., T], or weights ≥ 0.
    label_weights: β, bool[..., T], or weights ≥ 0.
    mask: bool[..., T], True for real frames. Others weigh nothing, and frames without weight are
      never read.
    temperature: T > 0, number or traced f32[].
    blank_id: the blank's class, int or traced i32[].
    delays, softness: as for `delayed_kl`, of both parts together, (α KL + β KL) / max(α, β); the
      larger weight stands outside of the soft minimum, as the weights of `delayed_kl` do.

  Returns:
    Sum f32[] and its divisor, the sum of max(α, β), f32[]; +inf and NaN as `kd_kl`, NaN where a
    traced blank_id is no class.

  Raises:
    TypeError, ValueError: shapes, dtypes or numbers do not fit.
  """
  student, teacher, alpha = paired(
    "logits", "V", student_logits, teacher_logits, blank_weights, "blank_weights"
  )
  *_, beta = paired("logits", "V", student, teacher, label_weights, "label_weights")
  if student.shape[-1] < 2:
    raise ValueError(f"student_logits has shape {student.shape}; there must be two classes or more")
  mask = frame_mask(mask, student)
  temperature = check_temperature(temperature)
  delays, softness = check_delays(delays, softness)
  blank_id, exists = arguments.class_id("blank_id", blank_id, student.shape[-1])
  if exists is not True:
    alpha = jnp.where(exists, alpha, jnp.nan)
  compute = lambda *arrays: _split(*arrays, delays)
  return split_alike(
    compute, 0, student, teacher, alpha, beta, mask, temperature, softness, jnp.int32(blank_id)
  )


def _split(student, teacher, alpha, beta, mask, temperature, softness, blank_id, delays):
  alpha, beta = (jnp.where(mask, x, 0) for x in (alpha, beta))
  weights = jnp.maximum(alpha, beta)
  chosen = weights != 0
  student = jnp.where(reached(chosen, mask, delays)[..., None], student, 0)
  teacher = jnp.where(chosen[..., None], jax.lax.stop_gradient(teacher), 0)
  (student_blank, student_label), (teacher_blank, teacher_label) = (
    _parts(x, temperature, blank_id) for x in (student, teacher)
  )

  def of_delay(d):
    later = lambda x: jnp.roll(x, -d, -2)
    blank = divergence(teacher_blank, later(student_blank))
    label = divergence(teacher_label, later(student_label))
    # A weight of 0 leaves a part out, also where it is infinite.
    return sum(w * jnp.where(w != 0, kl, 0) for w, kl in zip(shares, (blank, label), strict=True))

  # Outside of the soft minimum, where a small weight would blur which delay is the best.
  shares = [w / jnp.where(chosen, weights, 1) for w in (alpha, beta)]
  found, exists = soft_minimum(of_delay, mask, delays, softness)
  weights = jnp.where(exists, weights, 0)
  total = (weights * jnp.where(weights != 0, found, 0)).sum()
  return WeightedSum(temperature**2 * total, weights.sum())


def _parts(logits, temperature, blank_id) -> tuple[jax.Array, jax.Array]:
  """Log probabilities f32[..., T, 2] of blank or not, and f32[..., T, V] of labels among labels.

  Labels are taken relative to their own largest, so that they keep their digits beside a blank
  that is nearly sure. Where every label is excluded, all are -inf.
  """
  scaled = relative(logits) / temperature
  is_blank = lift(jnp.arange(scaled.shape[-1], dtype=jnp.int32) == blank_id, scaled.ndim)
  labels = jnp.where(is_blank, -jnp.inf, scaled)
  top = jax.lax.stop_gradient(labels.max(-1, keepdims=True))
  some = top > -jnp.inf
  top = jnp.where(some, top, 0)
  # The blank's place is filled, or the gradient of exp at -inf - -inf would be NaN.
  share = jnp.where(is_blank | ~some, 0, jnp.exp(labels - top)).sum(-1, keepdims=True)
  log_share = jnp.log(jnp.where(some, share, 1))
  blank = jnp.where(is_blank, scaled, -jnp.inf).max(-1, keepdims=True)
  label = jnp.where(some, top + log_share, -jnp.inf)
  two = jnp.concatenate([blank, label], -1)
  norm = jnp.log(jnp.exp(two).sum(-1, keepdims=True))
  return two - norm, jnp.where(is_blank | ~some, -jnp.inf, labels - top - log_share)
