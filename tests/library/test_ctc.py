"""The CTC loss against enumeration, float64 recursion, torch, and its own properties."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import eight_devices
import reference
from jaxkd.losses import ctc, ctc_gpu, ctc_is_feasible, ctc_loss


@functools.partial(jax.jit, static_argnames="blank_id")
def value_and_grad(logits, logit_len, labels, label_len, blank_id=0):
  """Losses f32[B], and the gradient of the sum of the finite ones, f[B, T, V]."""

  def total(logits):
    rows = ctc_loss(logits, logit_len, labels, label_len, blank_id=blank_id)
    return jnp.where(jnp.isfinite(rows), rows, 0).sum(), rows

  (_, rows), gradient = jax.value_and_grad(total, has_aux=True)(logits)
  return rows, gradient


def make_batch(shape=(4, 30, 7, 6), seed=0, scale=2.0):
  """Feasible rows of uneven lengths: logits, logit_len, labels, label_len; blank 0."""
  b, t, v, u = shape
  rng = np.random.default_rng(seed)
  logits = (scale * rng.normal(size=(b, t, v))).astype(np.float32)
  labels = rng.integers(1, v, (b, u)).astype(np.int32)
  label_len = rng.integers(0, u + 1, b).astype(np.int32)
  label_len[0] = u
  logit_len = rng.integers(min(2 * u, t), t + 1, b).astype(np.int32)
  return logits, logit_len, labels, label_len


def oracle(logits, logit_len, labels, label_len, blank_id=0):
  return np.array(
    [
      reference.ctc_forward(x[:t], y[:u], blank_id)
      for x, t, y, u in zip(logits, logit_len, labels, label_len, strict=True)
    ]
  )


def torch_value_and_grad(logits, logit_len, labels, label_len, blank_id=0):
  torch = pytest.importorskip("torch")
  logits = torch.tensor(np.asarray(logits, np.float64), requires_grad=True)
  rows = torch.nn.functional.ctc_loss(
    logits.log_softmax(-1).transpose(0, 1),
    *(torch.tensor(np.asarray(x), dtype=torch.long) for x in (labels, logit_len, label_len)),
    blank=blank_id,
    reduction="none",
  )
  rows.sum().backward()
  return rows.detach().numpy(), logits.grad.numpy()


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("blank_id", [0, 1, 2])
def test_equals_the_enumeration_of_all_paths(frames, blank_id):
  classes = [c for c in range(3) if c != blank_id]
  sequences = [s for n in range(6) for s in itertools.product(classes, repeat=n)]
  logits = 2 * np.random.default_rng(frames).normal(size=(frames, 3)).astype(np.float32)
  labels = np.full((len(sequences), 5), -1, np.int32)
  for row, sequence in zip(labels, sequences, strict=True):
    row[: len(sequence)] = sequence
  expected = np.array([reference.ctc_brute_force(logits, s, blank_id) for s in sequences])
  padded = np.pad(logits, ((0, 5 - frames), (0, 0)), constant_values=np.nan)
  got, gradient = value_and_grad(
    np.repeat(padded[None], len(sequences), 0),
    np.full(len(sequences), frames, np.int32),
    labels,
    np.array([len(s) for s in sequences], np.int32),
    blank_id=blank_id,
  )
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
  assert np.isinf(expected).any() and np.isfinite(expected).any()
  assert not np.asarray(gradient)[np.isinf(expected)].any()
  # The probabilities of all sequences sum to one, where none is too long to be in the list.
  np.testing.assert_allclose(np.exp(-got).sum(), 1.0, rtol=1e-5)
  short = [s for s in sequences if len(s) <= 3]
  recursion = [reference.ctc_forward(logits, s, blank_id) for s in short]
  np.testing.assert_allclose(recursion, expected[: len(short)], rtol=1e-12)


# Logits of 0.1 are an untrained model; 20 leaves the range of float32 probabilities.
@pytest.mark.parametrize("scale", [0.1, 2.0, 20.0])
@pytest.mark.parametrize("shape", [(4, 60, 12, 10), (3, 150, 40, 60), (2, 25, 5, 12), (1, 9, 3, 1)])
def test_equals_torch(shape, scale):
  batch = make_batch(shape, seed=shape[0], scale=scale)
  rows, gradient = value_and_grad(*batch)
  expected, expected_gradient = torch_value_and_grad(*batch)
  assert np.isfinite(expected).all()
  np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(gradient, expected_gradient, atol=2e-4 if scale > 2 else 5e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradient_equals_finite_differences(scale):
  logits, logit_len, labels, label_len = make_batch((2, 7, 4, 3), scale=scale)
  labels[:] = [[1, 1, 2], [3, 2, 3]]
  logit_len[:] = 7, 6
  label_len[:] = 3
  _, gradient = value_and_grad(logits, logit_len, labels, label_len)
  step = 1e-4
  for index in np.ndindex(logits.shape):
    above, below = logits.astype(np.float64), logits.astype(np.float64)
    above[index] += step
    below[index] -= step
    sums = [oracle(x, logit_len, labels, label_len).sum() for x in (above, below)]
    np.testing.assert_allclose(gradient[index], (sums[0] - sums[1]) / (2 * step), atol=2e-5)


def test_as_many_labels_as_frames_is_one_path():
  logits = np.random.default_rng(0).normal(size=(2, 6, 9)).astype(np.float32)
  labels = np.array([[1, 2, 3, 4, 5, 6], [8, 1, 8, 1, 8, 1]], np.int32)
  rows, gradient = value_and_grad(logits, np.full(2, 6), labels, np.full(2, 6))
  log_probs = reference.log_softmax(logits)
  expected = -np.take_along_axis(log_probs, labels[..., None], 2).sum((1, 2))
  np.testing.assert_allclose(rows, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, np.exp(log_probs) - np.eye(9)[labels], atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_is_not_read(garbage, scale):
  logits, logit_len, labels, label_len = make_batch((5, 20, 6, 4), scale=scale)
  logit_len[1] = 0
  label_len[1] = 0
  clean = value_and_grad(logits, logit_len, labels, label_len)
  dirty_logits, dirty_labels = logits.copy(), labels.copy()
  for row, (t, u) in enumerate(zip(logit_len, label_len, strict=True)):
    dirty_logits[row, t:] = garbage
    dirty_labels[row, u:] = [-1, 10**9, -(10**9), 6][: 4 - u]
  assert (dirty_logits != logits).any() and (dirty_labels != labels).any()
  dirty = value_and_grad(dirty_logits, logit_len, dirty_labels, label_len)
  np.testing.assert_array_equal(clean[0], dirty[0])
  np.testing.assert_array_equal(clean[1], dirty[1])
  for row, t in enumerate(logit_len):
    assert not np.asarray(dirty[1])[row, t:].any()
  assert dirty[0][1] == 0
  # Equal labels in the padding are no repeat that would need a frame.
  repeated = np.full((1, 4), 2, np.int32)
  assert ctc_is_feasible(np.array([1]), repeated, np.array([1])).all()


@pytest.mark.parametrize("width", [0, 3])
def test_no_labels_is_the_path_of_blanks(width):
  logits = np.random.default_rng(0).normal(size=(3, 8, 5)).astype(np.float32)
  logit_len = np.array([8, 3, 0], np.int32)
  rows, gradient = value_and_grad(
    logits, logit_len, np.ones((3, width), np.int32), np.zeros(3, np.int32), blank_id=4
  )
  log_probs = reference.log_softmax(logits)
  for row, t in enumerate(logit_len):
    np.testing.assert_allclose(rows[row], -log_probs[row, :t, 4].sum(), rtol=1e-6)
    expected = np.exp(log_probs[row, :t]) - np.eye(5)[4]
    np.testing.assert_allclose(gradient[row, :t], expected, atol=1e-6)


def infeasible_batch():
  """Rows 0 and 4 are feasible; the others have a label, a repeat, or a truncation too many."""
  logits = np.random.default_rng(0).normal(size=(6, 4, 5)).astype(np.float32)
  labels = np.array([[1, 1, 2], [1, 2, 3], [1, 1, 1], [1, 2, 3], [1, 2, 3], [1, 2, 3]], np.int32)
  return logits, np.array([4, 2, 4, 4, 3, 0]), labels, np.array([3, 3, 3, 4, 3, 1])


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_infeasible_rows_are_infinite_without_gradient(scale):
  logits, *rest = infeasible_batch()
  logits = logits * np.float32(scale)
  feasible = np.array([True, False, False, False, True, False])
  np.testing.assert_array_equal(ctc_is_feasible(*rest), feasible)
  rows, gradient = value_and_grad(logits, *rest)
  np.testing.assert_array_equal(np.isposinf(rows), ~feasible)
  # Not masked: the cotangent of an infinite row is 1, or NaN once something multiplied it by inf.
  unmasked = jax.jit(jax.grad(lambda x, w: (ctc_loss(x, *rest, blank_id=0) * w).sum()))
  for weight in (1.0, np.nan, np.inf):
    assert not unmasked(logits, np.where(feasible, 0, np.float32(weight))).any()
  some = np.array([0, 4])
  expected, expected_gradient = value_and_grad(logits[some], *(x[some] for x in rest))
  np.testing.assert_allclose(rows[some], expected, rtol=1e-6)
  np.testing.assert_allclose(gradient[some], expected_gradient, atol=1e-6)
  assert not np.asarray(gradient)[~feasible].any()
  assert np.asarray(gradient)[feasible].any((1, 2)).all()


def test_labels_without_probability_are_infinite_without_gradient():
  logits, logit_len, labels, label_len = make_batch((2, 12, 6, 3))
  labels[:] = [[1, 2, 3], [1, 2, 4]]
  label_len[:] = 3
  logits[:, :, 4] = -np.inf
  rows, gradient = value_and_grad(logits, logit_len, labels, label_len)
  np.testing.assert_array_equal(np.isposinf(rows), [False, True])
  assert np.isfinite(gradient).all() and not gradient[1].any() and gradient[0].any()
  others = np.delete(logits, 4, 2), logit_len, labels, label_len
  np.testing.assert_allclose(rows[:1], oracle(*(x[:1] for x in others)), rtol=1e-5)


def test_nan_in_real_frames_reaches_the_loss_of_its_row_alone():
  logits, *rest = make_batch()
  logits[1, 2, 3] = np.nan
  rows, gradient = value_and_grad(logits, *rest)
  np.testing.assert_array_equal(np.isnan(rows), [False, True, False, False])
  assert np.isfinite(gradient[np.array([0, 2, 3])]).all()


def confident_batch():
  """Logits 50 for one alignment of each row and 0 elsewhere: the loss is almost 0."""
  logits, logit_len, labels, label_len = make_batch((6, 80, 20, 25))
  labels = np.sort(labels, 1)
  logit_len[:] = 80
  logits[:] = 0
  for row in range(len(labels)):
    path = np.zeros(80, int)
    path[1 : 1 + 3 * label_len[row] : 3] = labels[row, : label_len[row]]
    logits[row, np.arange(80), path] = 1
  return 50 * logits, logit_len, labels, label_len


def test_confident_alignments_are_never_below_zero():
  batch = confident_batch()
  rows, gradient = value_and_grad(*batch)
  assert (np.asarray(rows) >= 0).all()
  np.testing.assert_allclose(rows, oracle(*batch), atol=1e-5)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_almost_confident_alignments_are_exact():
  logits, *rest = confident_batch()
  logits = (logits / 5 + np.random.default_rng(1).normal(size=logits.shape)).astype(np.float32)
  rows, _ = value_and_grad(logits, *rest)
  np.testing.assert_allclose(rows, oracle(logits, *rest), rtol=1e-5, atol=1e-5)


# An untrained model, one whose probabilities leave float32, and both in one batch.
@pytest.mark.parametrize("scales", [(0.01, 0.01), (1.0, 1.0), (30.0, 30.0), (0.01, 30.0)])
def test_long_labels_equal_float64(scales):
  logits, logit_len, labels, label_len = make_batch((2, 400, 200, 120), scale=1.0)
  logits *= np.array(scales, np.float32)[:, None, None]
  label_len[:] = 120, 60
  rows, gradient = value_and_grad(logits, logit_len, labels, label_len)
  np.testing.assert_allclose(rows, oracle(logits, logit_len, labels, label_len), rtol=1e-5)
  _, expected = torch_value_and_grad(logits, logit_len, labels, label_len)
  np.testing.assert_allclose(gradient, expected, atol=1e-3)


def test_best_path_that_each_direction_alone_would_lose():
  # The first and last 25 frames want blanks, at e^-15 for any label; the 22 between want label 10
  # of 20, at e^-20 for anything else. The best path, e^-300, has 9 labels at each end: it is e^-135
  # behind at both. Paths with the labels in the middle are near e^-400 in all.
  logits = np.zeros((1, 72, 21), np.float32)
  logits[0, :, 0] = 15
  logits[0, 25:47] = 0
  logits[0, 25:47, 10] = 20
  batch = logits, np.array([72]), np.arange(1, 21)[None], np.array([20])
  rows, gradient = value_and_grad(*batch)
  np.testing.assert_allclose(rows, oracle(*batch), rtol=1e-5)
  np.testing.assert_allclose(gradient, torch_value_and_grad(*batch)[1], atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
  logits, *rest = make_batch()
  logits = jnp.array(logits, dtype)
  rows, gradient = value_and_grad(logits, *rest)
  expected, expected_gradient = value_and_grad(logits.astype(jnp.float32), *rest)
  assert rows.dtype == jnp.float32 and gradient.dtype == dtype
  np.testing.assert_array_equal(rows, expected)
  tolerance = float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(
    gradient.astype(jnp.float32), expected_gradient, rtol=tolerance, atol=1e-6
  )


def test_a_scaled_loss_keeps_small_gradients_in_float16():
  logits = np.zeros((1, 3, 2), np.float16)
  logits[..., 0] = 17  # no labels: both gradients are 4e-8, which float16 rounds by half
  rest = np.array([3]), np.zeros((1, 0), np.int32), np.array([0])
  scaled = lambda x: ctc_loss(x, *rest, blank_id=0)[0] * 2.0**15
  found, exact = jax.grad(scaled)(logits), jax.grad(scaled)(logits.astype(np.float32))
  assert found.dtype == np.float16 and abs(exact).max() > 1e-3
  np.testing.assert_allclose(found, exact, rtol=1e-3)


batches = st.builds(
  lambda seed, scale: make_batch((5, 14, 4, 5), seed, scale),
  st.integers(0, 10**6),
  st.sampled_from([0.01, 1.0, 5.0, 40.0]),
)
quick = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)


@quick
@hypothesis.given(batches, st.permutations(range(5)))
def test_rows_do_not_know_their_place(batch, order):
  order = np.array(order)
  rows, gradient = value_and_grad(*batch)
  assert (np.asarray(rows) >= 0).all()
  np.testing.assert_allclose(rows, oracle(*batch), rtol=2e-5, atol=2e-5)
  moved, moved_gradient = value_and_grad(*(x[order] for x in batch))
  np.testing.assert_allclose(moved, rows[order], rtol=1e-6)
  np.testing.assert_allclose(moved_gradient, gradient[order], atol=1e-6)


@quick
@hypothesis.given(batches)
def test_batched_equals_each_row_alone(batch):
  rows, gradient = value_and_grad(*batch)
  for i in range(5):
    row, row_gradient = value_and_grad(*(x[i : i + 1] for x in batch))
    np.testing.assert_allclose(row[0], rows[i], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(row_gradient[0], gradient[i], atol=5e-5)


@quick
@hypothesis.given(batches)
def test_longer_padding_changes_nothing(batch):
  logits, logit_len, labels, label_len = batch
  rows, gradient = value_and_grad(*batch)
  logits = np.pad(logits, ((0, 0), (0, 5), (0, 0)), constant_values=np.nan)
  labels = np.pad(labels, ((0, 0), (0, 3)), constant_values=-1)
  longer, longer_gradient = value_and_grad(logits, logit_len, labels, label_len)
  np.testing.assert_allclose(longer, rows, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(longer_gradient[:, :14], gradient, atol=2e-6)
  assert not longer_gradient[:, 14:].any()


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_vmap_and_scan_equal_jit(scale):
  batch = make_batch((6, 14, 4, 5), scale=scale)
  rows, gradient = value_and_grad(*batch)
  pairs = [x.reshape(3, 2, *x.shape[1:]) for x in batch]
  mapped = jax.vmap(value_and_grad)(*pairs)
  scanned = jax.lax.scan(
    lambda _, x: (None, value_and_grad(*x)), None, tuple(map(jnp.array, pairs))
  )
  for some_rows, some_gradient in (mapped, scanned[1]):
    np.testing.assert_allclose(some_rows.reshape(6), rows, rtol=1e-5)
    np.testing.assert_allclose(some_gradient.reshape(gradient.shape), gradient, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_sharded_batch_equals_one_device(scale):
  eight_devices.found()
  batch = make_batch((16, 14, 4, 5), scale=scale)
  rows, gradient = value_and_grad(*jax.device_put(batch, jax.devices()[0]))
  sharding = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data"))
  sharded = value_and_grad(*jax.device_put(batch, sharding))
  assert sharded[1].sharding.is_equivalent_to(sharding, 3)
  np.testing.assert_allclose(sharded[0], rows, rtol=1e-6)
  np.testing.assert_allclose(sharded[1], gradient, atol=1e-6)


def frames_and_paths(shape, seed=0):
  """What `scan_frames` is called with, of a batch with an empty row and one of the full length."""
  logits, logit_len, labels, label_len = make_batch(shape, seed=seed)
  label_len[-1] = 0
  frames = np.arange(shape[1]) < logit_len[:, None]
  classes = np.concatenate([np.zeros_like(labels[:, :1]), labels], 1)
  probs = jnp.where(frames[..., None], jax.nn.softmax(logits), 0)
  lattice = ctc._lattice(*map(jnp.asarray, (logit_len, labels, label_len)), shape[1])
  return lattice, 3, jnp.asarray(probs), jnp.asarray(frames), jnp.asarray(classes)


def paths(shape):
  """The same for `scan_paths`."""
  lattice, gain, *batch = frames_and_paths(shape)
  return lattice, gain, *ctc._emissions(*batch, 1)


def test_what_is_looked_up_frame_by_frame_is_what_all_frames_emit():
  lattice, gain, *batch = frames_and_paths((2, 40, 9, 16))
  _, _, *emissions = paths((2, 40, 9, 16))
  by_frames = jax.jit(lambda *x: ctc.scan_frames(lattice, gain, *x))(*batch)
  at_once = jax.jit(lambda *x: ctc.scan_paths(lattice, gain, *x))(*emissions)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), by_frames, at_once)


@pytest.mark.parametrize("shape", [(3, 12, 5, 4), (2, 40, 9, 16), (2, 9, 4, 1)])
def test_gpu_kernel_does_what_the_scan_does(shape):
  """Interpreted: on the GPU that was tried the two differed by 2e-9 in the gradient at most."""
  lattice, gain, *emissions = paths(shape)
  interpreted = lambda *x: ctc_gpu.run_paths(lattice, gain, ctc._FLOOR, *x, interpret=True)
  by_kernel = jax.jit(interpreted)(*emissions)
  by_scan = jax.jit(lambda *x: ctc.scan_paths(lattice, gain, *x))(*emissions)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), by_kernel[1], by_scan[1])
  np.testing.assert_allclose(by_kernel[0], by_scan[0], rtol=1e-6)


class Gpu:
  device_kind = "NVIDIA of a test"


@pytest.mark.parametrize(
  "labels, kernels", [(6, True), (0, False), (ctc_gpu.MOST_LABELS + 1, False)]
)
def test_programs_for_a_gpu_have_the_kernel_and_others_the_scan(monkeypatch, labels, kernels):
  devices = jax.local_devices
  found = lambda backend=None: devices(backend=backend) if backend else [Gpu()]
  monkeypatch.setattr(jax, "local_devices", found)
  monkeypatch.setattr(jax, "device_count", lambda *_: 1)
  logits, logit_len, _, label_len = make_batch()
  batch = logits, logit_len, np.ones((4, labels), np.int32), np.minimum(label_len, labels)
  traced = jax.jit(lambda *x: ctc_loss(*x, blank_id=0)).trace(*batch)
  program = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert ("ctc_paths" in program) == kernels
  assert "ctc_paths" not in traced.lower(lowering_platforms=("cpu",)).as_text()
  monkeypatch.setattr(jax, "device_count", lambda *_: 8)
  traced = jax.jit(lambda *x: ctc_loss(*x, blank_id=0)).trace(*batch)
  assert "ctc_paths" not in traced.lower(lowering_platforms=("cuda",)).as_text()
