"""Selections against the authors' masks, loops over the definitions, and their own properties."""

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
from jaxkd import selection

pytestmark = pytest.mark.usefixtures("quick_to_compile")

LOG_PRIOR = np.log(np.array([0.7, 0.1, 0.05, 0.05, 0.05, 0.05], np.float32))
KEY = jax.random.key(0)
# name → selector, its oracle, options of both.
EXACT = {
  "all": (selection.all_frames, reference.select_all, {}),
  "nonblank": (selection.nonblank, reference.select_nonblank, {}),
  "prior": (
    selection.nonblank,
    reference.select_nonblank,
    {"log_prior": LOG_PRIOR, "prior_scale": 0.5},
  ),
  "trim": (selection.trim, reference.select_trim, {}),
  "before": (selection.keep, reference.select_keep, {"before": 2, "after": 0}),
  "after": (selection.keep, reference.select_keep, {"before": 1, "after": 3}),
  "symmetric": (selection.symmetric, reference.select_symmetric, {"n": 2}),
  "wide": (selection.symmetric, reference.select_symmetric, {"n": 100}),
  "threshold": (selection.threshold, reference.select_threshold, {"min_label_prob": 0.2}),
}
SELECTORS = {name: functools.partial(f, **options) for name, (f, _, options) in EXACT.items()}
SELECTORS["random"] = functools.partial(selection.random_blanks, ratio=0.5, key=KEY)
SELECTORS["shuffled"] = functools.partial(selection.shuffled, n=1, key=KEY)
JITTED = {name: jax.jit(f, static_argnames="blank_id") for name, f in SELECTORS.items()}
every_selector = pytest.mark.parametrize("name", SELECTORS)


def make_batch(seed=0, rows=8, frames=23, classes=6, blank_id=0):
  """Peaky logits f32[B, T, V] and bool[B, T] of lengths from 0 to T; row 2 is all blank."""
  rng = np.random.default_rng(seed)
  logits = (2 * rng.normal(size=(rows, frames, classes))).astype(np.float32)
  logits[..., blank_id] += 3
  logits[2, :, blank_id] += 100
  lengths = rng.integers(2, frames + 1, rows)
  lengths[[0, 1, 2, 3]] = frames, 0, frames - 4, 1
  return logits, np.arange(frames) < lengths[:, None]


def golden_selection(name, logits, case):
  """bool[B, T] of a variant as the golden file names it."""
  blank_id = logits.shape[-1] - 1
  pattern, *numbers = name.rsplit("_", 2) if name.startswith("keep") else name.rsplit("_", 1)
  numbers = [float(x) for x in numbers]
  pattern, options = {
    "elimination": (selection.nonblank, {}),
    "elimination_prior": (
      selection.nonblank,
      {"log_prior": case["log_prior"], "prior_scale": sum(numbers)},
    ),
    "trim": (selection.trim, {}),
    "symmetric": (selection.symmetric, {"n": int(sum(numbers))}),
    "keep": (selection.keep, {"before": int(sum(numbers[:1])), "after": int(sum(numbers[1:]))}),
    "threshold": (selection.threshold, {"min_label_prob": sum(numbers)}),
    "random": (selection.random_blanks, {"ratio": sum(numbers), "key": KEY}),
  }[pattern]
  return np.asarray(pattern(logits, np.ones(logits.shape[:2], bool), blank_id=blank_id, **options))


@pytest.mark.parametrize("case", ["a", "b"])
def test_equals_the_authors_masks(case):
  case = reference.golden(case)
  logits = case["teacher_logits"]
  variants = {name: v["mask"] for name, v in case["variants"].items() if "mask" in v}
  assert len(variants) == 19
  for name, expected in variants.items():
    got = golden_selection(name, logits, case)
    if name.startswith("random"):
      np.testing.assert_array_equal(got.sum(1), expected.sum(1), err_msg=name)
      labels = logits.argmax(-1) != logits.shape[-1] - 1
      assert got[labels].all() and expected[labels].all()
    else:
      np.testing.assert_array_equal(got, expected, err_msg=name)


