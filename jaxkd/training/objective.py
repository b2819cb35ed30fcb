"""What an update minimises: named terms.

A new distillation loss is one function here, a line in LOSSES, and its name in config's LOSSES.

L = kd.scale · L_KD + (1 - kd.scale) · L_CTC + kd.consistency · L_views + kd.co_teacher · L_chunks;
in a warm-up's first epochs its loss stands in L_KD's place. With inner heads the first two are
(1 - kd.inner_scale) of the model's own and kd.inner_scale of the mean of theirs. A term whose scale
is 0 for good is not there, and nothing that only it needs is computed.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxkd import config as config_lib
from jaxkd import losses, selection
from jaxkd.models.augment import SpecAugment
from jaxkd.models.layers import Heard, draw_heard
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
# CR-CTC (Yao et al. 2025) has 2.5 times as many time masks as one view would.
_MORE_TIME_MASKS = 2.5

# (teacher_logits f32[B,T,V], mask bool[B,T], key, epoch i32[]) -> bool or f32[B,T]
Selector = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
# epoch i32[], counted from 0 -> f32[]
Schedule = Callable[[jax.Array], jax.Array]


class View(NamedTuple):
  """What terms look at, in one update; what none of them asks for is None.

  With two views B is twice the rows of the batch, and rows 2 b and 2 b + 1 are views of row b.

  Attributes:
    output: of the model that is trained, whole.
    student, teacher: both outputs, cut to the same frames.
    softened: f32[B, T, V], the teacher's logits at the temperature of training, where those of
      `teacher` do not tell (`teacher.stored`); None where they do.
    student_encoded, teacher_encoded: [B, T, D], what the encoders say of these frames; the
      student's is projected to the teacher's width.
    inner: the same view with the output of each inner head in the place of the model's.
    batch: audio and targets.
    key: typed key of this update for draws in selections; all terms have the same.
    epoch: i32[], counted from 0.
  """

  output: FrameOutput
  batch: Batch
  key: jax.Array
  epoch: jax.Array
  student: FrameOutput | None = None
  teacher: FrameOutput | None = None
  softened: jax.Array | None = None
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


@dataclasses.dataclass(frozen=True)
class Objective:
  """The loss of an update, and what the model's input goes through.

  Attributes:
    terms: with a scale: their scaled means add up to the loss.
    measures: without one: only logged.
    spec_augment: masks on the features; None for none.
    spec_augment_from_epoch: first epoch with masks.
    average_decay: of the moving average of the model's own past that is the teacher; None where the
      teacher is another model.
    chunk_frames, left_frames: of a model that learns to hear streams: what is drawn for each row,
      as in its config; () where it hears everything.
  """

  terms: tuple[Term, ...]
  measures: tuple[Term, ...] = ()
  spec_augment: SpecAugment | None = None
  spec_augment_from_epoch: int = 0
  average_decay: float | None = None
  chunk_frames: tuple[int, ...] = ()
  left_frames: tuple[int, ...] = ()

  def __post_init__(self):
    if len(set(self.names)) < len(self.names):
      raise ValueError(f"two terms have one name: {', '.join(self.names)}")

  @property
  def names(self) -> tuple[str, ...]:
    """Of all terms and measures."""
    return tuple(term.name for term in (*self.terms, *self.measures))

  @property
  def needs(self) -> frozenset[str]:
    """All that any of them asks for."""
    return frozenset().union(*(term.needs for term in (*self.terms, *self.measures)))

  @property
  def asks_teacher(self) -> bool:
    """Whether an update runs a teacher that is another model."""
    asked = not self.needs.isdisjoint({TEACHER_FRAMES, TEACHER_ENCODINGS})
    return asked and self.average_decay is None

  @property
  def views(self) -> int:
    """How often the model runs on each row."""
    return 2 if TWO_VIEWS in self.needs else 1

  def draw_heard(self, key: jax.Array, rows: int) -> Heard | None:
    """What the frames of each row hear; with CHUNKS_BESIDE_WHOLE even rows hear everything."""
    if not any(self.chunk_frames):
      return None
    beside = CHUNKS_BESIDE_WHOLE in self.needs
    return draw_heard(key, rows, self.chunk_frames, self.left_frames, beside_whole=beside)

  def __call__(self, view: View) -> tuple[jax.Array, dict[str, WeightedSum]]:
    """The loss f32[] of a global batch, and every term and measure by its name."""
    loss, found = jnp.zeros(()), {}
    for term in (*self.terms, *self.measures):
      found[term.name], share = term(view)
      loss += share
    return loss, found


def make(
  kd: ConfigDict,
  training: ConfigDict,
  *,
  blank_id: int,
  log_prior: jax.Array | None,
  average_decay: float | None = None,
  chunk_frames: tuple[int, ...] = (),
  left_frames: tuple[int, ...] = (),
) -> Objective:
  """The objective of a config.

  Args:
    kd: `config.kd`.
    training: `config.training`.
    blank_id: class of the blank.
    log_prior: f32[V] of the teacher; None where `needs_log_prior` is False.
    average_decay: of the average of the model's own past, where that is the teacher.
    chunk_frames, left_frames: of `config.student`.
  """
  masks = None
  if training.spec_augment:
    masks = SpecAugment(
      time_mask_frames=training.time_mask_frames,
      freq_mask_bins=training.freq_mask_bins,
      more_time_masks=_MORE_TIME_MASKS if kd.consistency else 1.0,
    )
  select = make_selector(kd, blank_id=blank_id, log_prior=log_prior)
  terms = _terms(kd, select, blank_id)
  wanted = Objective(terms).needs
  measures = [Term("blank", None, frozenset(), lambda view: _blank_frames(view.output, blank_id))]
  if targets := wanted & {TRANSCRIPTS, HYPOTHESES}:
    measures.append(_infeasible(targets))
  if TEACHER_FRAMES in wanted:
    measures.append(_selected(select, kd.warmup))
  return Objective(
    terms,
    tuple(measures),
    masks,
    training.spec_augment_from_epoch,
    average_decay,
    tuple(chunk_frames),
    tuple(left_frames),
  )


def needs(kd: ConfigDict) -> frozenset[str]:
  """What the objective of a `config.kd` block asks for, before there is a teacher or a label."""
  unused = lambda *args: None
  return Objective(_terms(kd, unused, blank_id=0)).needs


def needs_log_prior(kd: ConfigDict) -> bool:
  """Whether the selection of a `config.kd` block asks for the teacher's log prior."""
  return TEACHER_FRAMES in needs(kd) and kd.selection.get("prior_scale", 0.0) > 0


