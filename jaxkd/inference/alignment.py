"""CTC forced alignment, and how two models' alignments of the same labels differ in time.

The best path of given labels is found by Viterbi in the lattice of Graves et al. 2006: states
blank, label, blank, …, blank, of which a path stays in one, goes to the next, or skips a blank
between two different labels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.logits import is_distribution, log_softmax
from jaxkd.losses.ctc import checked_targets, ctc_is_feasible, integer_targets
from jaxkd.masks import length_mask
from jaxkd.placement import split_alike, vary_alike

# Offsets of so many frames and more share a bin.
REACH = 5


class Alignment(NamedTuple):
  """Best paths of given labels.

  Attributes:
    path: i32[B, T], which label (0 to label_len - 1) each frame is of, -1 for blank, padding and
      rows whose score is not finite.
    first: i32[B, U], first frame of each label; -1 in padding and rows whose score is not finite.
    score: f32[B], log p of the path; -inf where there is none, NaN where logits are no posteriors.
  """

  path: jax.Array
  first: jax.Array
  score: jax.Array


class SpikeOffsets(NamedTuple):
  """First frames of labels, the student's minus the teacher's, over the rows of a batch.

  Attributes:
    histogram: i32[2 · REACH + 1], labels at each offset from -REACH to REACH, ends open.
    total: i32[], sum of the offsets.
    utterances: i32[], rows that are in the histogram.
    left_out: i32[], rows whose labels either model has no path for.
  """

  histogram: jax.Array
  total: jax.Array
  utterances: jax.Array
  left_out: jax.Array


def viterbi(
  logits: jax.Array,
  logit_len: jax.Array,
  labels: jax.Array,
  label_len: jax.Array,
  *,
  blank_id: int,
) -> Alignment:
  """The most probable path of each row's labels.

  Of equally probable paths it is the one that is further along at the last frame where they
  differ: labels come early.

  Args:
    logits: f[B, T, V] of any float dtype, before the softmax; computed in float32. Frames at or
      past logit_len may hold anything. -inf excludes a class.
    logit_len: int[B], at most T.
    labels: int[B, U]; entries at or past label_len may hold anything. U may be 0.
    label_len: int[B]; 0 is the path of blanks alone, above U is infeasible.
    blank_id: the blank's class, int or traced i32[].

  Returns:
    An Alignment. The score is -inf where `ctc_loss` is +inf: no path spells the labels. It is NaN
    for the other rows with NaN, +inf, or -inf for every class in a real frame.

  Raises:
    TypeError, ValueError: as `ctc_loss`.
  """
  targets = checked_targets(logits, logit_len, labels, label_len, blank_id)
  return split_alike(_align, 1, *targets)


def _align(logits, logit_len, labels, label_len, blank_id) -> Alignment:
  feasible = ctc_is_feasible(logit_len, labels, label_len)
  logit_len, label_len = jnp.where(feasible, logit_len, 0), jnp.where(feasible, label_len, 0)
  labels = jnp.where(length_mask(label_len, labels.shape[1]), labels, blank_id)
  real = length_mask(logit_len, logits.shape[1])
  known = (is_distribution(logits) | ~real).all(1)
  one = lambda *row: _viterbi(*row, blank_id)
  clean = jnp.where((real & known[:, None])[..., None], logits, 0)
  path, first, score = jax.vmap(one)(clean, logit_len, labels, label_len)
  score = jnp.where(feasible, jnp.where(known, score, jnp.nan), -jnp.inf)
  found = jnp.isfinite(score)[:, None]
  return Alignment(jnp.where(found, path, -1), jnp.where(found, first, -1), score)


def _viterbi(logits, logit_len, labels, label_len, blank_id):
  """`viterbi` of one feasible row: path i32[T], first i32[U], score f32[]."""
  size, frames = len(labels), jnp.arange(len(logits), dtype=jnp.int32)
  # Labels of padding come after the last one, where no path gets to that ends in it.
  classes = jnp.zeros(2 * size + 1, jnp.int32) + blank_id
  classes = classes.at[1::2].set(labels)
  emissions = log_softmax(logits)[:, classes]
  different = jnp.concatenate([jnp.zeros(1, bool), labels[1:] != labels[:-1]])[:size]
  skips = jnp.zeros(2 * size + 1, bool).at[1::2].set(different)

  def forward(scores, frame):
    frame, emission = frame
    came = [scores, _later(scores, 1), jnp.where(skips, _later(scores, 2), -jnp.inf)]
    came = jnp.stack(came)
    real = frame < logit_len
    # The first of equal ones: a path stays where it is rather than having come late.
    step = jnp.where(real, came.argmax(0), 0).astype(jnp.int8)
    return jnp.where(real, came.max(0) + emission, scores), step

  start = jnp.full(2 * size + 1, -jnp.inf, jnp.float32).at[0].set(0.0)
  start, _ = vary_alike(start, emissions)
  scores, steps = jax.lax.scan(forward, start, (frames, emissions))
  # A path ends in the blank after the last label, or in that label.
  end = jnp.minimum(2 * label_len, 2 * size)
  before = jnp.maximum(end - 1, 0)
  end = jnp.where(scores[end] >= scores[before], end, before)
  back = lambda state, step: (state - step[state].astype(jnp.int32), state)
  _, states = jax.lax.scan(back, end, steps, reverse=True)
  in_label = (states % 2 == 1) & (frames < logit_len)
  path = jnp.where(in_label, states // 2, -1)
  first = jnp.full(size, len(logits), jnp.int32)
  first = first.at[jnp.where(in_label, path, size)].min(frames, mode="drop")
  return path, jnp.where(length_mask(label_len, size), first, -1), scores[end]


def _later(scores, states: int):
  """f32[S] moved by so many states."""
  return jnp.pad(scores, (states, 0), constant_values=-jnp.inf)[: len(scores)]


def spike_offsets(
  teacher_logits: jax.Array,
  student_logits: jax.Array,
  logit_len: jax.Array,
  labels: jax.Array,
  label_len: jax.Array,
  *,
  blank_id: int,
) -> SpikeOffsets:
  """How much later than the teacher's the student's labels begin, by forced alignment of both.

  Args:
    teacher_logits, student_logits: f[B, T, V] of the same frames.
    logit_len, labels, label_len, blank_id: as for `viterbi`. Rows without labels do not count.
  """
  rest = logit_len, labels, label_len
  teacher = viterbi(teacher_logits, *rest, blank_id=blank_id)
  student = viterbi(student_logits, *rest, blank_id=blank_id)
  return split_alike(_offsets, 0, teacher, student, *integer_targets(*rest)[1:])


def _offsets(teacher: Alignment, student: Alignment, labels, label_len) -> SpikeOffsets:
  feasible = jnp.isfinite(teacher.score) & jnp.isfinite(student.score)
  counted = (length_mask(label_len, labels.shape[1]) & feasible[:, None])[..., None]
  offsets = (student.first - teacher.first)[..., None]
  bins = jnp.arange(-REACH, REACH + 1, dtype=jnp.int32)[None, None]
  return SpikeOffsets(
    histogram=((jnp.clip(offsets, -REACH, REACH) == bins) & counted).sum((0, 1), jnp.int32),
    total=jnp.where(counted, offsets, 0).sum(dtype=jnp.int32),
    utterances=(feasible & (label_len > 0)).sum(dtype=jnp.int32),
    left_out=(~feasible & (label_len > 0)).sum(dtype=jnp.int32),
  )
