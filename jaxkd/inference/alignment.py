"""CTC forced alignment, and how two models' alignments of the same labels differ in time.

The best path of given labels is found by Viterbi in the lattice of Graves et al. 2006: states
blank, label, blank, …, blank, of which a path stays in one, goes to the next, or skips a blank
between two different labels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.masks import length_mask

# Offsets of so many frames and more share a bin.
REACH = 5


class Alignment(NamedTuple):
  """Best paths of given labels.

  Attributes:
    path: i32[B, T], which label (0 to label_len - 1) each frame is of, -1 for blank, padding and
      infeasible rows.
    first: i32[B, U], first frame of each label; -1 in padding and infeasible rows.
    score: f32[B], log p of the path; -inf where there is none.
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
      past logit_len may hold anything.
    logit_len: i32[B], at most T.
    labels: i32[B, U]; entries at or past label_len may hold anything. U may be 0.
    label_len: i32[B]; 0 is the path of blanks alone, above U is infeasible.
    blank_id: the blank's class.

  Returns:
    An Alignment; where a row is infeasible it says so.
  """
  one = lambda *row: _viterbi(*row, blank_id)
  return Alignment(*jax.vmap(one)(logits, logit_len, labels, label_len))


def _viterbi(logits, logit_len, labels, label_len, blank_id: int):
  """`viterbi` of one row: path i32[T], first i32[U], score f32[]."""
  size, frames = len(labels), jnp.arange(len(logits))
  # Labels of padding come after the last one, where no path gets to that ends in it.
  classes = jnp.full(2 * size + 1, blank_id).at[1::2].set(labels)
  emissions = jax.nn.log_softmax(logits.astype(jnp.float32))[:, classes]
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

  start = jnp.full(2 * size + 1, -jnp.inf).at[0].set(0.0)
  scores, steps = jax.lax.scan(forward, start, (frames, emissions))
  # A path ends in the blank after the last label, or in that label.
  end = jnp.minimum(2 * label_len, 2 * size)
  before = jnp.maximum(end - 1, 0)
  end = jnp.where(scores[end] >= scores[before], end, before)
  feasible = (label_len <= size) & (scores[end] > -jnp.inf)
  _, states = jax.lax.scan(lambda s, step: (s - step[s], s), end, steps, reverse=True)
  in_label = (states % 2 == 1) & (frames < logit_len) & feasible
  path = jnp.where(in_label, states // 2, -1)
  first = jnp.full(size, len(logits)).at[jnp.where(in_label, path, size)].min(frames, mode="drop")
  first = jnp.where(length_mask(label_len, size) & feasible, first, -1)
  score = jnp.where(feasible, scores[end], -jnp.inf)
  return path.astype(jnp.int32), first.astype(jnp.int32), score


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
  feasible = jnp.isfinite(teacher.score) & jnp.isfinite(student.score)
  counted = (length_mask(label_len, labels.shape[1]) & feasible[:, None])[..., None]
  offsets = (student.first - teacher.first)[..., None]
  bins = jnp.arange(-REACH, REACH + 1)[None, None]
  return SpikeOffsets(
    histogram=((jnp.clip(offsets, -REACH, REACH) == bins) & counted).sum((0, 1), jnp.int32),
    total=jnp.where(counted, offsets, 0).sum(dtype=jnp.int32),
    utterances=(feasible & (label_len > 0)).sum(dtype=jnp.int32),
    left_out=(~feasible & (label_len > 0)).sum(dtype=jnp.int32),
  )
