"""The objective on a model that is one matrix, and updates of a small Conformer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

import reference
from jaxkd import losses, selection
from jaxkd.devices import mesh, sharding
from jaxkd.masks import length_mask, strided_len
from jaxkd.models.augment import SpecAugment
from jaxkd.models.conformer import ConformerConfig, ConformerCTC
from jaxkd.models.features import LogMel
from jaxkd.training import optim
from jaxkd.training import step as step_lib
from jaxkd.types import Batch, FrameOutput

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


def symmetric(logits, mask, key, epoch):
  del key, epoch
  return selection.symmetric(logits, mask, blank_id=BLANK, n=1)


def random(logits, mask, key, epoch):
  del epoch
  return selection.random_blanks(logits, mask, blank_id=BLANK, ratio=0.5, key=key)


def make_objective(scale, select=symmetric, spec_augment=None):
  return step_lib.Objective(scale, 2.0, select if scale else None, BLANK, spec_augment, 0)


@functools.partial(jax.jit, static_argnames=("scale", "select"))
def loss_and_grad(batch, scale, select=symmetric, seed=0):
  """Loss, Terms and the gradient f32[640, V] of a Matrix with a Matrix as teacher."""
  graphdef, params = nnx.split(Matrix(1))
  teacher_out = Matrix(2)(batch.audio, batch.audio_len) if scale else None

  def loss_fn(params):
    student = nnx.merge(graphdef, params)
    objective = make_objective(scale, select)
    key = jax.random.key(seed)
    return step_lib.distill_loss(student, teacher_out, batch, key, jnp.int32(0), objective)

  (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
  return loss, terms, grads["kernel"][...]


def assert_same(a, b, **tolerance):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, **(tolerance or {"rtol": 1e-6, "atol": 1e-7}))


def test_align_cuts_to_the_shorter():
  logits = np.random.default_rng(0).normal(size=(2, 6, 3))
  a = FrameOutput(logits, np.arange(6) < np.array([[6], [4]]))
  b = FrameOutput(-logits[:, :5], np.arange(5) < np.array([[5], [3]]))
  for first, second in ((a, b), (b, a)):
    out = step_lib.align(first, second)
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
    selected = np.asarray(symmetric(teacher.logits, teacher.mask, None, None))
    logits = (np.asarray(x.logits) for x in (student, teacher))
    total, weight = reference.kd_kl(*logits, selected, 2.0)
    kd = total / weight
    assert_same((terms.kd.total, terms.kd.weight), (total, weight), rtol=1e-4)
    assert_same(terms.selected, (weight, frames.sum()))
    assert 0 < weight < frames.sum()
  if scale < 1:
    rows = [
      reference.ctc_forward(x[:t], y[:u], BLANK)
      for x, t, y, u in zip(student.logits, frames, batch.labels, batch.label_len, strict=True)
    ]
    ctc = sum(rows) / batch.label_len.sum()
    assert_same((terms.ctc.total, terms.ctc.weight), (sum(rows), batch.label_len.sum()), rtol=1e-4)
    assert_same(terms.infeasible, (0, 6))
  np.testing.assert_allclose(loss, scale * kd + (1 - scale) * ctc, rtol=1e-4)
  assert_same(terms.loss, (loss, 1))
  blank = (np.asarray(student.logits).argmax(-1) == BLANK) & np.asarray(student.mask)
  assert_same(terms.blank, (blank.sum(), frames.sum()))


def test_labels_are_never_read_at_scale_one():
  batch = make_batch()
  expected = loss_and_grad(batch, 1.0)
  assert expected[2].any() and not expected[1].ctc.weight and not expected[1].infeasible.weight
  none = batch._replace(labels=np.zeros((6, 0), np.int32), label_len=np.zeros(6, np.int32))
  garbage = batch._replace(
    labels=np.full((6, 4), 10**9, np.int32), label_len=np.full(6, -(10**9), np.int32)
  )
  for other in (none, garbage):
    assert_same(loss_and_grad(other, 1.0), expected, rtol=0)


def test_no_teacher_is_asked_at_scale_zero():
  loss, terms, gradient = loss_and_grad(make_batch(), 0.0)
  assert np.isfinite(loss) and gradient.any()
  assert_same((terms.kd, terms.selected), (0, 0, 0, 0))


def test_infeasible_rows_are_counted_and_give_no_gradient():
  batch = make_batch()
  feasible = np.array([True, True, False, True, False, True])
  audio_len = np.where(feasible, batch.audio_len, 2 * FRAME).astype(np.int32)
  label_len = np.where(feasible, batch.label_len, 3).astype(np.int32)
  batch = batch._replace(audio_len=audio_len, label_len=label_len)
  loss, terms, gradient = loss_and_grad(batch, 0.0)
  assert_same(terms.infeasible, (2, 6))
  assert_same(terms.ctc.weight, label_len.sum())
  # The same rows with nothing but silence in their place, which trains nothing.
  silent = batch._replace(
    audio_len=np.where(feasible, audio_len, 0).astype(np.int32),
    label_len=np.where(feasible, label_len, 0).astype(np.int32),
  )
  expected_loss, expected, expected_gradient = loss_and_grad(silent, 0.0)
  assert_same(terms.ctc.total, expected.ctc.total)
  share = expected.ctc.weight / terms.ctc.weight
  assert_same(
    (loss, gradient), (expected_loss * share, expected_gradient * share), rtol=1e-5, atol=1e-6
  )
  # All of them.
  nothing = batch._replace(label_len=np.full(6, 9, np.int32))
  loss, terms, gradient = loss_and_grad(nothing, 0.0)
  assert float(loss) == 0 and not gradient.any() and float(terms.infeasible.mean()) == 1


def test_filler_rows_change_nothing():
  batch = make_batch()
  filler = Batch(
    np.full((2, SAMPLES), 12345, np.int16),
    np.zeros(2, np.int32),
    np.full((2, 4), 3, np.int32),
    np.zeros(2, np.int32),
  )
  filled = jax.tree.map(lambda *pair: np.concatenate(pair), batch, filler)
  expected = loss_and_grad(batch, 0.5, random)
  assert_same(loss_and_grad(filled, 0.5, random), expected, rtol=1e-5, atol=1e-6)
  # And alone they are nothing.
  loss, terms, gradient = loss_and_grad(filler, 0.5, random)
  assert float(loss) == 0 and not gradient.any()
  assert_same(terms, jax.tree.map(jnp.zeros_like, terms)._replace(loss=terms.loss))


def test_selection_draws_with_the_key():
  batch = make_batch()
  one, same, other = (loss_and_grad(batch, 1.0, random, seed)[0] for seed in (0, 0, 1))
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
  objective = make_objective(0.5, random, SpecAugment(5, 2))
  optimizer = optim.make_optimizer(
    "radam", lambda step: 1e-2, b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.01, clip_norm=1.0
  )

  def init(steps_done=0):
    fresh = jax.tree.map(jnp.copy, params)
    state = step_lib.TrainState.fresh(fresh, optimizer.init(fresh))
    return state._replace(step=jnp.int32(steps_done))

  update = step_lib.make_train_step(graphdef, teacher_graphdef, objective, optimizer)
  return update, init, teacher_params


def train(devices, steps=2, start=0, dtype="float32", state=None):
  """State after so many updates on the batch, over a mesh of so many devices."""
  update, init, teacher_params = trainer(dtype)
  over = Mesh(np.array(jax.devices()[:devices])[:, None], sharding.AXES)
  batch = mesh.put_batch(make_batch(8), over)
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
  assert len(jax.devices()) == 8
  one, eight = train(1), train(8)
  start = trainer()[1]().params
  moved = [
    np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one.params, start)), strict=True)
  ]
  assert max(moved) > 1e-3
  assert int(one.step) == int(eight.step) == 2
  assert_same(one.params, eight.params, rtol=0, atol=1e-5)
  assert_same(one.terms, eight.terms, rtol=1e-4, atol=1e-4)
  assert float(one.terms.loss.weight) == 2 and float(one.terms.grad_norm.mean()) > 0


def test_resumed_run_draws_what_it_would_have_drawn():
  whole = train(1, steps=3)
  stopped = train(1, steps=1)
  resumed = train(1, steps=2, state=jax.tree.map(jnp.array, stopped))
  assert_same(resumed, whole, rtol=0)
  # The step decides on dropout and masks.
  first, later = train(1, steps=1), train(1, steps=1, start=5)
  assert float(first.terms.loss.total) != float(later.terms.loss.total)


def test_update_moves_the_student_down_and_never_the_teacher():
  before = jax.device_get(trainer()[2])
  short, long = train(1, steps=1), train(1, steps=25)
  assert float(long.terms.loss.mean()) < float(short.terms.loss.mean())
  assert_same(trainer()[2], before, rtol=0)


@pytest.mark.slow
def test_bfloat16_trains_in_float32_parameters():
  state = train(1, steps=3, dtype="bfloat16")
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(state.params))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
  full = train(1, steps=3)
  np.testing.assert_allclose(state.terms.loss.mean(), full.terms.loss.mean(), rtol=0.05)


def test_evaluation_reports_paths_blanks_and_divergence():
  (graphdef, params), (teacher_graphdef, teacher_params) = (nnx.split(Matrix(s)) for s in (1, 2))
  batch = make_batch()
  student, teacher = (Matrix(s)(batch.audio, batch.audio_len) for s in (1, 2))
  evaluate = step_lib.make_eval_step(graphdef, teacher_graphdef, blank_id=BLANK)
  out = evaluate(params, teacher_params, batch)
  for path, blank, model in (
    (out.student_path, out.student_blank, student),
    (out.teacher_path, out.teacher_blank, teacher),
  ):
    mask = np.asarray(model.mask)
    expected = np.where(mask, np.asarray(model.logits).argmax(-1), BLANK)
    np.testing.assert_array_equal(path, expected)
    assert_same(blank, ((expected == BLANK)[mask].sum(), mask.sum()))
  expected = losses.kd_kl(student.logits, teacher.logits, student.mask, temperature=1.0)
  assert_same(out.kl, expected, rtol=1e-5)
  for found, model in zip(out.aligned, (teacher, student), strict=True):
    assert_same((found.logits, found.mask), (model.logits, model.mask), rtol=1e-5)
  alone = step_lib.make_eval_step(graphdef, None, blank_id=BLANK)(params, None, batch)
  np.testing.assert_array_equal(alone.student_path, out.student_path)
  assert alone.teacher_path is None and alone.kl is None and alone.aligned is None


def test_updates_without_finite_numbers_are_skipped_and_counted():
  """A teacher that says infinity once: the state stays, and the next update counts again."""
  update, init, teacher_params = trainer()
  over = Mesh(np.array(jax.devices()[:1])[:, None], sharding.AXES)
  batch, key, epoch = mesh.put_batch(make_batch(8), over), jax.random.key(7), jnp.int32(0)
  broken = jax.tree.map(lambda x: x * jnp.nan, teacher_params)
  first = jax.device_get(update(init(), teacher_params, batch, epoch, key))
  state = update(jax.tree.map(jnp.array, first), broken, batch, epoch, key)
  found = jax.device_get(state)
  assert_same((found.params, found.opt_state), (first.params, first.opt_state), rtol=0)
  assert (int(found.step), int(found.last_skipped)) == (2, 1)
  assert_same(found.terms.skipped, (1, 2))
  assert_same(found.terms.loss, first.terms.loss, rtol=0)
  after = jax.device_get(update(state, teacher_params, batch, epoch, key))
  assert float(after.terms.loss.weight) == 2 and int(after.last_skipped) == 1
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.params))
