"""The objective, one update and one evaluation step."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxkd import losses
from jaxkd.devices import sharding
from jaxkd.inference.search.greedy import best_path
from jaxkd.models.augment import SpecAugment
from jaxkd.types import Batch, FrameOutput, WeightedSum

# (teacher_logits f32[B,T,V], mask bool[B,T], key, epoch i32[]) -> bool or f32[B,T]
Selector = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
  """L = scale · L_KD + (1 - scale) · L_CTC, and what the student's input goes through.

  Attributes:
    scale: of the distillation loss; at 1 no label is read, at 0 no teacher is asked.
    temperature: of both softmaxes in the distillation loss.
    select: which frames carry it; None where no frame does, and the teacher is not asked.
    blank_id: class of the blank.
    spec_augment: masks on the student's features; None for none.
    spec_augment_from_epoch: first epoch with masks.
    by_labels: the divisor of the KL is rows · target labels, as in the authors' code, not the
      number of selected frames.
    warmup_epochs: first epochs, in which the cosine distance of encoder outputs takes the KL's
      place.
    hypotheses: -log p of the batch's hypotheses takes the KL's place.
  """

  scale: float
  temperature: float
  select: Selector | None
  blank_id: int
  spec_augment: SpecAugment | None
  spec_augment_from_epoch: int
  by_labels: bool = False
  warmup_epochs: int = 0
  hypotheses: bool = False


class Terms(NamedTuple):
  """What one or more updates did; each a WeightedSum over the global batch.

  Attributes:
    loss: the objective, once an update.
    kd: T²·KL over selected frames, or what takes its place.
    ctc: -log p of feasible rows over target labels.
    selected: selected frames, or their weights, over real frames.
    infeasible: rows without a CTC path over real rows; with hypotheses both targets are counted.
    blank: frames that the student calls blank over real frames.
    grad_norm: global gradient norm before clipping, once an update.
    skipped: updates whose loss or gradient was no finite number; they are in no other term.
  """

  loss: WeightedSum
  kd: WeightedSum
  ctc: WeightedSum
  selected: WeightedSum
  infeasible: WeightedSum
  blank: WeightedSum
  grad_norm: WeightedSum
  skipped: WeightedSum

  @classmethod
  def zero(cls) -> "Terms":
    return cls(*(WeightedSum(jnp.zeros(()), jnp.zeros(())) for _ in cls._fields))


class TrainState(NamedTuple):
  """All that an update changes.

  Attributes:
    params, opt_state: the student's.
    step: i32[], updates so far, skipped ones too.
    terms: added up since the last log line.
    last_skipped: i32[], the newest skipped step, counted from 0; -1 for none.
  """

  params: nnx.State
  opt_state: optax.OptState
  step: jax.Array
  terms: Terms
  last_skipped: jax.Array

  @classmethod
  def fresh(cls, params, opt_state) -> "TrainState":
    """Before the first update."""
    return cls(params, opt_state, jnp.int32(0), Terms.zero(), jnp.int32(-1))


class Predictions(NamedTuple):
  """What one evaluation step says; all after the student's are None where there is no teacher.

  Attributes:
    student_path: i32[B, T], best path, blank in padding.
    student_blank: frames that the student calls blank over real frames.
    teacher_path, teacher_blank: the same of the teacher.
    kl: KL (T = 1) over all real frames.
    aligned: outputs of teacher and student, cut to the same frames.
  """

  student_path: jax.Array
  student_blank: WeightedSum
  teacher_path: jax.Array | None = None
  teacher_blank: WeightedSum | None = None
  kl: WeightedSum | None = None
  aligned: tuple[FrameOutput, FrameOutput] | None = None


def align(a: FrameOutput, b: FrameOutput) -> tuple[FrameOutput, FrameOutput]:
  """Cuts two outputs of the same audio to the shorter one, in array and in mask.

  Strides and padding conventions let frame counts differ by one now and then.
  """
  size = min(a.mask.shape[1], b.mask.shape[1])
  mask = a.mask[:, :size] & b.mask[:, :size]
  return FrameOutput(a.logits[:, :size], mask), FrameOutput(b.logits[:, :size], mask)


def distill_loss(
  student: nnx.Module,
  teacher_out: FrameOutput | None,
  batch: Batch,
  key: jax.Array,
  epoch: jax.Array,
  objective: Objective,
  teacher_encoded: jax.Array | None = None,
) -> tuple[jax.Array, Terms]:
  """The objective of one global batch and its terms; grad_norm is left empty.

  Args:
    student: (audio, audio_len, key, spec_augment, augment_on) -> FrameOutput; for a warm-up also
      with `encode`, `classify` and `projection`.
    teacher_out: the teacher's logits f32[B, T, V] and mask; None where it is not asked.
    batch: audio, labels where scale < 1, and hypotheses where they are learnt from.
    key: typed key of this update.
    epoch: i32[].
    objective: scale, temperature, selection.
    teacher_encoded: the teacher's encoder output [B, T, D] for a warm-up, else None.

  Returns:
    f32[] and Terms.
  """
  model_key, select_key = jax.random.split(key)
  inputs = dict(
    key=model_key,
    spec_augment=objective.spec_augment,
    augment_on=epoch >= objective.spec_augment_from_epoch,
  )
  encoded = None
  if objective.warmup_epochs:
    encoded, mask = student.encode(batch.audio, batch.audio_len, **inputs)
    out = student.classify(encoded, mask)
    encoded = student.projection(encoded)
  else:
    out = student(batch.audio, batch.audio_len, **inputs)
  terms = Terms.zero()._replace(blank=_blank_rate(out, objective.blank_id))
  if objective.hypotheses:
    kd, infeasible = _ctc(out, batch.hypothesis, batch.hypothesis_len, objective.blank_id)
    terms = terms._replace(kd=kd, infeasible=infeasible)
  elif objective.scale > 0:
    teacher, student_out = align(teacher_out, out)
    kd, weights = _by_frames(objective, student_out, teacher, batch, select_key, epoch)
    if objective.warmup_epochs:
      kd, weights = _warmup(objective, epoch, encoded, teacher_encoded, teacher, kd, weights)
    frames = teacher.mask.sum(dtype=jnp.float32)
    terms = terms._replace(kd=kd, selected=WeightedSum(weights.sum(dtype=jnp.float32), frames))
  loss = objective.scale * terms.kd.mean()
  if objective.scale < 1:
    ctc, infeasible = _ctc(out, batch.labels, batch.label_len, objective.blank_id)
    terms = terms._replace(ctc=ctc, infeasible=terms.infeasible + infeasible)
    loss += (1 - objective.scale) * ctc.mean()
  return loss, terms._replace(loss=WeightedSum(loss, jnp.ones(())))


def _by_frames(objective, student: FrameOutput, teacher: FrameOutput, batch, key, epoch):
  """The KL over selected frames, and what selects them, bool or f32[B, T]."""
  selected = objective.select(teacher.logits, teacher.mask, key, epoch)
  kd = losses.kd_kl(student.logits, teacher.logits, selected, temperature=objective.temperature)
  if objective.by_labels:
    rows = (batch.audio_len > 0).sum(dtype=jnp.float32)
    kd = WeightedSum(kd.total, rows * batch.label_len.sum(dtype=jnp.float32))
  return kd, selected


def _warmup(objective, epoch, encoded, teacher_encoded, teacher: FrameOutput, kd, selected):
  """Distance of all real frames in the first epochs, and from then on `kd` and `selected`."""
  size = teacher.mask.shape[1]
  distance = losses.cosine_distance(encoded[:, :size], teacher_encoded[:, :size], teacher.mask)
  early = epoch < objective.warmup_epochs
  choose = lambda a, b: jnp.where(early, a, b)
  return jax.tree.map(choose, distance, kd), choose(teacher.mask, selected)


def _ctc(out: FrameOutput, labels, label_len, blank_id: int) -> tuple[WeightedSum, WeightedSum]:
  """-log p summed over feasible rows, over all target labels; infeasible rows over real rows."""
  frames = out.mask.sum(-1, dtype=jnp.int32)
  per_row = losses.ctc_loss(out.logits, frames, labels, label_len, blank_id=blank_id)
  feasible = jnp.isfinite(per_row)
  total = jnp.where(feasible, per_row, 0).sum()
  # A row without audio has no labels, and so a path.
  rows = out.mask.any(-1).sum(dtype=jnp.float32)
  return (
    WeightedSum(total, label_len.sum(dtype=jnp.float32)),
    WeightedSum((~feasible).sum(dtype=jnp.float32), rows),
  )


def _blank_rate(out: FrameOutput, blank_id: int) -> WeightedSum:
  blank = (jnp.argmax(out.logits, -1) == blank_id) & out.mask
  return WeightedSum(blank.sum(dtype=jnp.float32), out.mask.sum(dtype=jnp.float32))


def make_train_step(
  graphdef, teacher_graphdef, objective: Objective, optimizer, *, mesh=None, state_shardings=None
):
  """One update as a jitted function, one executable a batch shape.

  Args:
    graphdef: the student's structure (`nnx.split`).
    teacher_graphdef: the teacher's, or None where it is not asked.
    objective: the loss.
    optimizer: an optax transformation over the student's parameters.
    mesh: of the arguments; layers are gathered on it one at a time. None for one device.
    state_shardings: of the new state, those of the old one; None where the compiler may choose.

  Returns:
    (state, teacher_params, batch, epoch i32[], run_key) -> state. The update's key is
    fold_in(run_key, state.step), so a resumed run draws what it would have drawn.
  """

  def loss_fn(params, taught, batch, key, epoch):
    student, (teacher_out, encoded) = nnx.merge(graphdef, params), taught
    return distill_loss(student, teacher_out, batch, key, epoch, objective, encoded)

  def teach(teacher_params, batch):
    """The teacher's output, and its encoder's where the objective compares that."""
    teacher = nnx.merge(teacher_graphdef, teacher_params)
    if not objective.warmup_epochs:
      return teacher(batch.audio, batch.audio_len), None
    encoded, mask = teacher.encode(batch.audio, batch.audio_len)
    return teacher.classify(encoded, mask), encoded

  def update(state: TrainState, teacher_params, batch: Batch, epoch, run_key) -> TrainState:
    with sharding.on(mesh):
      return one_update(state, teacher_params, batch, epoch, run_key)

  def one_update(state, teacher_params, batch, epoch, run_key):
    taught = (None, None) if teacher_graphdef is None else teach(teacher_params, batch)
    key = jax.random.fold_in(run_key, state.step)
    grads, terms = jax.grad(loss_fn, has_aux=True)(state.params, taught, batch, key, epoch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    norm, one = optax.tree.norm(grads), jnp.ones(())
    finite = jnp.isfinite(terms.loss.total) & jnp.isfinite(norm)
    terms = terms._replace(grad_norm=WeightedSum(norm, one))
    chosen = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    terms = chosen(terms, Terms.zero())._replace(skipped=WeightedSum(1 - one * finite, one))
    summed = Terms(*(a + b for a, b in zip(state.terms, terms, strict=True)))
    params = optax.apply_updates(state.params, updates)
    return TrainState(
      chosen(params, state.params),
      chosen(opt_state, state.opt_state),
      state.step + 1,
      summed,
      jnp.where(finite, state.last_skipped, state.step),
    )

  return jax.jit(update, donate_argnums=0, out_shardings=state_shardings)


def make_eval_step(graphdef, teacher_graphdef, *, blank_id: int, mesh=None):
  """Best paths, blank statistics and logits of student and teacher, jitted.

  Args:
    graphdef, teacher_graphdef: structures (`nnx.split`); the teacher's may be None.
    blank_id: class of the blank.
    mesh: of the arguments: what has rows stays split by them, sums are on every device.

  Returns:
    (params, teacher_params, batch) -> Predictions.
  """

  def predict(params, teacher_params, batch: Batch) -> Predictions:
    with sharding.on(mesh):
      return all_of(params, teacher_params, batch)

  def of_one(out: FrameOutput):
    return best_path(out.logits, out.mask, blank_id=blank_id), _blank_rate(out, blank_id)

  def all_of(params, teacher_params, batch):
    student = nnx.merge(graphdef, params)(batch.audio, batch.audio_len)
    if teacher_graphdef is None:
      return Predictions(*of_one(student))
    teacher = nnx.merge(teacher_graphdef, teacher_params)(batch.audio, batch.audio_len)
    cut_teacher, cut = aligned = align(teacher, student)
    kl = losses.kd_kl(cut.logits, cut_teacher.logits, cut.mask, temperature=1.0)
    return Predictions(*of_one(student), *of_one(teacher), kl, aligned)

  if mesh is None:
    return jax.jit(predict)
  rows, everywhere = sharding.split_rows(mesh), sharding.replicated(mesh)
  where = Predictions(rows, everywhere)
  if teacher_graphdef is not None:
    where = Predictions(rows, everywhere, rows, everywhere, everywhere, rows)
  return jax.jit(predict, out_shardings=where)
