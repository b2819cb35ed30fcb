"""Losses that look at parts of the KL, or at other frames, against loops over the definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from jaxkd import losses, selection

pytestmark = pytest.mark.usefixtures("quick_to_compile")
ROWS, FRAMES, CLASSES, BLANK = 3, 7, 5, 4
DELAYS = (-1, 0, 2)
options = dict(temperature=2.0)
delayed = jax.jit(
  functools.partial(losses.delayed_kl, **options), static_argnames=("delays", "softness")
)
split = jax.jit(
  functools.partial(losses.split_kl, blank_id=BLANK, **options),
  static_argnames=("delays", "softness"),
)


def make_batch():
  """Student, teacher f32[B, T, V], weights f32[B, T], mask bool[B, T]; one row all padding."""
  rng = np.random.default_rng(0)
  student, teacher = (2 * rng.normal(size=(2, ROWS, FRAMES, CLASSES))).astype(np.float32)
  mask = np.arange(FRAMES) < np.array([[7], [4], [0]])
  weights = rng.random(mask.shape).astype(np.float32) * (rng.random(mask.shape) < 0.7) * mask
  return student, teacher, weights, mask


def gradient(loss, student, *rest, **options):
  """Of the loss's sum for the student."""
  total = lambda x: loss(x, *rest, **options).total
  return np.asarray(jax.grad(total)(jnp.asarray(student)))


@pytest.mark.parametrize("softness", [0.3, 1.0])
@pytest.mark.parametrize("delays", [(0,), DELAYS, (1,), (-9, 9)])
def test_delayed_kl_equals_a_loop(delays, softness):
  student, teacher, weights, mask = make_batch()
  found = delayed(student, teacher, weights, mask, delays=delays, softness=softness)
  rows = [
    reference.delayed_kl(*row, 2.0, delays, softness)
    for row in zip(student, teacher, np.float64(weights), mask, strict=True)
  ]
  np.testing.assert_allclose([found.total, found.weight], np.sum(rows, 0), rtol=2e-5, atol=1e-6)
  if delays == (0,):
    plain = losses.kd_kl(student, teacher, weights, temperature=2.0)
    np.testing.assert_allclose(found.total, plain.total, rtol=1e-6)
    np.testing.assert_allclose(found.weight, plain.weight, rtol=1e-6)


def test_a_student_that_is_late_by_a_frame_is_forgiven():
  _, teacher, weights, mask = make_batch()
  late = np.roll(teacher, 1, 1)
  hard = lambda delays: delayed(late, teacher, weights, mask, delays=delays, softness=1e-3)
  assert hard((0,)).total > 1
  inside = weights * np.roll(mask, -1, 1) * (np.arange(FRAMES) < FRAMES - 1)
  assert delayed(late, teacher, inside, mask, delays=(0, 1), softness=1e-3).total < 0.02


def test_one_delay_for_a_row_is_the_best_of_its_mean():
  rng = np.random.default_rng(5)
  teacher = 4 * rng.normal(size=(2, 12, CLASSES)).astype(np.float32)
  # The first row is late everywhere, the second in its first half.
  late = np.roll(teacher, 1, 1)
  late[1, 6:] = teacher[1, 6:]
  mask = np.ones((2, 12), bool)
  weights = np.ones((2, 12), np.float32)
  weights[:, [0, 11]] = 0
  hard = dict(delays=(0, 1), softness=1e-3)
  found = losses.delayed_kl(late, teacher, weights, mask, of_row=True, **options, **hard)
  of = lambda row, d: (
    losses.kd_kl(np.roll(late[row], -d, 0), teacher[row], weights[row], **options).total
  )
  best = [min(of(row, d) for d in (0, 1)) for row in range(2)]
  assert best[0] < 1e-3 < 1 < best[1]
  np.testing.assert_allclose(found.total, sum(best), rtol=1e-3, atol=0.1)
  assert found.weight == 20
  each = losses.delayed_kl(late, teacher, weights, mask, **options, **hard)
  assert each.total < found.total - 1


