"""The frame-level distillation losses."""

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


def cosine_distance(student: jax.Array, teacher: jax.Array, selected: jax.Array) -> WeightedSum:
  """Σ 1 - cos(student, teacher) over the selected frames: the warm-up of Hilmes et al. 2025.

  Args:
    student: float[..., T, D], encoder outputs, projected to the teacher's width.
    teacher: float[..., T, D]; it gets no gradient.
    selected: bool[..., T], or float weights ≥ 0; frames with 0 are never read.

  Returns:
    Sum f32[], each summand in [0, 2], and its divisor, the sum of `selected`, f32[].
  """
  weights = selected.astype(jnp.float32)
  chosen = (weights > 0)[..., None]
  student = jnp.where(chosen, student.astype(jnp.float32), 0)
  teacher = jnp.where(chosen, jax.lax.stop_gradient(teacher).astype(jnp.float32), 0)
  cosine = (_unit(student) * _unit(teacher)).sum(-1)
  return WeightedSum((weights * (1 - cosine)).sum(), weights.sum())


def _unit(x: jax.Array) -> jax.Array:
  """f32[..., D] of length 1; 0 stays 0, with a finite gradient."""
  return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-12))
