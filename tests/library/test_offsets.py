"""What is common to all logits of a frame changes nothing, however large: against float64."""

import jax
import numpy as np
import pytest

import reference
from jaxkd import losses, selection
from jaxkd.inference import alignment
from jaxkd.inference.search.prefix import prefix_beam

pytestmark = pytest.mark.usefixtures("quick_to_compile")
torch = pytest.importorskip("torch")
ROWS, FRAMES, CLASSES, BLANK = 4, 30, 6, 0
MASK = np.arange(FRAMES) < np.array([[30], [20], [25], [30]])
LENGTHS = MASK.sum(1).astype(np.int32)
LABELS = np.random.default_rng(1).integers(1, 5, (ROWS, 7)).astype(np.int32)
COUNTS = np.array([7, 5, 0, 3], np.int32)


def make_logits(offset, seed, dtype=np.float32):
  """Multiples of 1/8, which float32 holds beside offsets up to 2^20; class 5 is excluded."""
  rng = np.random.default_rng(seed)
  logits = np.round(24 * rng.normal(size=(ROWS, FRAMES, CLASSES))) / 8
  logits[..., 5] = -np.inf
  frames = np.round(offset * rng.uniform(-1, 1, (ROWS, FRAMES, 1)))
  moved = (logits + frames).astype(dtype)
  np.testing.assert_array_equal(moved[..., :5].astype(np.float64) - frames, logits[..., :5])
  return moved


def torch_ctc(logits):
  """Losses and gradient of log probabilities, in float64."""
  logits = torch.tensor(np.float64(logits[..., :5]), requires_grad=True)
  targets = (torch.tensor(np.int64(x)) for x in (LABELS, LENGTHS, COUNTS))
  log_probs = logits.log_softmax(-1).transpose(0, 1)
  rows = torch.nn.functional.ctc_loss(log_probs, *targets, blank=BLANK, reduction="none")
  rows.sum().backward()
  return rows.detach().numpy(), logits.grad.numpy()


@jax.jit
def ctc(logits):
  total = lambda x: losses.ctc_loss(x, LENGTHS, LABELS, COUNTS, blank_id=BLANK)
  return total(logits), jax.grad(lambda x: total(x).sum())(logits)


@jax.jit
def kd(student, teacher):
  total = lambda x: losses.kd_kl(x, teacher, MASK, temperature=3.0).total
  return jax.value_and_grad(total)(student)


# 20 times as peaky: probabilities leave float32, and the loss is computed in logarithms.
@pytest.mark.parametrize("peaky", [1, 20])
@pytest.mark.parametrize("offset", [0, 1e3, 1e5, 1e6])
def test_ctc_equals_torch(offset, peaky):
  logits = make_logits(offset, 0)
  logits = np.where(peaky == 1, logits, np.float32(peaky) * make_logits(offset / peaky, 0))
  rows, gradient = ctc(logits)
  expected, expected_gradient = torch_ctc(logits)
  np.testing.assert_allclose(rows, expected, rtol=2e-6)
  np.testing.assert_allclose(gradient[..., :5], expected_gradient, atol=1e-4 if peaky > 1 else 5e-6)
  assert not np.asarray(gradient)[..., 5].any()


@pytest.mark.parametrize("offset", [0, 1e3, 1e5, 1e6])
def test_kl_equals_float64(offset):
  student, teacher = make_logits(offset, 0), make_logits(offset, 1)
  total, gradient = kd(student, teacher)
  exact = student[..., :5], teacher[..., :5]
  np.testing.assert_allclose(total, reference.kd_kl(*exact, MASK, 3.0)[0], rtol=2e-6)
  p, q = (np.exp(reference.log_softmax(np.float64(x) / 3)) for x in exact)
  expected = 3 * MASK[..., None] * (p - q)
  np.testing.assert_allclose(gradient[..., :5], expected, atol=2e-6)


@jax.jit
def chosen(logits):
  """What is made of log probabilities elsewhere."""
  prior = np.log(np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1], np.float32))
  frames = {"logits": logits, "mask": MASK, "blank_id": BLANK}
  return {
    "viterbi": alignment.viterbi(logits, LENGTHS, LABELS, COUNTS, blank_id=BLANK),
    "prefix_beam": prefix_beam(**frames, beam=4),
    "prior": selection.nonblank(**frames, log_prior=prior, prior_scale=0.5),
    "threshold": selection.threshold(**frames, min_label_prob=0.03),
    "soft": selection.soft(**frames),
  }


@pytest.mark.parametrize("offset", [1e3, 1e5, 1e6])
def test_alignments_beams_and_selections_are_those_without_offset(offset):
  moved, still = chosen(make_logits(offset, 2)), chosen(make_logits(0, 2))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), moved, still)
  assert np.isfinite(still["viterbi"].score).all()


def test_float64_logits_keep_what_float32_would_round():
  """At 1e6, float32 has steps of 1/16."""
  rng = np.random.default_rng(5)
  student, teacher = 1e6 + rng.normal(size=(2, ROWS, FRAMES, 5))
  with jax.enable_x64(True):
    rows, gradient = ctc(student)
    total, _ = kd(student, teacher)
  expected, expected_gradient = torch_ctc(student)
  assert rows.dtype == np.float32 and gradient.dtype == np.float64
  np.testing.assert_allclose(rows, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, expected_gradient, atol=5e-6)
  with jax.enable_x64(True):
    found, still = (
      losses.ctc_occupancy(x, LENGTHS, LABELS, COUNTS, blank_id=BLANK)
      for x in (student * 1.0, student - 1e6)
    )
  np.testing.assert_allclose(found, still, atol=1e-6)
  np.testing.assert_allclose(total, reference.kd_kl(student, teacher, MASK, 3.0)[0], rtol=1e-5)
