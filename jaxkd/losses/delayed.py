"""Distillation that forgives a student whose spikes come a little earlier or later."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import arguments
from jaxkd.logits import log_softmax
from jaxkd.losses.distillation import check_temperature, divergence, paired
from jaxkd.masks import lift
from jaxkd.placement import split_alike
from jaxkd.types import WeightedSum


def delayed_kl(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  selected: jax.Array,
  mask: jax.Array,
  *,
  temperature: float,
  delays: Sequence[int] = (-1, 0, 1),
  softness: float = 1.0,
  of_row: bool = False,
) -> WeightedSum:
  """T² · Σ -τ log mean over d of exp(-KL(teacher_t ‖ student_{t+d}) / τ) over the selected frames.

  A soft minimum over delays d: a student may say what the teacher says in frame t in any of the
  frames t + d, and each of these learns as much as it already agrees. delays=(0,) is `kd_kl`. Not
  in Hilmes et al. 2025.

  Args:
    student_logits, teacher_logits: float[..., T, V], as for `kd_kl`.
    selected: bool[..., T], or weights ≥ 0, of the teacher's frames.
    mask: bool[..., T], True for real frames, the only ones that a delay may lead to. Others, and
      those that no selected frame leads to, are never read.
    temperature: T > 0, number or traced f32[].
    delays: whole numbers of frames, each once; above 0 the student is later.
    softness: τ > 0, in nats of the KL at the temperature, number or traced f32[]; near 0 the best
      delay counts alone.
    of_row: the selected frames of a row have one delay: the mean of their KL takes the place of
      each of them.

  Returns:
    As `kd_kl`; a selected frame whose delays all lead out of the mask is in neither sum. NaN, too,
    where a traced softness is not above 0.

  Raises:
    TypeError, ValueError: shapes, dtypes or numbers do not fit.
  """
  student, teacher, weights = paired("logits", "V", student_logits, teacher_logits, selected)
  mask = frame_mask(mask, student)
  temperature = check_temperature(temperature)
  delays, softness = check_delays(delays, softness)
  compute = lambda *arrays: _delayed(*arrays, delays, of_row)
  return split_alike(compute, 0, student, teacher, weights, mask, temperature, softness)


def _delayed(student, teacher, weights, mask, temperature, softness, delays, of_row):
  student = jnp.where(reached(weights != 0, mask, delays)[..., None], student, 0)
  teacher = jnp.where((weights != 0)[..., None], jax.lax.stop_gradient(teacher), 0)
  log_student, log_teacher = (log_softmax(x, temperature) for x in (student, teacher))

  def of_delay(d):  # a frame that is not selected has no say, also where it would be infinite
    found = divergence(log_teacher, jnp.roll(log_student, -d, -2))
    return jnp.where(weights != 0, found, 0)

  of_row_and_delay = lambda d: _mean_of_row(of_delay(d), jnp.where(_leads(mask, d), weights, 0))
  found, exists = soft_minimum(of_row_and_delay if of_row else of_delay, mask, delays, softness)
  weights = jnp.where(exists, weights, 0)
  return WeightedSum(
    temperature**2 * (weights * jnp.where(weights != 0, found, 0)).sum(), weights.sum()
  )


def _mean_of_row(found: jax.Array, weights: jax.Array) -> jax.Array:
  """f32[..., T]: in every frame the weighted mean of f32[..., T] over its row."""
  total = (weights * jnp.where(weights != 0, found, 0)).sum(-1, keepdims=True)
  count = weights.sum(-1, keepdims=True)
  return jnp.broadcast_to(total / jnp.where(count > 0, count, 1), found.shape)


def frame_mask(mask, student) -> jax.Array:
  """bool[..., T] of an argument; TypeError or ValueError where it is not of the frames."""
  mask = arguments.truths("mask", mask, "..., T")
  arguments.check_shape("mask", mask, student.shape[:-1], "the frames of student_logits")
  return mask


def check_delays(delays, softness) -> tuple[tuple[int, ...], float | jax.Array]:
  """Delays as ints and τ, NaN where a traced one is not above 0; TypeError, ValueError."""
  if not np.iterable(delays):
    raise TypeError(f"delays is {delays!r}; it must be several whole numbers of frames")
  delays = tuple(arguments.whole("delays", delay) for delay in delays)
  if not delays or len(set(delays)) < len(delays) or max(map(abs, delays)) >= 2**31:
    what = "whole numbers of frames below 2**31, each once"
    raise ValueError(f"delays is {delays}; it must be {what}")
  softness, sound = arguments.number("softness", softness, lambda x: x > 0, "finite and above 0")
  return delays, softness if sound is True else jnp.where(sound, softness, jnp.nan)


def soft_minimum(
  of_delay: Callable[[int], jax.Array], mask: jax.Array, delays: Sequence[int], softness
) -> tuple[jax.Array, jax.Array]:
  """f32[..., T], and bool[..., T], whether any delay leads from a frame to a real one.

  Args:
    of_delay: delay → f32[..., T], the divergence of each frame from the one that it leads to.
    mask: bool[..., T].
    delays: frames.
    softness: τ.
  """
  exists = jnp.stack([_leads(mask, d) for d in delays])
  scores = jnp.stack([of_delay(d) for d in delays])
  scores = jnp.where(exists, -scores / softness, -jnp.inf)
  best = jax.lax.stop_gradient(scores.max(0, keepdims=True))
  # Of nothing but -inf the difference would be NaN.
  best = jnp.where(best == -jnp.inf, 0, best)
  count = jnp.maximum(exists.sum(0, jnp.float32), 1)
  # The mean less 1: where τ is large it is all that is there.
  mean = jnp.where(exists, jnp.expm1(scores - best), 0).sum(0) / count
  return -softness * (best[0] + jnp.log1p(mean)), exists.any(0)


def _leads(mask: jax.Array, delay: int) -> jax.Array:
  """bool[..., T], whether t + delay is a real frame."""
  size = mask.shape[-1]
  there = lift(jnp.arange(size, dtype=jnp.int32), mask.ndim) + delay
  return jnp.roll(mask, -delay, -1) & (there >= 0) & (there < size)


def reached(chosen: jax.Array, mask: jax.Array, delays: Sequence[int]) -> jax.Array:
  """bool[..., T], real frames that some chosen frame leads to."""
  found = [_leads(chosen, -d) for d in delays]
  return mask & jnp.stack(found).any(0)
