"""One update. What is minimised is the objective's affair."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxkd.devices import sharding
from jaxkd.masks import same_frames
from jaxkd.teacher import store, stored
from jaxkd.training.objective import Objective
from jaxkd.training.terms import INNER_HEADS, TEACHER_ENCODINGS, View
from jaxkd.types import Batch, FrameOutput, WeightedSum


class TrainState(NamedTuple):
  """All that an update changes.

  Attributes:
    params, opt_state: of the model that is trained.
    step: i32[], updates so far, skipped ones too.
    terms: name → what one or more updates did, summed over the global batch, since the last log
      line: all that the objective names, and
      loss: the objective, once an update;
      grad_norm: global gradient norm before clipping, once an update;
      skipped: updates whose loss or gradient was no finite number; they are in no other term.
    last_skipped: i32[], the newest skipped step, counted from 0; -1 for none.
    average: the moving average of `params` over updates, where that is the teacher, else None.
  """

  params: nnx.State
  opt_state: optax.OptState
  step: jax.Array
  terms: dict[str, WeightedSum]
  last_skipped: jax.Array
  average: nnx.State | None = None

  @classmethod
  def fresh(cls, params, opt_state, objective: Objective) -> "TrainState":
    """Before the first update, of arrays or of their shapes."""
    names = ("loss", *objective.names, "grad_norm", "skipped")
    terms = {name: WeightedSum.zero() for name in names}
    average = None
    if objective.average_decay is not None:
      # An update is given the state's buffers to write in, each of them once.
      average = jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, params)
    return cls(params, opt_state, jnp.int32(0), terms, jnp.int32(-1), average)


class Taught(NamedTuple):
  """What a teacher says of a batch.

  Attributes:
    output: its frames.
    encoded: [B, T, D], its encoder's output; None where that is not asked for.
    soften: student's logits f32[B, T, V] → the teacher's at the temperature of training; None where
      `output` has them.
  """

  output: FrameOutput
  encoded: jax.Array | None = None
  soften: Callable[[jax.Array], jax.Array] | None = None


def teach(teacher: nnx.Module, batch: Batch, needs: frozenset[str]) -> Taught:
  """What a teacher that runs says of a batch, with its encodings where these are asked for."""
  if TEACHER_ENCODINGS not in needs:
    return Taught(teacher(batch.audio, batch.audio_len))
  encoded, mask = teacher.encode(batch.audio, batch.audio_len)
  return Taught(teacher.classify(encoded, mask), encoded)


def twice(tree):
  """Each row of the arrays two times in a row, for two views of it; devices keep their rows."""
  return jax.tree.map(lambda x: jnp.repeat(x, 2, 0), tree)


def retell(batch: Batch, settings: store.Settings) -> Taught:
  """What a stored teacher said of a batch."""
  soften = functools.partial(stored.softened, batch.taught, settings)
  output = stored.as_logits(batch.taught, settings)
  return Taught(output, soften=None if settings.exact else soften)


def observe(
  model: nnx.Module,
  taught: Taught | None,
  batch: Batch,
  key: jax.Array,
  epoch: jax.Array,
  objective: Objective,
) -> View:
  """Runs the model on a global batch, in training mode, and lays out what the terms look at.

  Args:
    model: (audio, audio_len, key, spec_augment, augment_on) -> FrameOutput, with `heard` where it
      learns to hear streams; where encodings are asked for also with `encode`, `classify` and
      `projection`, where inner heads are, with `with_inner`.
    taught: what the teacher says of the batch; None where the teacher is not asked.
    batch: with the fields that the objective needs, each row as often as there are views.
    key: typed key of this update.
    epoch: i32[].
    objective: what it needs, and masks on the features.
  """
  model_key, select_key = jax.random.split(key)
  inputs = dict(
    key=model_key,
    spec_augment=objective.spec_augment,
    augment_on=epoch >= objective.spec_augment_from_epoch,
  )
  heard = objective.draw_heard(jax.random.fold_in(key, 2), batch.audio.shape[0])
  if heard is not None:
    inputs["heard"] = heard
  encoded, inner = None, []
  if INNER_HEADS in objective.needs:
    output, inner = model.with_inner(batch.audio, batch.audio_len, **inputs)
  elif TEACHER_ENCODINGS in objective.needs:
    encoded, mask = model.encode(batch.audio, batch.audio_len, **inputs)
    output = model.classify(encoded, mask)
    encoded = model.projection(encoded)
  else:
    output = model(batch.audio, batch.audio_len, **inputs)
  view = View(output, batch, select_key, epoch, objective.views)
  if taught is None:
    return view._replace(inner=tuple(view._replace(output=x) for x in inner))
  view = _beside(view, taught)
  cut = lambda x: None if x is None else x[:, : view.teacher.mask.shape[1]]
  return view._replace(
    student_encoded=cut(encoded),
    teacher_encoded=cut(taught.encoded),
    inner=tuple(_beside(view._replace(output=x), taught) for x in inner),
  )


def _beside(view: View, taught: Taught) -> View:
  """The view with its output and the teacher's cut to the same frames."""
  teacher, student = same_frames(taught.output, view.output)
  return view._replace(student=student, teacher=teacher, soften=taught.soften)


