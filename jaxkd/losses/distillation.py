"""The frame-level distillation losses."""

import jax
import jax.numpy as jnp

from jaxkd import arguments
from jaxkd.logits import log_softmax
from jaxkd.placement import split_alike
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
    student_logits: float[..., T, V]; float64 too is computed in float32, relative to each frame's
      largest.
    teacher_logits: float[..., T, V]; it gets no gradient. -inf excludes a class.
    selected: bool[..., T], or weights ≥ 0; frames with 0 are never read.
    temperature: T > 0, number or traced f32[].

  Returns:
    Sum f32[] and its divisor, the sum of `selected`, f32[]. The sum is +inf where the student
    excludes a class and the teacher does not; it is NaN where a selected frame of either has NaN,
    +inf, or -inf for every class, or a traced temperature is not above 0. Both are NaN where a
    weight is below 0.

  Raises:
    TypeError, ValueError: shapes or dtypes do not fit, or the temperature is not above 0.
  """
  student, teacher, weights = _frames("logits", "V", student_logits, teacher_logits, selected)
  temperature, sound = arguments.number(
    "temperature", temperature, lambda x: x > 0, "finite and above 0"
  )
  temperature = temperature if sound is True else jnp.where(sound, temperature, jnp.nan)
  return split_alike(_kl, 0, student, teacher, weights, temperature)


def _kl(student, teacher, weights, temperature) -> WeightedSum:
  chosen = (weights != 0)[..., None]
  log_student = log_softmax(jnp.where(chosen, student, 0), temperature)
  log_teacher = log_softmax(jnp.where(chosen, jax.lax.stop_gradient(teacher), 0), temperature)
  teacher_probs = jnp.exp(log_teacher)
  # A class that the teacher excludes (-inf) contributes 0, not 0 · inf.
  ratio = jnp.where(teacher_probs > 0, log_teacher - log_student, 0)
  divergence = (teacher_probs * ratio).sum(-1)
  return WeightedSum(temperature**2 * (weights * divergence).sum(), weights.sum())


def cosine_distance(student: jax.Array, teacher: jax.Array, selected: jax.Array) -> WeightedSum:
  """Σ 1 - cos(student, teacher) over the selected frames: the warm-up of Hilmes et al. 2025.

  Args:
    student: float[..., T, D], encoder outputs, projected to the teacher's width.
    teacher: float[..., T, D]; it gets no gradient.
    selected: bool[..., T], or weights ≥ 0; frames with 0 are never read.

  Returns:
    Sum f32[], each summand in [0, 2], and its divisor, the sum of `selected`, f32[]. The sum is NaN
    where a selected frame of either has NaN or ±inf; both are where a weight is below 0.

  Raises:
    TypeError, ValueError: shapes or dtypes do not fit.
  """
  return split_alike(_cosine, 0, *_frames("", "D", student, teacher, selected))


def _cosine(student, teacher, weights) -> WeightedSum:
  chosen = (weights != 0)[..., None]
  student = jnp.where(chosen, student.astype(jnp.float32), 0)
  teacher = jnp.where(chosen, jax.lax.stop_gradient(teacher).astype(jnp.float32), 0)
  cosine = (_unit(student) * _unit(teacher)).sum(-1)
  return WeightedSum((weights * (1 - cosine)).sum(), weights.sum())


def _frames(kind: str, axis: str, student, teacher, selected) -> tuple[jax.Array, ...]:
  """Checked arrays: two float[..., T, axis] of one shape, and weights f32[..., T], NaN below 0.

  Args:
    kind: how the arguments end, "logits" of "student_logits".
    axis: name of the last axis.
    student, teacher, selected: arguments of a loss.
  """
  student_name, teacher_name = (f"{who}_{kind}".rstrip("_") for who in ("student", "teacher"))
  student = arguments.floats(student_name, student, f"..., T, {axis}")
  teacher = arguments.floats(teacher_name, teacher, f"..., T, {axis}")
  arguments.check_shape(teacher_name, teacher, student.shape, f"the shape of {student_name}")
  weights = arguments.weights("selected", selected)
  arguments.check_shape("selected", weights, student.shape[:-1], f"the frames of {student_name}")
  return student, teacher, jnp.where(weights < 0, jnp.nan, weights)


def _unit(x: jax.Array) -> jax.Array:
  """f32[..., D] of length 1; 0 stays 0, with a finite gradient."""
  # Its square may leave float32.
  x = x / jnp.maximum(jax.lax.stop_gradient(jnp.abs(x).max(-1, keepdims=True)), 1)
  return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-12))