@pytest.mark.parametrize("blank_id", [0, 2, 5])
@pytest.mark.parametrize("name", EXACT)
def test_equals_loops_over_the_definition(name, blank_id):
  _, oracle, options = EXACT[name]
  for seed in range(3):
    logits, mask = make_batch(seed, blank_id=blank_id)
    got = np.asarray(JITTED[name](logits, mask, blank_id=blank_id))
    assert got.dtype == bool and got.shape == mask.shape
    for row, (x, m) in enumerate(zip(logits, mask, strict=True)):
      expected = np.zeros(len(m), bool)
      expected[m] = oracle(x[m], blank_id, **options)
      np.testing.assert_array_equal(got[row], expected)


@every_selector
def test_padding_is_not_read(name):
  logits, mask = make_batch()
  expected = JITTED[name](logits, mask, blank_id=0)
  for garbage in (np.nan, np.inf, -np.inf, 1e30):
    dirty = np.where(mask[..., None], logits, np.float32(garbage))
    np.testing.assert_array_equal(JITTED[name](dirty, mask, blank_id=0), expected)
  # Label frames in the padding would attract their neighbours.
  labels = np.where(mask[..., None], logits, np.arange(6, dtype=np.float32))
  np.testing.assert_array_equal(JITTED[name](labels, mask, blank_id=0), expected)
  longer = np.pad(logits, ((0, 0), (0, 9), (0, 0)), constant_values=np.nan)
  got = JITTED[name](longer, np.pad(mask, ((0, 0), (0, 9))), blank_id=0)
  np.testing.assert_array_equal(got[:, : mask.shape[1]], expected)
  assert not got[:, mask.shape[1] :].any()


@every_selector
def test_teacher_of_blanks_alone_selects_nothing(name):
  logits, mask = make_batch()
  logits[..., 0] += 100
  selected = JITTED[name](logits, mask, blank_id=0)
  np.testing.assert_array_equal(selected, mask if name == "all" else np.zeros_like(mask))


@every_selector
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
  logits, mask = make_batch()
  half = jnp.array(logits, dtype)
  np.testing.assert_array_equal(
    JITTED[name](half, mask, blank_id=0),
    JITTED[name](half.astype(jnp.float32), mask, blank_id=0),
  )


def test_neighbours_reach_to_their_own_side():
  logits = np.zeros((1, 9, 2), np.float32)
  logits[:, :, 0] = 1
  logits[:, 4, 1] = 2
  mask = np.ones((1, 9), bool)
  selected = selection.keep(logits, mask, blank_id=0, before=1, after=3)
  np.testing.assert_array_equal(np.flatnonzero(selected), [3, 4, 5, 6, 7])


def test_neighbourhood_may_be_traced_and_of_any_size():
  logits, mask = make_batch()
  keep = jax.jit(lambda b, a: selection.keep(logits, mask, blank_id=0, before=b, after=a))
  for before, after in [(0, 0), (3, 1), (0, 22), (23, 0), (10**6, 5), (2**31 - 1, 2**31 - 1)]:
    expected = selection.keep(logits, mask, blank_id=0, before=before, after=after)
    np.testing.assert_array_equal(keep(jnp.int32(before), jnp.int32(after)), expected)
  grown = jax.jit(lambda n: selection.symmetric(logits, mask, blank_id=0, n=n))
  for n in (0, 1, 4):
    np.testing.assert_array_equal(
      grown(jnp.int32(n)), keep(jnp.int32(n), jnp.int32(n)), err_msg=str(n)
    )


