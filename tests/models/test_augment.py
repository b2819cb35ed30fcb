"""SpecAugment: numbers and sizes of masks, and what is left alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.models.augment import SpecAugment, spec_augment

pytestmark = pytest.mark.usefixtures("quick_to_compile")

FRAMES, FILTERS = 130, 80
SETTINGS = SpecAugment(time_mask_frames=20, freq_mask_bins=8)
augment = functools.partial(jax.jit, static_argnums=3)(spec_augment)


def draw(seed=0, rows=256, length=FRAMES, settings=SETTINGS, frames=FRAMES):
  """bool[B, N] and bool[B, F]: masked frames and filters of equal rows of ones."""
  mask = np.broadcast_to(np.arange(frames) < length, (rows, frames))
  ones = np.ones((rows, frames, FILTERS), np.float32)
  zero = np.asarray(augment(ones, mask, jax.random.key(seed), settings)) == 0
  time, freq = zero.all(2), zero.all(1)
  # What is masked is a union of whole frames and whole filters.
  np.testing.assert_array_equal(zero, time[:, :, None] | freq[:, None, :])
  return time, freq


def runs(row) -> list[int]:
  """Lengths of the runs of True."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
  return (edges[1::2] - edges[::2]).tolist()


def test_masked_values_are_zero_and_others_untouched():
  features = np.random.default_rng(0).normal(size=(8, FRAMES, FILTERS)).astype(np.float32)
  mask = np.ones((8, FRAMES), bool)
  out = np.asarray(augment(features, mask, jax.random.key(3), SETTINGS))
  assert ((out == features) | (out == 0)).all()
  assert out.dtype == features.dtype and (out == 0).any((1, 2)).all()
  half = augment(jnp.array(features, jnp.bfloat16), mask, jax.random.key(3), SETTINGS)
  assert half.dtype == jnp.bfloat16


def test_masked_nan_becomes_zero():
  features = np.full((4, FRAMES, FILTERS), np.nan, np.float32)
  out = np.asarray(augment(features, np.ones((4, FRAMES), bool), jax.random.key(0), SETTINGS))
  assert (out == 0).any() and (np.isnan(out) | (out == 0)).all()


# Masked in all: as many masks as may be, each as wide as may be.
@pytest.mark.parametrize(
  "length, masks, more",
  [(130, 5, 1), (99, 3, 1), (75, 3, 1), (50, 2, 1), (30, 2, 1), (130, 13, 2.5), (99, 9, 2.5)],
)
def test_time_masks_are_within_bounds(length, masks, more):
  settings = SpecAugment(20, 8, more)
  if more > 1:  # narrow ones; of so many some have no width or touch
    settings = SpecAugment(2, 8, more)
  time, _ = draw(length=length, rows=4096 if more > 1 else 256, settings=settings)
  assert not time[:, length:].any()
  assert time.sum(1).max() <= masks * 20
  assert masks - (2 if more > 1 else 0) <= max(len(runs(row)) for row in time) <= masks
  # Every real frame is masked in some row.
  assert time[:, :length].any(0).all()


def test_frequency_masks_are_within_bounds():
  _, freq = draw()
  counts = [len(runs(row)) for row in freq]
  # Fewer than two where masks touch, or have no width.
  assert max(counts) == 5 and freq.sum(1).max() <= 5 * 8
  assert freq.any(0).all()
  mean = 3.5 * 4  # 2 to 5 masks of 0 to 8, less what overlaps
  assert 0.8 * mean < freq.sum(1).mean() < mean


def test_widths_are_uniform_from_none_to_the_most():
  # Two masks at the most: a row with two runs, neither at an edge nor merged, shows both widths.
  time, _ = draw(rows=2000, length=50, frames=50, settings=SpecAugment(3, 8))
  widths = np.concatenate([runs(row) for row in time if len(runs(row)) == 2])
  share = np.bincount(widths, minlength=4)[:4] / len(widths)
  assert widths.max() == 3
  np.testing.assert_allclose(share[1:], 1 / 3, atol=0.06)
  none = np.mean([not row.any() for row in time])
  np.testing.assert_allclose(none, 1 / 16, atol=0.03)


def test_key_decides_and_rows_differ():
  first, again, other = draw(1), draw(1), draw(2)
  for a, b, c in zip(first, again, other, strict=True):
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert len(np.unique(a, axis=0)) > 128


def test_no_size_masks_nothing():
  time, freq = draw(settings=SpecAugment(0, 0))
  assert not time.any() and not freq.any()
  _, freq = draw(settings=SpecAugment(20, 0))
  assert not freq.any()
