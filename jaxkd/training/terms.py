"""The named terms of an update: losses, and figures that are only measured.

A new distillation loss is one function here, a line in LOSSES, and its name in config's LOSSES.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxkd import losses
from jaxkd.types import HYPOTHESES, TRANSCRIPTS, Batch, FrameOutput, WeightedSum

# What terms ask for, beside the parts of a batch.
TEACHER_FRAMES = "teacher's frames"
TEACHER_ENCODINGS = "teacher's encodings"
# The model runs on every row twice, with two draws of masks and dropout.
TWO_VIEWS = "two views"
# The two views of a row are what a model says that hears everything, and one that hears chunks.
CHUNKS_BESIDE_WHOLE = "chunks beside the whole"
# What heads behind inner layers tell.
INNER_HEADS = "inner heads"

# (teacher_logits f32[B,T,V], mask bool[B,T], key, epoch i32[]) -> bool or f32[B,T]
Selector = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
# epoch i32[], counted from 0 -> f32[]
Schedule = Callable[[jax.Array], jax.Array]


class View(NamedTuple):
  """What terms look at, in one update; what none of them asks for is None.

  With two views B is twice the rows of the batch, and rows 2 b and 2 b + 1 are views of row b.

  Attributes:
    output: of the model that is trained, whole.
    batch: audio and targets, each row as often as there are views.
    key: typed key of this update for draws in selections; all terms have the same.
    epoch: i32[], counted from 0.
    views: how often each row is there.
    student, teacher: both outputs, cut to the same frames.
    soften: the student's logits f32[B, T, V] → the teacher's at the temperature of training, where
      those of `teacher` do not tell (`teacher.stored`); None where they do.
    student_encoded, teacher_encoded: [B, T, D], what the encoders say of these frames; the
      student's is projected to the teacher's width.
    inner: the same view with the output of each inner head in the place of the model's.
  """

  output: FrameOutput
  batch: Batch
  key: jax.Array
  epoch: jax.Array
  views: int
  student: FrameOutput | None = None
  teacher: FrameOutput | None = None
  soften: Callable[[jax.Array], jax.Array] | None = None
  student_encoded: jax.Array | None = None
  teacher_encoded: jax.Array | None = None
  inner: tuple["View", ...] = ()


@dataclasses.dataclass(frozen=True)
class Term:
  """One figure of an update.

  Attributes:
    name: in the log.
    scale: of its mean in the loss, a number or a schedule; None for what is only logged.
    needs: what `compute` reads beside audio and the model's output.
    compute: a pure function of what it looks at.
  """

  name: str
  scale: float | Schedule | None
  needs: frozenset[str]
  compute: Callable[[View], WeightedSum]

  def __call__(self, view: View) -> tuple[WeightedSum, jax.Array | float]:
    """The figure, and its share of the loss; nothing at all while a schedule says 0."""
    if not callable(self.scale):
      found = self.compute(view)
      return found, 0.0 if self.scale is None else self.scale * found.mean()
    scale = self.scale(view.epoch)
    # A branch: the gradient of `where` would multiply the unused side's NaN by 0.
    found = jax.lax.cond(scale != 0, lambda: self.compute(view), WeightedSum.zero)
    return found, scale * found.mean()


def ramped(ramp: tuple, value: float) -> float | Schedule:
  """A number, or with (first, epochs) what moves there from `first` in so many epochs."""
  if not ramp:
    return value
  first, epochs = ramp
  share = lambda epoch: jnp.clip(epoch.astype(jnp.float32) / epochs, 0, 1)
  return lambda epoch: first + (value - first) * share(epoch)


def as_schedule(value: float | Schedule) -> Schedule:
  return value if callable(value) else lambda epoch: jnp.float32(value)


def times(scale: float | Schedule, factor: float) -> float | Schedule:
  return (lambda epoch: factor * scale(epoch)) if callable(scale) else factor * scale


def inner_heads(term: Term, share: float) -> Term:
  """The same of the inner heads together: intermediate CTC (Lee and Watanabe 2021), Inter-KD.

  Args:
    term: of the model's output.
    share: of the loss that they have; 1 - share is left for the term.
  """

  def compute(view: View) -> WeightedSum:
    return sum((term.compute(of_head) for of_head in view.inner), WeightedSum.zero())

  needs = term.needs | {INNER_HEADS}
  return Term(f"inner/{term.name}", times(term.scale, share), needs, compute)


def _of_frames(name: str, scale, compute, asked=frozenset()) -> Term:
  """A term of the frames of student and teacher."""
  return Term(f"kd/{name}", scale, frozenset({TEACHER_FRAMES}) | asked, compute)


def _pair(kd: ConfigDict, view: View) -> tuple[tuple[jax.Array, jax.Array], dict]:
  """Logits of student and teacher, and the options of a KL."""
  student, teacher = view.student.logits, view.teacher.logits
  if view.soften is not None:
    # What is not known has the shape of the frame that it is compared with; of several, of its own.
    delay = kd.delays[0] if len(kd.delays) == 1 else 0
    teacher = view.soften(jnp.roll(student, -delay, -2))
  temperature = ramped(kd.temperature_ramp, kd.temperature)
  temperature = temperature(view.epoch) if callable(temperature) else temperature
  return (student, teacher), dict(temperature=temperature)


def _kl(kd: ConfigDict, scale: float | Schedule, select: Selector, blank_id: int) -> Term:
  """KL between the frames that are selected, over their number or weight."""
  del blank_id
  by_labels = kd.normalization == "labels"

  def compute(view: View) -> WeightedSum:
    selected = _weights(select, view)
    pair, options = _pair(kd, view)
    if kd.delays != (0,):
      options |= dict(delays=kd.delays, softness=kd.softness, of_row=kd.delay_of == "row")
      return losses.delayed_kl(*pair, selected, view.teacher.mask, **options)
    found = losses.kd_kl(*pair, selected, **options)
    if not by_labels:
      return found
    # The divisor of the authors' code: rows times target labels, each as often as it is seen.
    rows = (view.batch.audio_len > 0).sum(dtype=jnp.float32) / view.views
    labels = jnp.maximum(view.batch.label_len, 0).sum(dtype=jnp.float32)
    return WeightedSum(found.total, rows * labels)

  return _of_frames("kl", scale, compute, frozenset({TRANSCRIPTS} if by_labels else ()))


def _split_kl(kd: ConfigDict, scale: float | Schedule, select: Selector, blank_id: int) -> Term:
  """Blank or not in every real frame, and which label in those that are selected."""

  def compute(view: View) -> WeightedSum:
    pair, options = _pair(kd, view)
    mask = view.teacher.mask
    options |= dict(delays=kd.delays, softness=kd.softness, blank_id=blank_id)
    everywhere = jnp.where(mask, kd.blank_scale, 0.0)
    return losses.split_kl(*pair, everywhere, _weights(select, view), mask, **options)

  return _of_frames("split_kl", scale, compute)


def _guided(kd: ConfigDict, scale: float | Schedule, select: Selector, blank_id: int) -> Term:
  """The student's probability of the teacher's best class in the frames that are selected."""
  del kd, blank_id

  def compute(view: View) -> WeightedSum:
    selected = _weights(select, view)
    return losses.guided_ctc(view.student.logits, view.teacher.logits, selected)

  return _of_frames("guided", scale, compute)


def _soft_ctc(kd: ConfigDict, scale: float | Schedule, select: Selector, blank_id: int) -> Term:
  """Cross-entropy to the teacher's occupancies of a transcript, in the frames that are selected."""
  target = kd.targets  # TRANSCRIPTS or HYPOTHESES

  def compute(view: View) -> WeightedSum:
    _, labels, label_len = _lengths(view, target)
    frames = view.teacher.mask.sum(-1, dtype=jnp.int32)
    occupied = losses.ctc_occupancy(
      view.teacher.logits, frames, labels, label_len, blank_id=blank_id
    )
    # Rows without a target, or without a path, are in neither sum.
    selected = _weights(select, view) * (occupied.sum(-1) != 0)
    return losses.soft_cross_entropy(view.student.logits, occupied, selected)

  return _of_frames("soft_ctc", scale, compute, frozenset({target}))