def speeds_heard(kd: ConfigDict, speeds) -> tuple[float, ...]:
  """Speeds at which the teacher hears the training data: as they are for hypotheses and a prior."""
  asked = needs(kd)
  heard = {float(speed) for speed in speeds} if TEACHER_FRAMES in asked else set()
  if HYPOTHESES in asked or needs_log_prior(kd):
    heard.add(1.0)
  return tuple(sorted(heard))


def _terms(kd: ConfigDict, select: Selector, blank_id: int) -> tuple[Term, ...]:
  (least, largest), terms = config_lib.scales(kd), []
  scale = _ramped(kd.scale_ramp, kd.scale)
  if largest > 0:
    scales, warmup = {kd.loss: scale}, kd.warmup
    if warmup:
      told = _as_schedule(scale)
      early = lambda epoch: jnp.where(epoch < warmup, told(epoch), 0.0)
      late = lambda epoch: jnp.where(epoch < warmup, 0.0, told(epoch))
      scales = {"cosine": early, kd.loss: late}
    terms = [LOSSES[name](kd, of_epoch, select, blank_id) for name, of_epoch in scales.items()]
  if least < 1:
    rest = (lambda epoch: 1 - scale(epoch)) if callable(scale) else 1 - scale
    terms.append(_ctc("ctc", rest, kd.ctc, blank_id))
  if inner := kd.inner_scale:
    behind = [_inner(term, inner) for term in terms]
    terms = [dataclasses.replace(term, scale=_times(term.scale, 1 - inner)) for term in terms]
    terms += behind
  if kd.consistency:
    terms.append(_consistency(kd.consistency, largest == 0))
  if kd.co_teacher:
    terms.append(_co_teacher(kd.co_teacher))
  return tuple(terms)


def _ramped(ramp: tuple, value: float) -> float | Schedule:
  """A number, or with (first, epochs) what moves there from `first` in so many epochs."""
  if not ramp:
    return value
  first, epochs = ramp
  share = lambda epoch: jnp.clip(epoch.astype(jnp.float32) / epochs, 0, 1)
  return lambda epoch: first + (value - first) * share(epoch)


def _as_schedule(value: float | Schedule) -> Schedule:
  return value if callable(value) else lambda epoch: jnp.float32(value)


def _times(scale: float | Schedule, factor: float) -> float | Schedule:
  return (lambda epoch: factor * scale(epoch)) if callable(scale) else factor * scale


def _inner(term: Term, share: float) -> Term:
  """The same of the inner heads together: intermediate CTC (Lee and Watanabe 2021), Inter-KD.

  Args:
    term: of the model's output.
    share: of the loss that they have; 1 - share is left for the term.
  """

  def compute(view: View) -> WeightedSum:
    return sum((term.compute(of_head) for of_head in view.inner), WeightedSum.zero())

  needs = term.needs | {INNER_HEADS}
  return Term(f"inner/{term.name}", _times(term.scale, share), needs, compute)