@pytest.mark.parametrize("loss", ["delayed", "split"])
def test_gradients_equal_finite_differences(loss):
  student, teacher, weights, mask = (x[:1, :4] for x in make_batch())
  relaxed = {"delays": (0, 1), "softness": 0.5}
  if loss == "delayed":
    call = lambda x: delayed(x, teacher, weights, mask, **relaxed)
  else:
    call = lambda x: split(x, teacher, mask, weights, mask, **relaxed)
  found = np.asarray(jax.grad(lambda x: call(x).total)(student))
  for index in [(0, 0, 0), (0, 1, BLANK), (0, 2, 1), (0, 3, 2)]:
    step = np.zeros_like(student)
    step[index] = 1e-2
    slope = (float(call(student + step).total) - float(call(student - step).total)) / 2e-2
    np.testing.assert_allclose(found[index], slope, atol=3e-3)


@pytest.mark.parametrize("delays", [(0,), DELAYS, (1,)])
def test_split_kl_equals_a_loop(delays):
  student, teacher, beta, mask = make_batch()
  alpha = mask * np.float32(0.5)
  found = split(student, teacher, alpha, beta, mask, delays=delays, softness=0.3)
  rows = [
    reference.split_kl(*row, 2.0, BLANK, delays, 0.3)
    for row in zip(student, teacher, np.float64(alpha), np.float64(beta), mask, strict=True)
  ]
  np.testing.assert_allclose([found.total, found.weight], np.sum(rows, 0), rtol=2e-5)


def test_weights_stand_outside_of_the_soft_minimum():
  """However small they are: α = w and β = w (1 - p(blank)) are `delayed_kl` with weights w."""
  student, teacher, weights, mask = make_batch()
  weights *= np.float32(0.05)
  beta = weights * (1 - jax.nn.softmax(teacher / 2)[..., BLANK])
  relaxed = dict(delays=DELAYS, softness=0.1)
  parts = split(student, teacher, weights, beta, mask, **relaxed)
  whole = delayed(student, teacher, weights, mask, **relaxed)
  np.testing.assert_allclose([parts.total, parts.weight], [whole.total, whole.weight], rtol=1e-4)


@pytest.mark.parametrize("loss", ["delayed", "split", "of_row"])
def test_classes_that_both_exclude_leave_a_gradient(loss):
  """Also in frames that a selected one leads to, and that are not selected themselves."""
  student, teacher, weights, mask = make_batch()
  weights[0] = [0, 0, 1, 0, 0, 0, 0]
  student[..., 0] = teacher[..., 0] = -np.inf
  call = {
    "delayed": lambda x: delayed(x, teacher, weights, mask, delays=DELAYS),
    "of_row": lambda x: losses.delayed_kl(
      x, teacher, weights, mask, delays=DELAYS, of_row=True, **options
    ),
    "split": lambda x: split(x, teacher, weights, weights, mask, delays=DELAYS),
  }[loss]
  value, slope = jax.value_and_grad(lambda x: call(x).total)(jnp.asarray(student))
  assert value > 0.1 and np.isfinite(value) and np.isfinite(slope).all() and slope.any()


def test_a_large_softness_is_the_mean():
  student, teacher, weights, mask = make_batch()
  found = delayed(student, teacher, weights, mask, delays=(0, 1), softness=1e3)
  rows = [
    reference.delayed_kl(*row, 2.0, (0, 1), 1e3)
    for row in zip(student, teacher, np.float64(weights), mask, strict=True)
  ]
  np.testing.assert_allclose(found.total, np.sum(rows, 0)[0], rtol=1e-5)