def test_special_cases_meet():
  logits, mask = make_batch()
  labels = selection.nonblank(logits, mask, blank_id=0)
  assert labels.any() and (mask & ~labels).any()
  threshold = functools.partial(selection.threshold, logits, mask, blank_id=0)
  random = functools.partial(selection.random_blanks, logits, mask, blank_id=0, key=KEY)
  np.testing.assert_array_equal(selection.symmetric(logits, mask, blank_id=0, n=0), labels)
  np.testing.assert_array_equal(threshold(min_label_prob=0.0), mask)
  np.testing.assert_array_equal(threshold(min_label_prob=1.0), labels)
  np.testing.assert_array_equal(random(ratio=0.0), labels)
  with_labels = mask & np.asarray(labels).any(1, keepdims=True)
  for ratio in (1e3, 1e12):
    np.testing.assert_array_equal(random(ratio=ratio), with_labels)
  prior = functools.partial(selection.nonblank, logits, mask, blank_id=0, log_prior=LOG_PRIOR)
  np.testing.assert_array_equal(prior(prior_scale=0.0), labels)
  # A prior makes blanks rarer, the more the larger its scale.
  counts = [int(prior(prior_scale=s).sum()) for s in (0.0, 0.5, 1.0, 2.0)]
  assert counts == sorted(set(counts))


@pytest.mark.parametrize("select", [selection.soft, selection.occupancy])
def test_weights_bring_the_teacher_no_gradient(select):
  logits = np.random.default_rng(3).normal(size=(2, 6, 4)).astype(np.float32)
  weights = np.arange(12.0).reshape(2, 6)
  weighed = lambda x: (select(x, np.ones((2, 6), bool), blank_id=0) * weights).sum()
  assert weighed(logits) > 0 and not jax.grad(weighed)(logits).any()


def test_log_prior_is_subtracted_from_log_probabilities():
  probs = np.array([[[0.6, 0.4], [0.9, 0.1], [0.75, 0.25]]], np.float32)
  selected = selection.nonblank(
    np.log(probs) + 7,
    np.ones((1, 3), bool),
    blank_id=0,
    log_prior=np.log(np.array([0.8, 0.2], np.float32)),
    prior_scale=0.5,
  )
  # Label where p_1 / p_0 > sqrt(0.2 / 0.8) = 0.5.
  np.testing.assert_array_equal(selected, [[True, False, False]])


def test_threshold_sees_small_masses():
  # 1 - p(blank) would be 0 in float32.
  logits = np.array([[[0.0, -18.0], [0.0, -17.0]]], np.float32)
  selected = selection.threshold(logits, np.ones((1, 2), bool), blank_id=0, min_label_prob=3e-8)
  np.testing.assert_array_equal(selected, [[False, True]])


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 7.5])
def test_random_blanks_are_as_many_as_wanted(ratio):
  for seed in range(3):
    logits, mask = make_batch(seed)
    selected = np.asarray(
      selection.random_blanks(logits, mask, blank_id=0, ratio=ratio, key=jax.random.key(seed))
    )
    expected = [
      reference.random_blanks_count(x[m], 0, ratio) for x, m in zip(logits, mask, strict=True)
    ]
    np.testing.assert_array_equal(selected.sum(1), expected)
    labels = np.asarray(selection.nonblank(logits, mask, blank_id=0))
    assert selected[labels].all() and not selected[~mask].any()


@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_shuffled_blanks_are_as_many_as_symmetric_has(n):
  for seed in range(3):
    logits, mask = make_batch(seed)
    key = jax.random.key(seed)
    selected = np.asarray(selection.shuffled(logits, mask, blank_id=0, n=n, key=key))
    beside = [
      np.array(reference.select_symmetric(x[m], 0, n)) for x, m in zip(logits, mask, strict=True)
    ]
    np.testing.assert_array_equal(selected.sum(1), [row.sum() for row in beside])
    labels = np.asarray(selection.nonblank(logits, mask, blank_id=0))
    assert selected[labels].all() and not selected[~mask].any()
    same = [(s[m] == b).all() for s, m, b in zip(selected, mask, beside, strict=True)]
    assert all(same) == (n in (0, 100))


