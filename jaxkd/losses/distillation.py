"""The frame-level distillation losses."""

import jax
import jax.numpy as jnp

from jaxkd import arguments
from jaxkd.logits import is_distribution, log_softmax
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
  student, teacher, weights = paired("logits", "V", student_logits, teacher_logits, selected)
  return split_alike(_kl, 0, student, teacher, weights, check_temperature(temperature))


def _kl(student, teacher, weights, temperature) -> WeightedSum:
  chosen = (weights != 0)[..., None]
  log_student = log_softmax(jnp.where(chosen, student, 0), temperature)
  log_teacher = log_softmax(jnp.where(chosen, jax.lax.stop_gradient(teacher), 0), temperature)
  total = (weights * divergence(log_teacher, log_student)).sum()
  return WeightedSum(temperature**2 * total, weights.sum())


def divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """f32[...]: KL(p ‖ q) of log probabilities f32[..., V]; classes that p excludes are not read."""
  p = jnp.exp(log_p)
  # A class that p excludes (-inf) contributes 0, not 0 · inf.
  return (p * jnp.where(p > 0, log_p - log_q, 0)).sum(-1)


def check_temperature(temperature) -> float | jax.Array:
  """A number, or traced f32[] that is NaN where it is not above 0; TypeError, ValueError."""
  temperature, sound = arguments.number(
    "temperature", temperature, lambda x: x > 0, "finite and above 0"
  )
  return temperature if sound is True else jnp.where(sound, temperature, jnp.nan)


def guided_ctc(
  student_logits: jax.Array, teacher_logits: jax.Array, selected: jax.Array
) -> WeightedSum:
  """-Σ p_student(the teacher's best class) over the selected frames.

  Guided CTC training (Kurata and Audhkhasi 2019) with the teacher's label frames selected
  (`selection.nonblank`): the student is to spike where the teacher does.

  Args:
    student_logits: float[..., T, V].
    teacher_logits: float[..., T, V]; it gets no gradient.
    selected: bool[..., T], or weights ≥ 0; frames with 0 are never read.

  Returns:
    Sum f32[], each summand in [-1, 0], and its divisor, the sum of `selected`, f32[]. The sum is
    NaN where a selected frame of either has no softmax; both are where a weight is below 0.

  Raises:
    TypeError, ValueError: shapes or dtypes do not fit.
  """
  arrays = paired("logits", "V", student_logits, teacher_logits, selected)
  return split_alike(_guided, 0, *arrays)


def _guided(student, teacher, weights) -> WeightedSum:
  chosen = (weights != 0)[..., None]
  probs = jnp.exp(log_softmax(jnp.where(chosen, student, 0)))
  best = jnp.argmax(teacher, -1)[..., None]
  guided = jnp.take_along_axis(probs, best, -1)[..., 0]
  guided = jnp.where(is_distribution(teacher) | ~chosen[..., 0], guided, jnp.nan)
  return WeightedSum(-(weights * guided).sum(), weights.sum())


def soft_cross_entropy(
  student_logits: jax.Array, targets: jax.Array, selected: jax.Array
) -> WeightedSum:
  """-Σ targets · log p_student over classes and the selected frames.

  With `ctc_occupancy` of the teacher's logits as targets this is S-CTC (Huang et al. 2018).

  Args:
    student_logits: float[..., T, V].
    targets: float[..., T, V], probabilities; they get no gradient.
    selected: bool[..., T], or weights ≥ 0; frames with 0 are never read.

  Returns:
    Sum f32[] and its divisor, the sum of `selected`, f32[]. The sum is +inf where the student
    excludes a class with a target, NaN where a selected frame of either has NaN; both are NaN where
    a weight is below 0.

  Raises:
    TypeError, ValueError: shapes or dtypes do not fit.
  """
  student = arguments.floats("student_logits", student_logits, "..., T, V")
  targets = arguments.floats("targets", targets, "..., T, V")
  arguments.check_shape("targets", targets, student.shape, "the shape of student_logits")
  return split_alike(_cross_entropy, 0, *paired("logits", "V", student, targets, selected))


def _cross_entropy(student, targets, weights) -> WeightedSum:
  chosen = (weights != 0)[..., None]
  log_student = log_softmax(jnp.where(chosen, student, 0))
  targets = jnp.where(chosen, jax.lax.stop_gradient(targets), 0).astype(jnp.float32)
  # What has no target may be excluded.
  cross = -(targets * jnp.where(targets != 0, log_student, 0)).sum(-1)
  return WeightedSum((weights * cross).sum(), weights.sum())


def cosine_distance(student: jax.Array, teacher: jax.Array, selected: jax.Array) -> WeightedSum:
  """Σ 1 - cos(student, teacher) over the selected frames: the warm-up of Hilmes et al. 2025.

  Args:
    student: float[..., T, D], encoder outputs, projected to the teacher's width.
    teacher: float[..., T, D]; it gets no gradient.
    selected: bool[..., T], or weights ≥ 0; frames with 0 are never read.

  Returns:
    Sum f32[], each summand in [0, 2], and its divisor, the sum of `selected`, f32[]. The sum is NaN
    where a selected frame of either has, in float32, NaN or ±inf; both are where a weight is below
    0. Vectors shorter than 1e-6 count as shorter than 1, which bounds the gradient: 0 has cosine 0.

  Raises:
    TypeError, ValueError: shapes or dtypes do not fit.
  """
  return split_alike(_cosine, 0, *paired("", "D", student, teacher, selected))


def _cosine(student, teacher, weights) -> WeightedSum:
  chosen = (weights != 0)[..., None]
  student = jnp.where(chosen, student.astype(jnp.float32), 0)
  teacher = jnp.where(chosen, jax.lax.stop_gradient(teacher).astype(jnp.float32), 0)
  cosine = (_unit(student) * _unit(teacher)).sum(-1)
  return WeightedSum((weights * (1 - cosine)).sum(), weights.sum())


def paired(
  kind: str, axis: str, student, teacher, selected, name: str = "selected"
) -> tuple[jax.Array, ...]:
  """Checked arrays: two float[..., T, axis] of one shape, and weights f32[..., T], NaN below 0.

  Args:
    kind: how the arguments end, "logits" of "student_logits".
    axis: name of the last axis.
    student, teacher, selected: arguments of a loss.
    name: of the last one.
  """
  student_name, teacher_name = (f"{who}_{kind}".rstrip("_") for who in ("student", "teacher"))
  student = arguments.floats(student_name, student, f"..., T, {axis}")
  teacher = arguments.floats(teacher_name, teacher, f"..., T, {axis}")
  arguments.check_shape(teacher_name, teacher, student.shape, f"the shape of {student_name}")
  weights = arguments.weights(name, selected)
  arguments.check_shape(name, weights, student.shape[:-1], f"the frames of {student_name}")
  return student, teacher, jnp.where(weights < 0, jnp.nan, weights)


def _unit(x: jax.Array) -> jax.Array:
  """f32[..., D] of length 1; 0 stays 0, with a finite gradient."""
  # Its square may leave float32.
  x = x / jnp.maximum(jax.lax.stop_gradient(jnp.abs(x).max(-1, keepdims=True)), 1)
  return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-12))