@pytest.mark.parametrize("delays", [(0,), DELAYS])
def test_the_two_parts_are_the_whole(delays):
  """α = 1 and β = 1 - p(blank) is the KL of every frame, with its gradient."""
  student, teacher, _, mask = make_batch()
  teacher[0, 1, BLANK] += 30  # labels of 1e-13 together
  beta = 1 - jax.nn.softmax(teacher / 2)[..., BLANK]
  parts = split(student, teacher, mask, beta, mask, delays=delays)
  whole = delayed(student, teacher, mask, mask, delays=delays)
  np.testing.assert_allclose(parts.total, whole.total, rtol=1e-5)
  assert float(parts.weight) == float(whole.weight) == mask.sum()
  got = gradient(split, student, teacher, mask, beta, mask, delays=delays)
  wanted = gradient(delayed, student, teacher, mask, mask, delays=delays)
  np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_labels_beside_a_sure_blank_keep_their_digits():
  _, teacher, _, mask = make_batch()
  sure = teacher.copy()
  sure[..., BLANK] += 200
  zero, moved = np.zeros_like(mask), np.roll(teacher, 1, -2)
  found = split(moved, sure, zero, mask, mask)
  np.testing.assert_allclose(found.total, split(moved, teacher, zero, mask, mask).total, rtol=1e-5)
  assert found.total > 1


def test_classes_that_the_teacher_excludes():
  student, teacher, weights, mask = make_batch()
  for excluded in ([0], [0, 1, 2, 3], [BLANK]):
    less = teacher.copy()
    less[..., excluded] = -np.inf
    found = split(student, less, mask, weights, mask)
    slope = gradient(split, student, less, mask, weights, mask)
    assert np.isfinite(found.total) and np.isfinite(slope).all()
    assert np.isinf(split(less, teacher, mask, mask, mask).total)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_frames_that_nothing_leads_to_are_not_read(garbage):
  student, teacher, weights, mask = make_batch()
  weights[0] = [0, 0, 1, 0, 0, 0, 0]
  read = np.zeros_like(mask)
  read[0, [1, 2, 4]] = True
  read[1] = mask[1]
  dirty = np.where(read[..., None], student, np.float32(garbage))
  unread = np.where((weights != 0)[..., None], teacher, np.float32(garbage))
  call = lambda x, y: delayed(x, y, weights, mask, delays=DELAYS)
  np.testing.assert_array_equal(call(dirty, unread).total, call(student, teacher).total)
  slope = gradient(delayed, dirty, unread, weights, mask, delays=DELAYS)
  assert np.isfinite(slope).all() and not slope[~read].any() and slope[read].any()
  padded = np.where(mask[..., None], student, np.float32(garbage))
  both = split(padded, unread, weights, weights, mask, delays=DELAYS)
  clean = split(student, teacher, weights, weights, mask, delays=DELAYS)
  np.testing.assert_array_equal(both.total, clean.total)


def test_guided_ctc_by_hand():
  student, teacher, weights, mask = make_batch()
  probs = np.exp(reference.log_softmax(student))
  best = teacher.argmax(-1)
  total = sum(-weights[i] * probs[i][best[i]] for i in np.ndindex(mask.shape))
  found = losses.guided_ctc(student, teacher, weights)
  np.testing.assert_allclose([found.total, found.weight], [total, weights.sum()], rtol=1e-5)
  assert np.isnan(losses.guided_ctc(student, teacher * np.nan, weights).total)
  assert losses.guided_ctc(student * np.nan, teacher * np.nan, 0 * weights).total == 0


def test_soft_cross_entropy_of_one_hot_targets_is_the_cross_entropy():
  student, teacher, weights, _ = make_batch()
  best = teacher.argmax(-1)
  found = losses.soft_cross_entropy(student, jax.nn.one_hot(best, CLASSES), weights)
  log_probs = np.take_along_axis(reference.log_softmax(student), best[..., None], -1)[..., 0]
  np.testing.assert_allclose(found.total, -(weights * log_probs).sum(), rtol=1e-5)
  # With the teacher's own probabilities it is the KL and the teacher's entropy.
  probs = jax.nn.softmax(teacher)
  entropy = losses.soft_cross_entropy(teacher, probs, weights).total
  cross = losses.soft_cross_entropy(student, probs, weights).total
  kl = losses.kd_kl(student, teacher, weights, temperature=1.0).total
  np.testing.assert_allclose(cross, entropy + kl, rtol=1e-5)


