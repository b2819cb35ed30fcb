"""The distillation loss against the authors' sums, closed forms, float64, and itself."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import eight_devices
import reference
from jaxkd import losses
from jaxkd.types import WeightedSum


@functools.partial(jax.jit, static_argnames="temperature")
def value_and_grads(student, teacher, selected, temperature=2.0):
  """The WeightedSum, and the gradient of its total for student and teacher."""

  def total(student, teacher):
    kd = losses.kd_kl(student, teacher, selected, temperature=temperature)
    return kd.total, kd

  (_, kd), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(student, teacher)
  return kd, grads


def make_batch(seed=0, rows=8, frames=11, classes=7):
  """Student and teacher f32[B, T, V], and selected bool[B, T] with an empty and a full row."""
  rng = np.random.default_rng(seed)
  student, teacher = (3 * rng.normal(size=(2, rows, frames, classes))).astype(np.float32)
  selected = rng.random((rows, frames)) < 0.5
  selected[0], selected[1] = True, False
  return student, teacher, selected


def closed_gradient(student, teacher, weights, temperature):
  """T · weight · (softmax(student / T) - softmax(teacher / T))."""
  p, q = (np.exp(reference.log_softmax(x / np.float64(temperature))) for x in (teacher, student))
  return temperature * np.float64(weights)[..., None] * (q - p)


@pytest.mark.parametrize("case", ["a", "b"])
def test_equals_the_authors_sums(case):
  case = reference.golden(case)
  student, teacher = case["student_logits"], case["teacher_logits"]
  assert len(case["variants"]) == 20
  for name, variant in case["variants"].items():
    selected = variant.get("mask", np.ones(student.shape[:2], bool))
    kd, _ = value_and_grads(student, teacher, selected)
    if name == "standard":  # divided by rows in their sum, and by labels after that
      np.testing.assert_allclose(kd.total / len(student), variant["kl_sum"], rtol=1e-5)
      assert int(variant["kl_norm"]) == case["label_lengths"].sum()
    else:
      np.testing.assert_allclose(kd.total, variant["kl_sum"], rtol=1e-5, err_msg=name)
      assert int(kd.weight) == int(variant["kl_norm"]), name
      mean = variant["kl_sum"] / variant["kl_norm"]
      np.testing.assert_allclose(kd.mean(), mean, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", ["a", "b"])
def test_ctc_equals_the_authors_sum(case):
  case = reference.golden(case)
  logits, label_len = case["student_logits"], case["label_lengths"]
  frames = np.full(len(logits), logits.shape[1], np.int32)
  ctc = jax.jit(functools.partial(losses.ctc_loss, blank_id=logits.shape[-1] - 1))
  rows = ctc(logits, frames, case["labels"], label_len)
  for variant in case["variants"].values():
    np.testing.assert_allclose(rows.sum(), variant["ctc_sum"], rtol=1e-5)
    assert int(variant["ctc_norm"]) == label_len.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_two_classes_in_closed_form(temperature):
  student, teacher, selected = make_batch(classes=2)
  p, q = (
    1 / (1 + np.exp(np.float64(x[..., 1] - x[..., 0]) / temperature)) for x in (teacher, student)
  )
  kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
  kd, _ = value_and_grads(student, teacher, selected, temperature)
  np.testing.assert_allclose(kd.total, temperature**2 * kl[selected].sum(), rtol=1e-4)
  assert float(kd.weight) == selected.sum()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_equals_float64(kind, temperature):
  student, teacher, selected = make_batch()
  weights = np.random.default_rng(1).random(selected.shape).astype(np.float32)
  weights = selected if kind == "bool" else selected * weights
  kd, (gradient, to_teacher) = value_and_grads(student, teacher, weights, temperature)
  total, weight = reference.kd_kl(student, teacher, weights, temperature)
  np.testing.assert_allclose([kd.total, kd.weight], [total, weight], rtol=1e-5)
  expected = closed_gradient(student, teacher, weights, temperature)
  np.testing.assert_allclose(gradient, expected, atol=1e-5)
  assert not to_teacher.any()


def test_gradient_equals_finite_differences():
  student, teacher, selected = (x[:2, :3] for x in make_batch(classes=4))
  selected = np.array([[True, False, True], [False, False, True]])
  _, (gradient, _) = value_and_grads(student, teacher, selected)
  step = 1e-4
  for index in np.ndindex(student.shape):
    above, below = student.astype(np.float64), student.astype(np.float64)
    above[index] += step
    below[index] -= step
    sums = [reference.kd_kl(x, teacher, selected, 2.0)[0] for x in (above, below)]
    np.testing.assert_allclose(gradient[index], (sums[0] - sums[1]) / (2 * step), atol=1e-5)


def test_high_temperature_is_half_the_variance_of_the_difference():
  # Hinton et al. 2015, section 2.1: logits are matched, each frame up to a constant.
  student, teacher, selected = make_batch()
  kd, _ = value_and_grads(student, teacher, selected, 200.0)
  expected = (student - teacher)[selected].var(-1).sum() / 2
  np.testing.assert_allclose(kd.total, expected, rtol=0.02)


def test_frames_shifted_by_a_constant_are_the_same():
  student, teacher, selected = make_batch()
  kd, (gradient, _) = value_and_grads(student, teacher, selected)
  moved, (moved_gradient, _) = value_and_grads(student + 9, teacher - 5, selected)
  np.testing.assert_allclose(moved.total, kd.total, rtol=1e-5)
  np.testing.assert_allclose(moved_gradient, gradient, atol=1e-5)


def test_student_equal_to_teacher_has_no_loss_and_no_gradient():
  _, teacher, selected = make_batch()
  kd, (gradient, _) = value_and_grads(teacher, teacher, selected)
  assert float(kd.total) == 0
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_unselected_frames_are_not_read(garbage):
  student, teacher, selected = make_batch()
  kd, grads = value_and_grads(student, teacher, selected)
  student, teacher = (
    np.where(selected[..., None], x, np.float32(garbage)) for x in (student, teacher)
  )
  dirty, dirty_grads = value_and_grads(student, teacher, selected)
  np.testing.assert_array_equal(dirty.total, kd.total)
  np.testing.assert_array_equal(dirty_grads[0], grads[0])
  assert not dirty_grads[0][~selected].any() and dirty_grads[0][selected].any()
  assert not dirty_grads[1].any()


@pytest.mark.parametrize("garbage", [0.0, np.nan])
def test_nothing_selected_has_mean_zero_and_no_gradient(garbage):
  logits = jnp.full((2, 5, 3), garbage)
  selected = jnp.zeros((2, 5), bool)

  def mean(logits):
    return losses.kd_kl(logits, logits, selected, temperature=2.0).mean()

  value, gradient = jax.value_and_grad(mean)(logits)
  assert float(value) == 0 and not gradient.any()


def test_classes_that_the_teacher_excludes_count_nothing():
  student, teacher, selected = make_batch()
  teacher[..., [1, 4]] = -np.inf
  kd, (gradient, to_teacher) = value_and_grads(student, teacher, selected)
  total, _ = reference.kd_kl(student, teacher, selected, 2.0)
  np.testing.assert_allclose(kd.total, total, rtol=1e-5)
  np.testing.assert_allclose(gradient, closed_gradient(student, teacher, selected, 2.0), atol=1e-5)
  assert not to_teacher.any()
  # Excluded by both.
  student[..., 1] = -np.inf
  kd, (gradient, _) = value_and_grads(student, teacher, selected)
  assert np.isfinite(kd.total) and np.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [50.0, 1e4])
def test_extreme_logits_stay_finite(scale):
  student, teacher, selected = make_batch()
  kd, (gradient, _) = value_and_grads(scale * student, scale * teacher, selected)
  total, _ = reference.kd_kl(scale * student, scale * teacher, selected, 2.0)
  np.testing.assert_allclose(kd.total, total, rtol=1e-5)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
  student, teacher, selected = make_batch()
  student, teacher = jnp.array(student, dtype), jnp.array(teacher, dtype)
  kd, (gradient, _) = value_and_grads(student, teacher, selected)
  expected, (expected_gradient, _) = value_and_grads(
    student.astype(jnp.float32), teacher.astype(jnp.float32), selected
  )
  assert kd.total.dtype == jnp.float32 and gradient.dtype == dtype
  np.testing.assert_array_equal(kd.total, expected.total)
  tolerance = float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(
    gradient.astype(jnp.float32), expected_gradient, rtol=tolerance, atol=1e-6
  )


@pytest.mark.parametrize("dtype", [bool, jnp.bfloat16])
def test_weights_are_summed_in_float32(dtype):
  student, teacher, _ = make_batch(frames=601)
  kd, _ = value_and_grads(student, teacher, jnp.ones((8, 601), dtype))
  assert kd.weight.dtype == jnp.float32 and float(kd.weight) == 4808  # 4800 in bfloat16


@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
@hypothesis.given(st.integers(0, 10**6), st.permutations(range(8)))
def test_sums_are_positive_and_add_up_over_rows(seed, order):
  order = np.array(order)
  student, teacher, selected = make_batch(seed)
  kd, (gradient, _) = value_and_grads(student, teacher, selected)
  assert float(kd.total) >= 0 and float(kd.weight) == selected.sum()
  moved, (moved_gradient, _) = value_and_grads(student[order], teacher[order], selected[order])
  np.testing.assert_allclose(moved.total, kd.total, rtol=1e-5)
  np.testing.assert_allclose(moved_gradient, gradient[order], atol=1e-6)
  some = np.isin(np.arange(8), order[:3])[:, None]
  first, rest = (value_and_grads(student, teacher, selected & s)[0] for s in (some, ~some))
  np.testing.assert_allclose((first + rest).mean(), kd.mean(), rtol=1e-5)


def test_vmap_equals_each_row():
  batch = make_batch()
  kd, grads = jax.vmap(value_and_grads)(*batch)
  for row in range(8):
    one, one_grads = value_and_grads(*(x[row] for x in batch))
    np.testing.assert_allclose(kd.total[row], one.total, rtol=1e-6)
    assert float(kd.weight[row]) == float(one.weight)
    np.testing.assert_allclose(grads[0][row], one_grads[0], atol=1e-6)


def test_sharded_batch_equals_one_device():
  eight_devices.found()
  batch = make_batch(rows=16)
  kd, grads = value_and_grads(*jax.device_put(batch, jax.devices()[0]))
  sharding = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data"))
  sharded, sharded_grads = value_and_grads(*jax.device_put(batch, sharding))
  assert sharded_grads[0].sharding.is_equivalent_to(sharding, 3)
  np.testing.assert_allclose(sharded.mean(), kd.mean(), rtol=1e-6)
  np.testing.assert_allclose(sharded_grads[0], grads[0], atol=1e-6)


def test_weighted_sums_average_by_weight():
  a = WeightedSum(jnp.float32(6.0), jnp.float32(3.0))
  b = WeightedSum(jnp.float32(4.0), jnp.float32(1.0))
  assert float(a.mean()) == 2.0
  assert float((a + b).mean()) == 2.5
  assert float(WeightedSum(jnp.zeros(()), jnp.zeros(())).mean()) == 0.0
  added = jax.jit(lambda x, y: x + y)(a, b)
  assert isinstance(added, WeightedSum) and float(added.weight) == 4.0
