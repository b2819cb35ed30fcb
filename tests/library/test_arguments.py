"""What the library's functions say of arguments that do not fit, when traced and when run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, masks, selection
from jaxkd.inference import alignment
from jaxkd.inference.search.greedy import best_path, collapse
from jaxkd.inference.search.prefix import prefix_beam

pytestmark = pytest.mark.usefixtures("quick_to_compile")
LOGITS = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
MASK = np.arange(6) < np.array([[6], [4], [6], [0]])
LABELS = np.array([[0, 1, 2], [3, 3, 0], [1, 0, 0], [0, 0, 0]], np.int32)
LENGTHS, COUNTS = np.array([6, 4, 6, 0], np.int32), np.array([3, 2, 1, 0], np.int32)
TARGETS = {"logits": LOGITS, "logit_len": LENGTHS, "labels": LABELS, "label_len": COUNTS}
TARGETS["blank_id"] = 4
KD = {"student_logits": LOGITS, "teacher_logits": LOGITS, "selected": MASK, "temperature": 2.0}
COSINE = {"student": LOGITS, "teacher": LOGITS, "selected": MASK}
GUIDED = {"student_logits": LOGITS, "teacher_logits": LOGITS, "selected": MASK}
CROSS = {"student_logits": LOGITS, "targets": LOGITS, "selected": MASK}
DELAYED = KD | {"mask": MASK}
SPLIT = {"student_logits": LOGITS, "teacher_logits": LOGITS, "blank_weights": MASK, "mask": MASK}
SPLIT |= {"label_weights": MASK, "temperature": 2.0, "blank_id": 4}
FRAMES = {"logits": LOGITS, "mask": MASK, "blank_id": 4}
KEY = jax.random.key(0)
PRIOR = np.zeros(5, np.float32)
KEEP = FRAMES | {"before": 1, "after": 1}
WITH_PRIOR = FRAMES | {"log_prior": PRIOR, "prior_scale": 0.5}
RANDOM = FRAMES | {"ratio": 1.0, "key": KEY}

# function, arguments that fit, what replaces some, error, its line
WRONG = [
  *(
    (function, TARGETS, replaced, error, line)
    for function in (losses.ctc_loss, alignment.viterbi)
    for replaced, error, line in [
      ({"logits": LOGITS[0]}, ValueError, r"logits has shape \(6, 5\); it must be \[B, T, V\]"),
      ({"logits": LOGITS.astype(int)}, TypeError, "logits is of int.*; it must be of floats"),
      ({"logits": LOGITS.astype(complex)}, TypeError, "logits is of complex"),
      ({"labels": LABELS.astype(np.float32)}, TypeError, "labels is of float32; .* integers"),
      ({"labels": LABELS[:3]}, ValueError, r"logit_len has shape \(4,\); it must be \(3,\)"),
      ({"logits": LOGITS[:3]}, ValueError, r"labels has shape \(4, 3\); it must be \(3, 3\)"),
      ({"labels": LABELS[0]}, ValueError, r"labels has shape \(3,\); it must be \[B, U\]"),
      ({"logit_len": LENGTHS > 0}, TypeError, "logit_len is of bool; it must be of integers"),
      ({"logit_len": LENGTHS[:1]}, ValueError, r"logit_len has shape \(1,\); it must be \(4,\)"),
      ({"label_len": COUNTS * 1.0}, TypeError, "label_len is of float"),
      ({"label_len": 3}, ValueError, r"label_len has shape \(\); it must be \[B\]"),
      ({"blank_id": 5}, ValueError, "blank_id is 5; it must be one of the 5 classes, 0 to 4"),
      ({"blank_id": -1}, ValueError, "blank_id is -1; it must be one of"),
      ({"blank_id": 1.0}, TypeError, "blank_id is 1.0; it must be one of"),
      ({"blank_id": None}, TypeError, "blank_id is None; it must be one of"),
    ]
  ),
  *(
    (losses.kd_kl, KD, replaced, error, line)
    for replaced, error, line in [
      ({"temperature": 0}, ValueError, "temperature is 0; it must be finite and above 0"),
      ({"temperature": -2.0}, ValueError, "temperature is -2; it must be"),
      ({"temperature": np.inf}, ValueError, "temperature is inf; it must be"),
      ({"temperature": jnp.float32(np.nan)}, ValueError, "temperature is nan; it must be"),
      ({"temperature": "2"}, TypeError, "temperature is '2'; it must be"),
      ({"temperature": np.ones(4)}, ValueError, r"temperature has shape \(4,\); .* single number"),
      ({"teacher_logits": LOGITS[..., :4]}, ValueError, "the shape of student_logits"),
      ({"teacher_logits": LOGITS[:, :5]}, ValueError, r"teacher_logits has shape \(4, 5, 5\)"),
      ({"teacher_logits": LOGITS[:, :, :1]}, ValueError, "teacher_logits has shape"),
      ({"selected": MASK[:, :5]}, ValueError, r"selected has shape \(4, 5\); it must be \(4, 6\)"),
      ({"selected": MASK[:1]}, ValueError, "selected has shape"),
      ({"selected": MASK * 1j}, TypeError, "selected is of complex"),
    ]
  ),
  *(
    (function, arguments, replaced, error, line)
    for function, arguments in [(losses.delayed_kl, DELAYED), (losses.split_kl, SPLIT)]
    for replaced, error, line in [
      ({"temperature": 0}, ValueError, "temperature is 0; it must be finite and above 0"),
      ({"mask": MASK * 1.0}, TypeError, "mask is of float"),
      ({"mask": MASK[:1]}, ValueError, "mask has shape"),
      ({"softness": 0.0}, ValueError, "softness is 0; it must be finite and above 0"),
      (
        {"delays": ()},
        ValueError,
        r"delays is \(\); it must be whole numbers of",
      ),
      ({"delays": (1, 1)}, ValueError, r"delays is \(1, 1\); it must be whole numbers"),
      ({"delays": (0.5,)}, TypeError, r"delays is 0.5; it must be a whole number"),
      ({"delays": 1}, TypeError, "delays is 1; it must be several whole numbers"),
      (
        {"delays": (0, 2**31)},
        ValueError,
        "delays is .*; it must be whole numbers of frames below",
      ),
      ({"teacher_logits": LOGITS[:, :5]}, ValueError, "teacher_logits has shape"),
    ]
  ),
  (losses.split_kl, SPLIT, {"label_weights": MASK[:1]}, ValueError, "label_weights has shape"),
  (losses.split_kl, SPLIT, {"blank_weights": MASK * 1j}, TypeError, "blank_weights is of complex"),
  (losses.split_kl, SPLIT, {"blank_id": 5}, ValueError, "blank_id is 5; it must be one of the 5"),
  (
    losses.split_kl,
    SPLIT | {"student_logits": LOGITS[..., :1], "teacher_logits": LOGITS[..., :1]},
    {"blank_id": 0},
    ValueError,
    "there must be two classes or more",
  ),
  (losses.guided_ctc, GUIDED, {"selected": MASK[:1]}, ValueError, "selected has shape"),
  (losses.soft_cross_entropy, CROSS, {"targets": LOGITS[..., :4]}, ValueError, "targets has shape"),
  (losses.soft_cross_entropy, CROSS, {"targets": MASK}, TypeError, "targets is of bool"),
  (losses.ctc_occupancy, TARGETS, {"blank_id": 5}, ValueError, "blank_id is 5; it must be one of"),
  (losses.cosine_distance, COSINE, {"teacher": LOGITS[..., :1]}, ValueError, "teacher has shape"),
  (losses.cosine_distance, COSINE, {"selected": MASK[0]}, ValueError, "selected has shape"),
  *(
    (function, arguments, replaced, error, line)
    for function, arguments in [
      (selection.all_frames, FRAMES),
      (selection.nonblank, FRAMES),
      (selection.trim, FRAMES),
      (selection.keep, KEEP),
      (selection.symmetric, FRAMES | {"n": 1}),
      (selection.threshold, FRAMES | {"min_label_prob": 0.5}),
      (selection.soft, FRAMES),
      (selection.occupancy, FRAMES),
      (selection.random_blanks, RANDOM),
      (selection.shuffled, FRAMES | {"n": 1, "key": KEY}),
      (best_path, FRAMES),
      (prefix_beam, FRAMES | {"beam": 2}),
    ]
    for replaced, error, line in [
      ({"blank_id": 5}, ValueError, "blank_id is 5; it must be one of the 5 classes, 0 to 4"),
      ({"mask": MASK[:, :5]}, ValueError, "mask has shape"),
      ({"mask": MASK * 1.0}, TypeError, "mask is of float"),
      ({"logits": LOGITS.astype(int)}, TypeError, "logits is of int"),
    ]
  ),
  (selection.nonblank, WITH_PRIOR, {"log_prior": PRIOR[:4]}, ValueError, "log_prior has shape"),
  (selection.nonblank, WITH_PRIOR, {"log_prior": None}, ValueError, "without a log_prior it must"),
  (selection.nonblank, WITH_PRIOR, {"prior_scale": np.nan}, ValueError, "prior_scale is nan"),
  (selection.random_blanks, RANDOM, {"key": 0}, TypeError, "key is 0; it must be a typed key"),
  (
    selection.shuffled,
    FRAMES | {"n": 1},
    {"key": jax.random.split(KEY)},
    ValueError,
    r"key has shape \(2,\); it must be a single key",
  ),
  (selection.keep, KEEP, {"before": -1}, ValueError, "before is -1; it must be a whole number, 0"),
  (selection.keep, KEEP, {"after": 1.5}, TypeError, "after is 1.5; it must be a whole number"),
  (selection.symmetric, FRAMES, {"n": -2}, ValueError, "n is -2; it must be a whole number, 0 or"),
  (selection.threshold, FRAMES, {"min_label_prob": 1.1}, ValueError, "min_label_prob is 1.1; it"),
  (selection.threshold, FRAMES, {"min_label_prob": -0.1}, ValueError, "min_label_prob is -0.1"),
  (selection.soft, FRAMES, {"min_weight": 2}, ValueError, "min_weight is 2; it must be from 0 to"),
  (selection.random_blanks, RANDOM, {"ratio": -1}, ValueError, "ratio is -1; it must be finite"),
  (selection.random_blanks, RANDOM, {"ratio": np.inf}, ValueError, "ratio is inf"),
  (prefix_beam, FRAMES, {"beam": 0}, ValueError, "beam is 0; it must be 1 or more"),
  (prefix_beam, FRAMES, {"beam": 2.5}, TypeError, "beam is 2.5; it must be a whole number"),
  (masks.dilate, {"mask": MASK[0]}, {"before": -1, "after": 0}, ValueError, "before is -1"),
  (masks.length_mask, {"size": 3}, {"lengths": COUNTS * 1.0}, TypeError, "lengths is of float"),
]


@pytest.mark.parametrize(("function", "arguments", "replaced", "error", "line"), WRONG)
def test_what_is_known_when_traced_raises(function, arguments, replaced, error, line):
  arguments = arguments | replaced
  with pytest.raises(error, match=line) as eager:
    function(**arguments)
  assert "\n" not in str(eager.value)
  arrays = {k: v for k, v in arguments.items() if isinstance(v, np.ndarray)}
  static = {k: v for k, v in arguments.items() if k not in arrays}
  with pytest.raises(error):
    jax.eval_shape(functools.partial(function, **static), **arrays)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_prior_of_what_is_no_number_is_refused(value):
  prior = np.where(np.arange(5) == 1, np.float32(value), PRIOR)
  select = functools.partial(selection.nonblank, **WITH_PRIOR | {"log_prior": prior})
  for call in (select, jax.jit(select)):
    with pytest.raises(ValueError, match="log_prior has a class that is not finite"):
      call()


@functools.partial(jax.jit, static_argnames="blank_id")
def ctc(logits, logit_len, labels, label_len, blank_id=4):
  """Losses and the gradient of their sum."""
  total = lambda x: losses.ctc_loss(x, logit_len, labels, label_len, blank_id=blank_id).sum()
  return losses.ctc_loss(logits, logit_len, labels, label_len, blank_id=blank_id), jax.grad(total)(
    logits
  )


aligned = jax.jit(alignment.viterbi, static_argnames="blank_id")
SMALLEST, LARGEST = -(2**31), 2**31 - 1


@pytest.mark.parametrize("value", [7, LARGEST, -1, SMALLEST])
@pytest.mark.parametrize("field", ["logit_len", "label_len"])
def test_lengths_that_cannot_be_have_no_path(field, value):
  if field == "label_len" and value == 7:
    value = 4
  targets = TARGETS | {field: np.where(np.arange(4) == 0, value, TARGETS[field]).astype(np.int32)}
  assert_first_row_has_no_path(targets)


@pytest.mark.parametrize("label", [-1, SMALLEST, 4, 5, LARGEST])
def test_labels_that_are_no_class_or_the_blank_have_no_path(label):
  labels = LABELS.copy()
  labels[0, 1] = label
  labels[1:, 2] = label  # beyond label_len it may be anything
  assert_first_row_has_no_path(TARGETS | {"labels": labels})


def assert_first_row_has_no_path(targets):
  rows, gradient = ctc(**targets)
  wanted, wanted_gradient = ctc(**TARGETS)
  assert rows[0] == np.inf and not gradient[0].any()
  np.testing.assert_array_equal(rows[1:], wanted[1:])
  np.testing.assert_array_equal(gradient[1:], wanted_gradient[1:])
  found, usual = aligned(**targets), aligned(**TARGETS)
  assert found.score[0] == -np.inf and (found.path[0] == -1).all() and (found.first[0] == -1).all()
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:], b[1:]), found, usual)
  assert np.isfinite(wanted).all()


def test_large_numbers_are_not_cut_to_small_ones():
  """2^32 + 6 is not 6."""
  frames = np.array([2**32 + 6, 4, 6, 0])
  rows = losses.ctc_loss(LOGITS, frames, LABELS, COUNTS, blank_id=4)
  np.testing.assert_array_equal(np.isinf(rows), [True, False, False, False])


def test_a_traced_blank_that_is_no_class():
  frames = jax.jit(
    lambda blank: [
      f(LOGITS, MASK, blank_id=blank)
      for f in (
        selection.all_frames,
        selection.trim,
        best_path,
        functools.partial(prefix_beam, beam=2),
      )
    ]
  )
  for blank in (-1, 5):
    everything, trimmed, path, (_, lengths, log_p) = frames(blank)
    assert not everything.any() and not trimmed.any()
    assert (path[MASK] == -1).all()
    assert np.isnan(log_p).all() and not lengths.any()
  loss = jax.jit(losses.ctc_loss)
  rest = LOGITS, LENGTHS, LABELS, COUNTS
  assert (loss(*rest, blank_id=5) == np.inf).all()
  np.testing.assert_array_equal(loss(*rest, blank_id=4), ctc(**TARGETS)[0])


def test_traced_numbers_that_cannot_be():
  kd = jax.jit(losses.kd_kl)
  for temperature in (0.0, -1.0, np.nan, np.inf):
    assert np.isnan(kd(LOGITS, LOGITS + 1, MASK, temperature=temperature).total)
  assert np.isfinite(kd(LOGITS, LOGITS + 1, MASK, temperature=1.0).total)
  nothing = {
    "keep": [{"before": -1, "after": 1}, {"before": 1, "after": -1}],
    "symmetric": [{"n": -1}, {"n": SMALLEST}],
    "threshold": [{"min_label_prob": x} for x in (-0.1, 1.1, np.nan)],
    "random_blanks": [{"ratio": x, "key": KEY} for x in (-1.0, np.nan, np.inf)],
    "nonblank": [
      {"log_prior": PRIOR, "prior_scale": np.nan},
      {"log_prior": np.where(np.arange(5) == 1, -np.inf, PRIOR), "prior_scale": 0.5},
    ],
    "shuffled": [{"n": -1, "key": KEY}],
  }
  for name, cases in nothing.items():
    select = jax.jit(functools.partial(getattr(selection, name), blank_id=4))
    for options in cases:
      assert not select(LOGITS, MASK, **options).any(), (name, options)
  frames = {"student_logits": LOGITS, "teacher_logits": LOGITS + 1}
  for loss, arguments in ((losses.delayed_kl, DELAYED), (losses.split_kl, SPLIT)):
    traced = jax.jit(functools.partial(loss, delays=(0,)))
    for wrong in ({"softness": -1.0}, {"temperature": 0.0}):
      assert np.isnan(traced(**arguments | frames | wrong).total)
  assert np.isnan(traced(**SPLIT | frames | {"blank_id": 5}).total)
  soft = jax.jit(functools.partial(selection.soft, blank_id=4))
  for least in (-1.0, 1.1, np.nan):
    weights = soft(LOGITS, MASK, min_weight=least)
    assert np.isnan(weights[MASK]).all() and not weights[~MASK].any()


@pytest.mark.parametrize(
  "loss",
  [
    functools.partial(losses.kd_kl, temperature=1.0),
    functools.partial(losses.delayed_kl, temperature=1.0, mask=MASK),
    lambda x, y, weights: losses.split_kl(x, y, weights, MASK, MASK, temperature=1.0, blank_id=4),
    losses.guided_ctc,
    losses.soft_cross_entropy,
  ],
)
def test_weights_below_zero_are_nan(loss):
  weights = np.where(MASK, np.float32(1), 0)
  weights[0, 0] = -1
  found = loss(LOGITS, LOGITS + 1, weights)
  assert np.isnan(found.total) and np.isnan(found.weight)


BROKEN = {
  "nan": [0, np.nan, 0, 0, 0],
  "infinite": [0, 0, np.inf, 0, 0],
  "all excluded": [-np.inf] * 5,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_real_frame_without_a_softmax(kind):
  """Row 0 has one; row 1 has it in its padding."""
  logits = LOGITS.copy()
  logits[0, 2] = logits[1, 4] = BROKEN[kind]
  rows, gradient = ctc(**TARGETS | {"logits": logits})
  wanted, wanted_gradient = ctc(**TARGETS)
  assert np.isnan(rows[0]) and np.isnan(gradient[0]).any()
  np.testing.assert_allclose(rows[1:], wanted[1:], rtol=1e-6)
  np.testing.assert_allclose(gradient[1:], wanted_gradient[1:], atol=1e-6)
  found = aligned(**TARGETS | {"logits": logits})
  np.testing.assert_array_equal(np.isnan(found.score), [True, False, False, False])
  assert (found.path[0] == -1).all() and (found.first[0] == -1).all()
  # A row that has no path anyway has none.
  longer = TARGETS | {"logits": logits, "label_len": COUNTS + 9}
  assert ctc(**longer)[0][0] == np.inf and aligned(**longer).score[0] == -np.inf

  for pair in ((logits, LOGITS), (LOGITS, logits)):
    assert np.isnan(losses.kd_kl(*pair, MASK, temperature=2.0).total)
    few = MASK & (np.arange(6) != 2)
    assert np.isfinite(losses.kd_kl(*pair, few, temperature=2.0).total)

  path = np.asarray(best_path(logits, MASK, blank_id=4))
  np.testing.assert_array_equal(np.argwhere(path < 0), [[0, 2]])
  with pytest.raises(ValueError, match=r"path\[2\] is -1: the model's logits have no softmax"):
    collapse(path[0], blank_id=4)
  _, lengths, log_p = prefix_beam(logits, MASK, blank_id=4, beam=3)
  np.testing.assert_array_equal(np.isnan(log_p).all(1), [True, False, False, False])
  assert not lengths[0].any()
  usual = prefix_beam(LOGITS, MASK, blank_id=4, beam=3)
  np.testing.assert_allclose(log_p[1:], usual[2][1:], rtol=1e-6)


@pytest.mark.parametrize("kind", BROKEN)
def test_every_selector_passes_a_frame_without_a_softmax_on(kind):
  logits = np.zeros((1, 9, 5), np.float32)
  logits[..., 4] = 9  # blanks
  logits[0, 4] = BROKEN[kind]
  mask = np.ones((1, 9), bool)
  alone = np.arange(9)[None] == 4
  select = lambda name, **options: np.asarray(
    getattr(selection, name)(logits, mask, blank_id=4, **options)
  )
  np.testing.assert_array_equal(select("nonblank"), alone)
  np.testing.assert_array_equal(select("nonblank", log_prior=PRIOR, prior_scale=1.0), alone)
  np.testing.assert_array_equal(select("trim"), alone)
  np.testing.assert_array_equal(select("keep", before=0, after=0), alone)
  np.testing.assert_array_equal(select("threshold", min_label_prob=0.5), alone)
  assert select("symmetric", n=1).sum() == 3 and select("random_blanks", ratio=1.0, key=KEY)[alone]
  np.testing.assert_array_equal(np.isnan(select("soft")), alone)


def test_cosine_distance_of_what_has_no_direction():
  student, teacher = LOGITS.copy(), LOGITS.copy()
  for value in (np.nan, np.inf):
    student[0, 1, 2] = value
    assert np.isnan(losses.cosine_distance(student, teacher, MASK).total)
  # A square beyond float32.
  large = losses.cosine_distance(LOGITS * np.float32(1e25), -LOGITS, MASK)
  np.testing.assert_allclose(large.total, 2 * MASK.sum(), rtol=1e-6)
