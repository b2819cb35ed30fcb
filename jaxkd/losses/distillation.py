"""The frame-level distillation loss."""

import jax
import jax.numpy as jnp

from jaxkd.types import WeightedSum


def kd_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  selected: jax.Array,
  *,
  temperature: float,
) -> WeightedSum:
  """T² · Σ KL(softmax(teacher / T) ‖ softmax(student / T)) over the selected frames.

  Its `mean()` is L_KD of Hilmes et al. 2025: the KL is summed over classes and averaged over the
  selected frames of the whole batch. T² keeps the gradient's size (Hinton et al. 2015).

  Args:
    student_logits: float[..., T, V].
    teacher_logits: float[..., T, V]; it gets no gradient.
    selected: bool[..., T], or float weights ≥ 0; frames with 0 are never read.
    temperature: T > 0.

  Returns:
    Sum f32[] and its divisor, the sum of `selected`, f32[].
  """
  weights = selected.astype(jnp.float32)
  chosen = (weights > 0)[..., None]
  student = jnp.where(chosen, student_logits.astype(jnp.float32), 0) / temperature
  teacher = jnp.where(chosen, teacher_logits.astype(jnp.float32), 0) / temperature
  log_teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher))
  teacher_probs = jnp.exp(log_teacher)
  # A class that the teacher excludes (-inf) contributes 0, not 0 · inf.
  ratio = jnp.where(teacher_probs > 0, log_teacher - jax.nn.log_softmax(student), 0)
  divergence = (teacher_probs * ratio).sum(-1)
  return WeightedSum(temperature**2 * (weights * divergence).sum(), weights.sum())
