"""The objective on a model that is one matrix, and updates of a small Conformer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

import eight_devices
import objectives
import reference
from jaxkd import selection
from jaxkd.devices import mesh, sharding
from jaxkd.masks import length_mask, same_frames, strided_len
from jaxkd.models.conformer import ConformerConfig, ConformerCTC
from jaxkd.models.features import LogMel
from jaxkd.training import optim
from jaxkd.training import step as step_lib
from jaxkd.training.objective import Objective
from jaxkd.training.terms import TEACHER_FRAMES, Term
from jaxkd.types import Batch, FrameOutput, WeightedSum

pytestmark = pytest.mark.usefixtures("quick_to_compile")

CLASSES, BLANK, SAMPLES, FRAME = 5, 4, 9600, 640


class Matrix(nnx.Module):
  """Frames of 640 samples times a matrix: a model without neighbours, noise or masks."""

  def __init__(self, seed: int):
    self.kernel = nnx.Param(0.1 * jax.random.normal(jax.random.key(seed), (FRAME, CLASSES)))

  def __call__(self, audio, audio_len, *, key=None, spec_augment=None, augment_on=True):
    del key, spec_augment, augment_on
    frames = audio.reshape(len(audio), -1, FRAME) / 32768
    mask = length_mask(strided_len(audio_len, FRAME), frames.shape[1])
    return FrameOutput(frames @ self.kernel[...], mask)


def make_batch(rows=6, seed=0):
  """i16 noise of 1 to 15 frames, the padding included, with labels that fit."""
  rng = np.random.default_rng(seed)
  audio = rng.integers(-(2**15), 2**15, (rows, SAMPLES)).astype(np.int16)
  audio_len = rng.integers(FRAME, SAMPLES + 1, rows).astype(np.int32)
  audio_len[0] = SAMPLES
  labels = rng.integers(0, CLASSES - 1, (rows, 4)).astype(np.int32)
  label_len = np.minimum(4, audio_len // FRAME // 2).astype(np.int32)
  return Batch(audio, audio_len, labels, label_len)


SELECTIONS = {
  "symmetric": dict(name="symmetric", n=1),
  "random": dict(name="random_blanks", ratio=0.5),
}


def make_objective(scale, select="symmetric", **options):
  return objectives.make(BLANK, scale=scale, selection=SELECTIONS[select], **options)


@functools.partial(jax.jit, static_argnames=("scale", "select"))
def loss_and_grad(batch, scale, select="symmetric", seed=0):
  """Loss, terms and the gradient f32[640, V] of a Matrix with a Matrix as teacher."""
  return of_objective(make_objective(scale, select), batch, jax.random.key(seed))


def of_objective(objective, batch, key, epoch=0):
  graphdef, params = nnx.split(Matrix(1))
  taught = step_lib.teach(Matrix(2), batch, objective.needs) if objective.asks_teacher else None

  def loss_fn(params):
    model = nnx.merge(graphdef, params)
    return objective(step_lib.observe(model, taught, batch, key, jnp.int32(epoch), objective))

  (loss, terms), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
  return loss, terms, grads["kernel"][...]


def assert_same(a, b, **tolerance):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, **(tolerance or {"rtol": 1e-6, "atol": 1e-7}))


def test_outputs_are_cut_to_the_shorter():
  logits = np.random.default_rng(0).normal(size=(2, 6, 3))
  a = FrameOutput(logits, np.arange(6) < np.array([[6], [4]]))
  b = FrameOutput(-logits[:, :5], np.arange(5) < np.array([[5], [3]]))
  for first, second in ((a, b), (b, a)):
    out = same_frames(first, second)
    for cut, whole in zip(out, (first, second), strict=True):
      np.testing.assert_array_equal(cut.logits, whole.logits[:, :5])
      np.testing.assert_array_equal(cut.mask.sum(1), [5, 3])


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_loss_is_the_weighted_sum_of_means(scale):
  batch = make_batch()
  loss, terms, _ = loss_and_grad(batch, scale)
  student, teacher = (Matrix(s)(batch.audio, batch.audio_len) for s in (1, 2))
  frames = np.asarray(student.mask.sum(1))
  kd = ctc = 0.0
  if scale > 0:
    selected = np.asarray(selection.symmetric(teacher.logits, teacher.mask, blank_id=BLANK, n=1))
    logits = (np.asarray(x.logits) for x in (student, teacher))
    total, weight = reference.kd_kl(*logits, selected, 2.0)
    kd = total / weight
    assert_same(terms["kd/kl"], (total, weight), rtol=1e-4)
    assert_same(terms["selected"], (weight, frames.sum()))
    assert 0 < weight < frames.sum()
  if scale < 1:
    rows = [
      reference.ctc_forward(x[:t], y[:u], BLANK)
      for x, t, y, u in zip(student.logits, frames, batch.labels, batch.label_len, strict=True)
    ]
    ctc = sum(rows) / batch.label_len.sum()
    assert_same(terms["ctc"], (sum(rows), batch.label_len.sum()), rtol=1e-4)
    assert_same(terms["infeasible"], (0, 6))
  np.testing.assert_allclose(loss, scale * kd + (1 - scale) * ctc, rtol=1e-4)
  blank = (np.asarray(student.logits).argmax(-1) == BLANK) & np.asarray(student.mask)
  assert_same(terms["blank"], (blank.sum(), frames.sum()))


def test_labels_are_never_read_at_scale_one():
  batch = make_batch()
  expected = loss_and_grad(batch, 1.0)
  assert expected[2].any() and set(expected[1]) == {"kd/kl", "selected", "blank"}
  none = batch._replace(labels=None, label_len=None)
  garbage = batch._replace(
    labels=np.full((6, 4), 10**9, np.int32), label_len=np.full(6, -(10**9), np.int32)
  )
  for other in (none, garbage):
    assert_same(loss_and_grad(other, 1.0), expected, rtol=0)


def test_no_teacher_is_asked_at_scale_zero():
  loss, terms, gradient = loss_and_grad(make_batch(), 0.0)
  assert np.isfinite(loss) and gradient.any()
  assert set(terms) == {"ctc", "infeasible", "blank"}


def test_infeasible_rows_are_counted_and_in_no_mean():
  batch = make_batch()
  feasible = np.array([True, True, False, True, False, True])
  audio_len = np.where(feasible, batch.audio_len, 2 * FRAME).astype(np.int32)
  label_len = np.where(feasible, batch.label_len, 3).astype(np.int32)
  batch = batch._replace(audio_len=audio_len, label_len=label_len)
  loss, terms, gradient = loss_and_grad(batch, 0.0)
  assert_same(terms["infeasible"], (2, 6))
  assert_same(terms["ctc"].weight, label_len[feasible].sum())
  # The same rows with nothing but silence in their place, which trains nothing.
  silent = batch._replace(
    audio_len=np.where(feasible, audio_len, 0).astype(np.int32),
    label_len=np.where(feasible, label_len, 0).astype(np.int32),
  )
  expected_loss, expected, expected_gradient = loss_and_grad(silent, 0.0)
  assert_same(terms["ctc"], expected["ctc"])
  assert_same((loss, gradient), (expected_loss, expected_gradient), rtol=1e-5, atol=1e-6)
  # All of them.
  nothing = batch._replace(label_len=np.full(6, 9, np.int32))
  loss, terms, gradient = loss_and_grad(nothing, 0.0)
  assert float(loss) == 0 and not gradient.any() and float(terms["infeasible"].mean()) == 1


def test_rows_without_transcript_carry_distillation_alone():
  """CTC is that of the other rows; the KL that of all; nothing counts as infeasible."""
  batch = make_batch()
  told = np.array([True, False, True, True, False, True])
  mixed = batch._replace(label_len=np.where(told, batch.label_len, -1).astype(np.int32))
  part = batch._replace(
    audio_len=np.where(told, batch.audio_len, 0).astype(np.int32),
    label_len=np.where(told, batch.label_len, 0).astype(np.int32),
  )
  _, whole, of_kl = loss_and_grad(batch, 1.0)
  _, alone, of_ctc = loss_and_grad(part, 0.0)
  _, terms, gradient = loss_and_grad(mixed, 0.25)
  assert_same(terms["kd/kl"], whole["kd/kl"], rtol=1e-5)
  assert_same(terms["ctc"], alone["ctc"], rtol=1e-5)
  assert_same(terms["infeasible"], (0, 4))
  assert_same(gradient, 0.25 * of_kl + 0.75 * of_ctc, rtol=1e-4, atol=1e-6)


def test_filler_rows_change_nothing():
  batch = make_batch()
  filler = Batch(
    np.full((2, SAMPLES), 12345, np.int16),
    np.zeros(2, np.int32),
    np.full((2, 4), 3, np.int32),
    np.zeros(2, np.int32),
  )
  filled = jax.tree.map(lambda *pair: np.concatenate(pair), batch, filler)
  expected = loss_and_grad(batch, 0.5, "random")
  assert_same(loss_and_grad(filled, 0.5, "random"), expected, rtol=1e-5, atol=1e-6)
  # And alone they are nothing.
  loss, terms, gradient = loss_and_grad(filler, 0.5, "random")
  assert float(loss) == 0 and not gradient.any()
  assert_same(terms, jax.tree.map(jnp.zeros_like, terms))


def test_selection_draws_with_the_key():
  batch = make_batch()
  one, same, other = (loss_and_grad(batch, 1.0, "random", seed)[0] for seed in (0, 0, 1))
  assert float(one) == float(same) != float(other)


def tiny(seed, dtype):
  """Structure and parameters of a small Conformer with dropout."""
  config = ConformerConfig(
    layers=2,
    width=8,
    heads=2,
    ff_mult=2,
    conv_kernel=3,
    dropout=0.1,
    rel_clip=4,
    frontend_channels=(2, 2, 2, 2),
    frontend_pool=((2, 2), (2, 2)),
    dtype=dtype,
  )
  return nnx.split(ConformerCTC(config, LogMel(mels=8), CLASSES, rngs=nnx.Rngs(params=seed)))


@functools.cache
def trainer(dtype="float32"):
  """The jitted update, and functions that make its state and teacher anew."""
  graphdef, params = tiny(0, dtype)
  teacher_graphdef, teacher_params = tiny(1, dtype)
  objective = make_objective(0.5, "random", spec_augment=True)
  optimizer = optim.make_optimizer(
    "radam", lambda step: 1e-2, b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.01, clip_norm=1.0
  )

  def init(steps_done=0):
    fresh = jax.tree.map(jnp.copy, params)
    state = step_lib.TrainState.fresh(fresh, optimizer.init(fresh), objective)
    return state._replace(step=jnp.int32(steps_done))

  update = step_lib.make_train_step(graphdef, teacher_graphdef, objective, optimizer)
  return update, init, teacher_params


def train(devices, steps=2, start=0, dtype="float32", state=None):
  """State after so many updates on the batch, over a mesh of so many devices."""
  update, init, teacher_params = trainer(dtype)
  over = Mesh(np.array(jax.devices()[:devices])[:, None], sharding.AXES)
  batch = mesh.put_rows(make_batch(8), over)
  everywhere = sharding.replicated(over)
  state = init(start) if state is None else state
  state, teacher_params, key, epoch = jax.device_put(
    (state, teacher_params, jax.random.key(7), jnp.int32(0)), everywhere
  )
  for _ in range(steps):
    state = update(state, teacher_params, batch, epoch, key)
  return jax.device_get(state)


@pytest.mark.slow
def test_eight_devices_equal_one():
  eight_devices.found()
  one, eight = train(1), train(8)
  start = trainer()[1]().params
  moved = [
    np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one.params, start)), strict=True)
  ]
  assert max(moved) > 1e-3
  assert int(one.step) == int(eight.step) == 2
  assert_same(one.params, eight.params, rtol=0, atol=1e-5)
  assert_same(one.terms, eight.terms, rtol=1e-4, atol=1e-4)
  assert float(one.terms["loss"].weight) == 2 and float(one.terms["grad_norm"].mean()) > 0


def test_resumed_run_draws_what_it_would_have_drawn():
  whole = train(1, steps=3)
  stopped = train(1, steps=1)
  resumed = train(1, steps=2, state=jax.tree.map(jnp.array, stopped))
  assert_same(resumed, whole, rtol=0)
  # The step decides on dropout and masks.
  first, later = train(1, steps=1), train(1, steps=1, start=5)
  assert float(first.terms["loss"].total) != float(later.terms["loss"].total)


def test_update_moves_the_student_down_and_never_the_teacher():
  before = jax.device_get(trainer()[2])
  short, long = train(1, steps=1), train(1, steps=25)
  assert float(long.terms["loss"].mean()) < float(short.terms["loss"].mean())
  assert_same(trainer()[2], before, rtol=0)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_bfloat16_trains_in_float32_parameters():
  state = train(1, steps=3, dtype="bfloat16")
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(state.params))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
  full = train(1, steps=3)
  np.testing.assert_allclose(state.terms["loss"].mean(), full.terms["loss"].mean(), rtol=0.05)


def test_updates_without_finite_numbers_are_skipped_and_counted():
  """A teacher that says infinity once: the state stays, and the next update counts again."""
  update, init, teacher_params = trainer()
  over = Mesh(np.array(jax.devices()[:1])[:, None], sharding.AXES)
  batch, key, epoch = mesh.put_rows(make_batch(8), over), jax.random.key(7), jnp.int32(0)
  put = lambda tree: jax.device_put(tree, sharding.replicated(over))  # as in `train`: one program
  teacher_params, key, epoch = put((teacher_params, key, epoch))
  broken = jax.tree.map(lambda x: x * jnp.nan, teacher_params)
  first = jax.device_get(update(put(init()), teacher_params, batch, epoch, key))
  state = update(put(first), broken, batch, epoch, key)
  found = jax.device_get(state)
  assert_same((found.params, found.opt_state), (first.params, first.opt_state), rtol=0)
  assert (int(found.step), int(found.last_skipped)) == (2, 1)
  assert_same(found.terms["skipped"], (1, 2))
  assert_same(found.terms["loss"], first.terms["loss"], rtol=0)
  after = jax.device_get(update(state, teacher_params, batch, epoch, key))
  assert float(after.terms["loss"].weight) == 2 and int(after.last_skipped) == 1
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.params))


def energy(name, scale, needs=frozenset()):
  """A made-up term: half the squares of all real logits, of the teacher where it is asked."""

  def compute(view):
    out = view.teacher if TEACHER_FRAMES in needs else view.output
    squares = jnp.where(out.mask[..., None], out.logits**2, 0).sum()
    return WeightedSum(squares / 2, out.mask.sum(dtype=jnp.float32))

  return Term(name, scale, needs, compute)


def impossible(scale):
  """NaN, in value and in gradient."""
  compute = lambda view: WeightedSum(jnp.log(-1 - view.output.logits**2).sum(), jnp.ones(()))
  return Term("impossible", scale, frozenset(), compute)


def updated(objective, batch, epoch=0, teacher=None):
  """The state after an update by the gradient itself, and how far it moved the matrix."""
  graphdef, params = nnx.split(Matrix(1))
  optimizer = optax.sgd(1.0)
  before = np.asarray(params["kernel"][...])
  state = step_lib.TrainState.fresh(params, optimizer.init(params), objective)
  teacher_graphdef, teacher_params = (None, None) if teacher is None else nnx.split(teacher)
  update = step_lib.make_train_step(graphdef, teacher_graphdef, objective, optimizer)
  state = update(state, teacher_params, batch, jnp.int32(epoch), jax.random.key(0))
  return state, before - np.asarray(state.params["kernel"][...])


def test_a_made_up_term_goes_through_the_step_without_a_word_there():
  batch = make_batch()
  asks = frozenset({TEACHER_FRAMES})
  objective = Objective((energy("ours", 3.0),), (energy("theirs", None, asks),))
  state, moved = updated(objective, batch, teacher=Matrix(2))
  assert set(state.terms) == {"ours", "theirs", "loss", "grad_norm", "skipped"}
  student, teacher = (Matrix(s)(batch.audio, batch.audio_len) for s in (1, 2))
  mask = np.asarray(student.mask)
  for name, out in (("ours", student), ("theirs", teacher)):
    total = (np.asarray(out.logits)[mask].astype(np.float64) ** 2).sum() / 2
    assert_same(state.terms[name], (total, mask.sum()), rtol=1e-5)
  # Half the squares of x W have the gradient x (x W).
  x = (batch.audio.reshape(6, -1, FRAME) / 32768)[mask]
  expected = 3 * x.T @ np.asarray(student.logits)[mask] / mask.sum()
  assert_same(moved, expected, rtol=1e-4, atol=1e-6)
  assert_same(state.terms["loss"], (3 * state.terms["ours"].mean(), 1))
  assert_same(state.terms["grad_norm"], (np.linalg.norm(expected), 1), rtol=1e-5)
  assert_same(state.terms["skipped"], (0, 1))


def test_a_teacher_that_no_term_asks_is_not_run():
  objective = Objective((energy("ours", 1.0),))
  assert not objective.asks_teacher and not objective.needs
  broken = Matrix(2)
  broken.kernel[...] = jnp.full((FRAME, CLASSES), jnp.nan)
  with_it, without = (updated(objective, make_batch(), teacher=t) for t in (broken, None))
  assert_same(with_it, without, rtol=0)


def test_scales_are_schedules_over_epochs():
  batch = make_batch()
  rising = lambda epoch: 0.5 * epoch.astype(jnp.float32)
  alone, gradient = of_objective(Objective((energy("e", 1.0),)), batch, jax.random.key(0))[::2]
  for epoch in range(3):
    objective = Objective((energy("e", rising),))
    loss, terms, found = of_objective(objective, batch, jax.random.key(0), epoch)
    assert_same((loss, found), (0.5 * epoch * alone, 0.5 * epoch * gradient), rtol=1e-5)
    assert (float(terms["e"].weight) > 0) == (epoch > 0)


def test_a_term_that_is_off_gives_nothing_even_where_it_is_nan():
  batch = make_batch()
  late = lambda epoch: jnp.where(epoch < 2, 0.0, 0.7)
  objective = Objective((energy("e", 1.0), impossible(late)))
  off, moved = updated(objective, batch, epoch=1)
  alone, expected = updated(Objective((energy("e", 1.0),)), batch, epoch=1)
  assert_same(moved, expected, rtol=0)
  assert_same({k: off.terms[k] for k in alone.terms}, alone.terms, rtol=0)
  assert_same(off.terms["impossible"], (0, 0), rtol=0)
  # Once it counts, the update is skipped, and is in no term.
  on, moved = updated(objective, batch, epoch=2)
  assert not moved.any() and int(on.last_skipped) == 0
  assert_same(on.terms.pop("skipped"), (1, 1))
  assert not np.any(jax.tree.leaves(on.terms))


def test_names_of_terms_differ():
  with pytest.raises(ValueError, match="two terms have one name: e, e"):
    Objective((energy("e", 1.0),), (energy("e", None),))