def _of_frames(name: str, scale, compute, asked=frozenset()) -> Term:
  """A term of the frames of student and teacher."""
  return Term(f"kd/{name}", scale, frozenset({TEACHER_FRAMES}) | asked, compute)


def _pair(kd: ConfigDict, view: View) -> tuple[tuple[jax.Array, jax.Array], dict]:
  """Logits of student and teacher, and the options of a KL."""
  teacher = view.teacher.logits if view.softened is None else view.softened
  temperature = _ramped(kd.temperature_ramp, kd.temperature)
  temperature = temperature(view.epoch) if callable(temperature) else temperature
  return (view.student.logits, teacher), dict(temperature=temperature)


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
    # The divisor of the authors' code: rows times target labels.
    rows = (view.batch.audio_len > 0).sum(dtype=jnp.float32)
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


def _consistency(scale: float, alone: bool) -> Term:
  """½ Σ KL(a ‖ b) + KL(b ‖ a) of two views, each as target without gradient (Yao et al. 2025).

  Over real frames, or where CTC stands alone over labels, as CTC is.
  """

  def compute(view: View) -> WeightedSum:
    of_row = lambda x: x.reshape(-1, 2, *x.shape[1:])
    logits, mask = of_row(view.output.logits), of_row(view.output.mask)[:, 0]
    one, other = logits[:, 0], logits[:, 1]
    both = (losses.kd_kl(*pair, mask, temperature=1.0) for pair in ((one, other), (other, one)))
    total = sum(found.total for found in both) / 2
    if alone:
      count = jnp.maximum(view.batch.label_len, 0).sum(dtype=jnp.float32) / 2
    else:
      count = mask.sum(dtype=jnp.float32)
    return WeightedSum(total, count)

  asked = {TWO_VIEWS, TRANSCRIPTS} if alone else {TWO_VIEWS}
  return Term("consistency", scale, frozenset(asked), compute)


def _co_teacher(scale: float) -> Term:
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
  return _ctc("hypotheses", scale, HYPOTHESES, blank_id)


# `kd.loss` -> (config.kd, scale, select, blank_id) -> Term; "cosine" is the warm-up's.
LOSSES = {
  "kl": _kl,
  "split_kl": _split_kl,
  "guided": _guided,
  "soft_ctc": _soft_ctc,
  "hypotheses": _hypotheses,
  "cosine": _cosine,
}


def _ctc(name: str, scale: float | Schedule, target: str, blank_id: int) -> Term:
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


def _infeasible(targets: frozenset[str]) -> Term:
  """Rows without a CTC path over real rows that have a target, of all targets together."""

  def of_one(view: View, target: str) -> WeightedSum:
    frames, labels, label_len = _lengths(view, target)
    told = label_len >= 0
    lost = told & ~losses.ctc_is_feasible(frames, labels, jnp.maximum(label_len, 0))
    # A row without audio has no labels, and so a path.
    rows = (told & view.output.mask.any(-1)).sum(dtype=jnp.float32)
    return WeightedSum(lost.sum(dtype=jnp.float32), rows)

  def compute(view: View) -> WeightedSum:
    return sum((of_one(view, target) for target in sorted(targets)), WeightedSum.zero())

  return Term("infeasible", None, targets, compute)


def _selected(select: Selector, warmup: int) -> Term:
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


def _blank_frames(output: FrameOutput, blank_id: int) -> WeightedSum:
  """Frames whose best class is the blank over real frames."""
  blank = (jnp.argmax(output.logits, -1) == blank_id) & output.mask
  return WeightedSum(blank.sum(dtype=jnp.float32), output.mask.sum(dtype=jnp.float32))


def make_selector(kd: ConfigDict, *, blank_id: int, log_prior: jax.Array | None) -> Selector:
  """The selection of a `config.kd` block with its schedule.

  Before `start_epoch` and from `stop_epoch` on every frame is selected (the paper's "delayed");
  with `grow_epochs`, n is multiplied by epoch // grow_epochs (the paper's "growing"), epochs
  counted from 0. With `n_ramp`, n moves to its value, rounded down.
  """
  fields = dict(kd.selection)
  name = fields.pop("name")
  pattern = getattr(selection, name)
  start, stop, grow = kd.start_epoch, kd.stop_epoch, kd.grow_epochs

  ramp = kd.n_ramp

  def select(logits, mask, key, epoch):
    options = dict(fields)
    if ramp:
      options["n"] = jnp.floor(_ramped(ramp, float(options["n"]))(epoch)).astype(jnp.int32)
    if grow:
      options = {field: value * (epoch // grow) for field, value in options.items()}
    if name == "random_blanks":
      options["key"] = key
    if log_prior is not None:
      options["log_prior"] = log_prior
    chosen = pattern(logits, mask, blank_id=blank_id, **options)
    active = (epoch >= start) & ((epoch < stop) if stop else True)
    return jnp.where(active, chosen, mask)

  return select