def consistency(scale: float, alone: bool) -> Term:
  """½ Σ KL(a ‖ b) + KL(b ‖ a) of two views, each as target without gradient (Yao et al. 2025).

  Over real frames, or where CTC stands alone over labels and of rows with a path, as CTC is.
  """

  def compute(view: View) -> WeightedSum:
    of_row = lambda x: x.reshape(-1, 2, *x.shape[1:])
    logits, mask = of_row(view.output.logits), of_row(view.output.mask)[:, 0]
    one, other = logits[:, 0], logits[:, 1]
    if alone:
      _, labels, label_len = _lengths(view, TRANSCRIPTS)
      counted = losses.ctc_is_feasible(mask.sum(-1), labels[::2], label_len[::2])
      mask &= counted[:, None]
      count = jnp.where(counted, label_len[::2], 0).sum(dtype=jnp.float32)
    else:
      count = mask.sum(dtype=jnp.float32)
    both = (losses.kd_kl(*pair, mask, temperature=1.0) for pair in ((one, other), (other, one)))
    return WeightedSum(sum(found.total for found in both) / 2, count)

  asked = {TWO_VIEWS, TRANSCRIPTS} if alone else {TWO_VIEWS}
  return Term("consistency", scale, frozenset(asked), compute)


def co_teacher(scale: float) -> Term:
  """KL(whole ‖ chunks): the whole teaches, without gradient (Yu et al. 2021, "Dual-mode ASR")."""

  def compute(view: View) -> WeightedSum:
    of_row = lambda x: x.reshape(-1, 2, *x.shape[1:])
    logits, mask = of_row(view.output.logits), of_row(view.output.mask)[:, 1]
    return losses.kd_kl(logits[:, 1], logits[:, 0], mask, temperature=1.0)

  return Term("co_teacher", scale, frozenset({TWO_VIEWS, CHUNKS_BESIDE_WHOLE}), compute)


