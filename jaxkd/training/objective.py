"""What an update minimises: named terms (`jaxkd.training.terms`).

L = kd.scale · L_KD + (1 - kd.scale) · L_CTC + kd.consistency · L_views + kd.co_teacher · L_chunks;
in a warm-up's first epochs its loss stands in L_KD's place. With inner heads the first two are
(1 - kd.inner_scale) of the model's own and kd.inner_scale of the mean of theirs. A term whose scale
is 0 for good is not there, and nothing that only it needs is computed.
"""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxkd import config as config_lib
from jaxkd import selection
from jaxkd.models.augment import SpecAugment
from jaxkd.models.layers import Heard, draw_heard
from jaxkd.training import terms as terms_lib
from jaxkd.training.terms import (
  CHUNKS_BESIDE_WHOLE,
  LOSSES,
  TEACHER_ENCODINGS,
  TEACHER_FRAMES,
  TWO_VIEWS,
  Selector,
  Term,
  View,
)
from jaxkd.types import HYPOTHESES, TRANSCRIPTS, WeightedSum

# CR-CTC (Yao et al. 2025) has 2.5 times as many time masks as one view would.
_MORE_TIME_MASKS = 2.5


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
    """Names of all terms and measures."""
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
  measures = [terms_lib.blank_frames(blank_id)]
  if targets := wanted & {TRANSCRIPTS, HYPOTHESES}:
    measures.append(terms_lib.infeasible(targets))
  if TEACHER_FRAMES in wanted:
    measures.append(terms_lib.selected(select, kd.warmup))
  return Objective(
    terms,
    tuple(measures),
    masks,
    training.spec_augment_from_epoch,
    average_decay,
    tuple(chunk_frames),
    tuple(left_frames),
  )


def of_config(config: ConfigDict, *, blank_id: int, log_prior: jax.Array | None) -> Objective:
  """The objective of a run's config; arguments as for `make`."""
  decay = config_lib.average_decay(config.teacher)
  if decay is not None:
    decay **= 1 / config.training.accumulate  # the step knows batches, of which an update has many
  return make(
    config.kd,
    config.training,
    blank_id=blank_id,
    log_prior=log_prior,
    average_decay=decay,
    chunk_frames=config.student.get("chunk_frames", ()),
    left_frames=config.student.get("left_frames", ()),
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
  scale = terms_lib.ramped(kd.scale_ramp, kd.scale)
  if largest > 0:
    scales, warmup = {kd.loss: scale}, kd.warmup
    if warmup:
      told = terms_lib.as_schedule(scale)
      early = lambda epoch: jnp.where(epoch < warmup, told(epoch), 0.0)
      late = lambda epoch: jnp.where(epoch < warmup, 0.0, told(epoch))
      scales = {"cosine": early, kd.loss: late}
    terms = [LOSSES[name](kd, of_epoch, select, blank_id) for name, of_epoch in scales.items()]
  if least < 1:
    rest = (lambda epoch: 1 - scale(epoch)) if callable(scale) else 1 - scale
    terms.append(terms_lib.ctc("ctc", rest, kd.ctc, blank_id))
  if inner := kd.inner_scale:
    behind = [terms_lib.inner_heads(term, inner) for term in terms]
    terms = [
      dataclasses.replace(term, scale=terms_lib.times(term.scale, 1 - inner)) for term in terms
    ]
    terms += behind
  if kd.consistency:
    terms.append(terms_lib.consistency(kd.consistency, largest == 0))
  if kd.co_teacher:
    terms.append(terms_lib.co_teacher(kd.co_teacher))
  return tuple(terms)


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
      # In whole numbers: a float32 quotient may lie just below the step that it should be on.
      first, epochs = ramp
      options["n"] = first + (options["n"] - first) * jnp.clip(epoch, 0, epochs) // epochs
    if grow:
      options = {field: value * (epoch // grow) for field, value in options.items()}
    if name in ("random_blanks", "shuffled"):
      options["key"] = key
    if log_prior is not None:
      options["log_prior"] = log_prior
    chosen = pattern(logits, mask, blank_id=blank_id, **options)
    active = (epoch >= start) & ((epoch < stop) if stop else True)
    return jnp.where(active, chosen, mask)

  return select