def test_half_a_blank_rounds_to_even():
  for labels, blanks in [(1, 0), (2, 1), (3, 2), (5, 2), (7, 4)]:
    logits = np.zeros((1, 30, 2), np.float32)
    logits[0, :labels, 1] = 1
    selected = selection.random_blanks(
      logits, np.ones((1, 30), bool), blank_id=0, ratio=0.5, key=KEY
    )
    assert int(selected.sum()) == labels + blanks


def test_random_blanks_follow_the_key_alone():
  logits, mask = make_batch()
  draw = lambda seed: np.asarray(
    selection.random_blanks(logits, mask, blank_id=0, ratio=1.0, key=jax.random.key(seed))
  )
  np.testing.assert_array_equal(draw(1), draw(1))
  assert (draw(1) != draw(2)).any()
  # Equal rows draw differently.
  same = np.repeat(logits[:1], 8, 0)
  rows = selection.random_blanks(same, np.ones((8, 23), bool), blank_id=0, ratio=1.0, key=KEY)
  assert len(np.unique(rows, axis=0)) > 1


def test_every_blank_is_drawn_equally_often():
  logits = np.zeros((400, 10, 2), np.float32)
  logits[..., 0] = 1
  logits[:, [2, 5, 6], 1] = 2
  mask = np.arange(10) < np.full((400, 1), 9)
  selected = selection.random_blanks(logits, mask, blank_id=0, ratio=1.0, key=KEY)
  rate = np.asarray(selected).mean(0)
  np.testing.assert_array_equal(rate[[2, 5, 6, 9]], [1, 1, 1, 0])
  # 3 of 6; a standard deviation is 0.025.
  np.testing.assert_allclose(rate[[0, 1, 3, 4, 7, 8]], 0.5, atol=0.1)


quick = hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


@every_selector
@quick
@hypothesis.given(seed=seeds, order=st.permutations(range(8)))
def test_subset_of_the_mask_and_rows_on_their_own(name, seed, order):
  logits, mask = make_batch(seed)
  select = functools.partial(JITTED[name], blank_id=0)
  selected = np.asarray(select(logits, mask))
  assert not (selected & ~mask).any()
  order = np.array(order)
  if name not in ("random", "shuffled"):
    np.testing.assert_array_equal(select(logits[order], mask[order]), selected[order])
  # A row alone, in its place since random rows draw by their number.
  row = order[0]
  alone = mask & (np.arange(8) == row)[:, None]
  expected = np.where(alone, selected, False)
  np.testing.assert_array_equal(
    select(np.where(alone[..., None], logits, np.float32(np.nan)), alone), expected
  )


@quick
@hypothesis.given(seed=seeds, n=st.integers(0, 5))
def test_more_neighbours_select_more(seed, n):
  logits, mask = make_batch(seed)
  select = jax.jit(lambda n: selection.symmetric(logits, mask, blank_id=0, n=n))
  few, many = np.asarray(select(n)), np.asarray(select(n + 1))
  assert (few <= many).all()


@every_selector
def test_vmap_equals_a_loop(name):
  batches = [make_batch(seed) for seed in range(3)]
  logits, mask = (np.stack(x) for x in zip(*batches, strict=True))
  select = functools.partial(SELECTORS[name], blank_id=0)
  expected = [select(x, m) for x, m in batches]
  np.testing.assert_array_equal(jax.jit(jax.vmap(select))(logits, mask), expected)


@every_selector
def test_sharded_batch_equals_one_device(name):
  eight_devices.found()
  batch = make_batch(rows=16)
  expected = JITTED[name](*jax.device_put(batch, jax.devices()[0]), blank_id=0)
  sharding = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data"))
  got = JITTED[name](*jax.device_put(batch, sharding), blank_id=0)
  assert got.sharding.is_equivalent_to(sharding, 2)
  np.testing.assert_array_equal(got, expected)