def _cosine(kd: ConfigDict, scale: float | Schedule, select: Selector, blank_id: int) -> Term:
  """Distance of the encoders' outputs in all real frames."""
  del kd, select, blank_id

  def compute(view: View) -> WeightedSum:
    return losses.cosine_distance(view.student_encoded, view.teacher_encoded, view.teacher.mask)

  return Term("kd/cosine", scale, frozenset({TEACHER_FRAMES, TEACHER_ENCODINGS}), compute)


def _hypotheses(kd: ConfigDict, scale: float | Schedule, select: Selector, blank_id: int) -> Term:
  """-log p of what the teacher may have heard."""
  del kd, select
  return ctc("hypotheses", scale, HYPOTHESES, blank_id)


# `kd.loss` -> (config.kd, scale, select, blank_id) -> Term; "cosine" is the warm-up's.
LOSSES = {
  "kl": _kl,
  "split_kl": _split_kl,
  "guided": _guided,
  "soft_ctc": _soft_ctc,
  "hypotheses": _hypotheses,
  "cosine": _cosine,
}


def ctc(name: str, scale: float | Schedule, target: str, blank_id: int) -> Term:
  """-log p of a target, over its labels; rows without target or path are in neither."""

  def compute(view: View) -> WeightedSum:
    frames, labels, label_len = _lengths(view, target)
    per_row = losses.ctc_loss(view.output.logits, frames, labels, label_len, blank_id=blank_id)
    has_path = jnp.isfinite(per_row) & (label_len >= 0)
    count = jnp.where(has_path, label_len, 0).sum(dtype=jnp.float32)
    return WeightedSum(jnp.where(has_path, per_row, 0).sum(), count)

  return Term(name, scale, frozenset({target}), compute)


def _lengths(view: View, target: str) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Frames i32[B], and a target's labels i32[B, U] and their number i32[B], -1 for no target."""
  batch, frames = view.batch, view.output.mask.sum(-1, dtype=jnp.int32)
  if target == TRANSCRIPTS:
    return frames, batch.labels, batch.label_len
  return frames, batch.hypothesis, batch.hypothesis_len


def infeasible(targets: frozenset[str]) -> Term:
  """Rows without a CTC path over real rows that have a target, of all targets together.

  Each row of TRANSCRIPTS, HYPOTHESES counts once, however often it is there.
  """

  def of_one(view: View, target: str) -> WeightedSum:
    frames, labels, label_len = _lengths(view, target)
    told = label_len >= 0
    lost = told & ~losses.ctc_is_feasible(frames, labels, jnp.maximum(label_len, 0))
    # A row without audio has no labels, and so a path.
    rows = (told & view.output.mask.any(-1)).sum(dtype=jnp.float32)
    return WeightedSum(lost.sum(dtype=jnp.float32), rows)

  def compute(view: View) -> WeightedSum:
    found = sum((of_one(view, target) for target in sorted(targets)), WeightedSum.zero())
    return WeightedSum(found.total / view.views, found.weight / view.views)

  return Term("infeasible", None, targets, compute)


def selected(select: Selector, warmup: int) -> Term:
  """Selected frames, or their weights, over real frames; a warm-up selects all of them."""

  def compute(view: View) -> WeightedSum:
    weights = _weights(select, view)
    if warmup:
      weights = jnp.where(view.epoch < warmup, view.teacher.mask, weights)
    frames = view.teacher.mask.sum(dtype=jnp.float32)
    return WeightedSum(weights.sum(dtype=jnp.float32), frames)

  return Term("selected", None, frozenset({TEACHER_FRAMES}), compute)


def _weights(select: Selector, view: View) -> jax.Array:
  """bool or f32[B, T]."""
  return select(view.teacher.logits, view.teacher.mask, view.key, view.epoch)


def blank_frames(blank_id: int) -> Term:
  """Frames whose best class is the blank over real frames."""

  def compute(view: View) -> WeightedSum:
    output = view.output
    blank = (jnp.argmax(output.logits, -1) == blank_id) & output.mask
    return WeightedSum(blank.sum(dtype=jnp.float32), output.mask.sum(dtype=jnp.float32))

  return Term("blank", None, frozenset(), compute)