def make_train_step(
  graphdef,
  teacher_graphdef,
  objective: Objective,
  optimizer,
  *,
  stored_as: store.Settings | None = None,
  mesh=None,
  state_shardings=None,
):
  """One update as a jitted function, one executable a batch shape.

  Args:
    graphdef: the structure of the model that is trained (`nnx.split`).
    teacher_graphdef: the teacher's; not used where the objective does not ask it.
    objective: the loss.
    optimizer: an optax transformation over the model's parameters.
    stored_as: of the stored teacher whose frames are in the batch; None for one that runs.
    mesh: of the arguments; layers are gathered on it one at a time. None for one device.
    state_shardings: of the new state, those of the old one; None where the compiler may choose.

  Returns:
    (state, teacher_params, batch, epoch i32[], run_key) -> state. The update's key is
    fold_in(run_key, state.step), so a resumed run draws what it would have drawn.
  """

  def loss_fn(params, taught, batch, key, epoch):
    model = nnx.merge(graphdef, params)
    return objective(observe(model, taught, batch, key, epoch, objective))

  def update(state: TrainState, teacher_params, batch: Batch, epoch, run_key) -> TrainState:
    with sharding.on(mesh):
      return one_update(state, teacher_params, batch, epoch, run_key)

  def one_update(state, teacher_params, batch, epoch, run_key):
    taught, views = None, twice(batch) if objective.views == 2 else batch
    if objective.asks_teacher and stored_as is not None:
      taught = retell(views, stored_as)
    elif objective.asks_teacher or state.average is not None:
      own = graphdef, state.average
      asked = (teacher_graphdef, teacher_params) if state.average is None else own
      taught = teach(nnx.merge(*asked), batch, objective.needs)
      if objective.views == 2:  # the teacher hears each row once
        taught = Taught(twice(taught.output), twice(taught.encoded))
    key = jax.random.fold_in(run_key, state.step)
    of_params = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, terms), grads = of_params(state.params, taught, views, key, epoch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    norm, one = optax.tree.norm(grads), jnp.ones(())
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    chosen = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    terms |= {"loss": WeightedSum(loss, one), "grad_norm": WeightedSum(norm, one)}
    terms = {name: chosen(found, WeightedSum.zero()) for name, found in terms.items()}
    terms["skipped"] = WeightedSum(1 - one * finite, one)
    params = chosen(optax.apply_updates(state.params, updates), state.params)
    average = state.average
    if average is not None:
      # In the first updates shorter: what was drawn at random is no teacher.
      seen = state.step.astype(jnp.float32)
      decay = jnp.minimum(objective.average_decay, (1 + seen) / (10 + seen))
      average = optax.incremental_update(params, average, 1 - decay)
    return TrainState(
      params,
      chosen(opt_state, state.opt_state),
      state.step + 1,
      {name: summed + terms[name] for name, summed in state.terms.items()},
      jnp.where(finite, state.last_skipped, state.step),
      average,
    )

  return jax.jit(update, donate_argnums=0, out_shardings=state_shardings)