TARGETS = [[0, 1], [2, 2], [], [3], [1, 1, 1, 1]]


def occupancies(blank_id=BLANK):
  """f32[B, 5, V] of random logits and `TARGETS`; the last one has no path."""
  logits = np.random.default_rng(1).normal(size=(len(TARGETS), 5, CLASSES)).astype(np.float32)
  lengths = np.array([5, 4, 5, 3, 5], np.int32)
  labels = np.array([t + [0] * (4 - len(t)) for t in TARGETS], np.int32)
  counts = np.array([len(t) for t in TARGETS], np.int32)
  padded = np.where((np.arange(5) < lengths[:, None])[..., None], logits, np.nan)
  found = losses.ctc_occupancy(padded, lengths, labels, counts, blank_id=blank_id)
  return logits, lengths, np.asarray(found)


def test_occupancy_equals_counting_every_path():
  logits, lengths, found = occupancies()
  for row, (target, frames) in enumerate(zip(TARGETS[:4], lengths, strict=False)):
    wanted = reference.ctc_occupancy(logits[row, :frames], target, BLANK)
    np.testing.assert_allclose(found[row, :frames], wanted, atol=1e-5)
    np.testing.assert_allclose(found[row, :frames].sum(-1), 1, atol=1e-5)
    assert not found[row, frames:].any()
  assert not found[4].any()


# Peaky frames as a CTC teacher has them: three labels, two of them equal.
PATH = [BLANK, 0, BLANK, BLANK, 1, 1, BLANK, BLANK, 1, BLANK, BLANK]


def peaky(path=PATH):
  logits = np.random.default_rng(2).normal(size=(1, len(path), CLASSES)).astype(np.float32)
  logits[0, np.arange(len(path)), path] += 5
  return logits, np.ones((1, len(path)), bool)


def weights_at(delta, logits, mask):
  select = jax.jit(functools.partial(selection.occupancy, blank_id=BLANK))
  return np.asarray(select(logits, mask, delta=delta))


def test_occupancy_weights_equal_those_of_every_path():
  logits, mask = peaky([BLANK, 0, BLANK, 1, 1])
  moved = logits.copy()
  moved[..., BLANK] -= 1.5
  wanted = 1 - reference.ctc_occupancy(moved[0], [0, 1], BLANK)[:, BLANK]
  np.testing.assert_allclose(weights_at(1.5, logits, mask)[0], wanted, atol=1e-5)


def test_occupancy_from_the_spikes_to_everything():
  logits, mask = peaky()
  spikes = weights_at(-60.0, logits, mask)
  np.testing.assert_allclose(spikes.sum(), 3, atol=1e-3)  # one frame a label
  assert (spikes[0, [1, 8]] > 0.98).all() and spikes[0, 4:6].sum() > 0.98
  sizes = [weights_at(delta, logits, mask).sum() for delta in (-60.0, 0.0, 3.0, 6.0, 60.0)]
  assert sorted(sizes) == sizes
  np.testing.assert_allclose(sizes[-1], len(PATH) - 1, atol=1e-3)  # a blank parts equal labels
  assert not weights_at(60.0, *peaky([BLANK] * 4)).any()


def test_occupancy_reads_real_frames_only_and_says_what_it_cannot():
  logits, mask = peaky()
  alone = weights_at(3.0, logits, mask)
  longer = np.pad(logits, ((0, 0), (0, 3), (0, 0)), constant_values=np.nan)
  got = weights_at(3.0, longer, np.pad(mask, ((0, 0), (0, 3))))
  np.testing.assert_allclose(got[:, :-3], alone, atol=1e-6)
  assert not got[:, -3:].any()
  logits[0, 3] = np.nan
  assert np.isnan(weights_at(3.0, logits, mask)).all()
  assert np.isnan(weights_at(np.inf, *peaky())).all()
  with pytest.raises(ValueError, match="delta is inf; it must be finite"):
    selection.occupancy(*peaky(), blank_id=BLANK, delta=np.inf)
