"""The selection of a config block with its schedule (objective.make_selector)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import selection
from jaxkd.masks import length_mask
from jaxkd.training import objective

BLANK = 3
LOGITS = jax.random.normal(jax.random.key(0), (3, 20, 4)).at[..., BLANK].add(2)
MASK = length_mask(jnp.array([20, 13, 0]), 20)
KEY = jax.random.key(1)

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def kd(name: str, *, start: int = 0, stop: int = 0, grow: int = 0, **fields) -> ConfigDict:
  return ConfigDict(
    dict(
      selection=dict(name=name, **fields),
      start_epoch=start,
      stop_epoch=stop,
      grow_epochs=grow,
      n_ramp=(),
    )
  )


def selector(block: ConfigDict, log_prior=None):
  """epoch -> bool[B, T], jitted once as in the train step: epoch is traced."""
  select = jax.jit(objective.make_selector(block, blank_id=BLANK, log_prior=log_prior))
  return lambda epoch: np.asarray(select(LOGITS, MASK, KEY, jnp.int32(epoch)))


def pattern(name: str, **options) -> np.ndarray:
  return np.asarray(getattr(selection, name)(LOGITS, MASK, blank_id=BLANK, **options))


@pytest.mark.parametrize(
  ("name", "fields", "extra"),
  [
    ("all_frames", {}, {}),
    ("nonblank", {}, {}),
    ("nonblank", {"prior_scale": 0.0}, {}),
    ("trim", {}, {}),
    ("keep", {"before": 1, "after": 3}, {}),
    ("symmetric", {"n": 2}, {}),
    ("threshold", {"min_label_prob": 0.3}, {}),
    ("random_blanks", {"ratio": 0.5}, {"key": KEY}),
  ],
)
def test_every_selection_is_its_pattern(name, fields, extra):
  found = selector(kd(name, **fields))(0)
  np.testing.assert_array_equal(found, pattern(name, **fields, **extra))
  assert found[:2].any() and (name == "all_frames" or found.sum() < MASK.sum())
  assert not (found & ~np.asarray(MASK)).any()


def test_prior_reaches_the_pattern():
  prior = jnp.log(jnp.array([0.02, 0.02, 0.02, 0.94]))
  found = selector(kd("nonblank", prior_scale=0.5), prior)(0)
  np.testing.assert_array_equal(found, pattern("nonblank", prior_scale=0.5, log_prior=prior))
  assert found.sum() > pattern("nonblank").sum()


@pytest.mark.parametrize(
  ("start", "stop", "active"),
  [(0, 0, range(6)), (2, 0, range(2, 6)), (0, 3, range(3)), (2, 4, range(2, 4))],
)
def test_all_frames_before_start_and_from_stop_on(start, stop, active):
  select = selector(kd("trim", start=start, stop=stop))
  for epoch in range(6):
    wanted = pattern("trim") if epoch in active else np.asarray(MASK)
    np.testing.assert_array_equal(select(epoch), wanted, err_msg=f"epoch {epoch}")


@pytest.mark.parametrize("grow", [1, 2, 3])
def test_neighbours_grow(grow):
  symmetric = selector(kd("symmetric", n=2, grow=grow))
  keep = selector(kd("keep", before=1, after=2, grow=grow))
  for epoch in range(0, 7, 2):
    times = epoch // grow
    np.testing.assert_array_equal(symmetric(epoch), pattern("symmetric", n=2 * times))
    np.testing.assert_array_equal(keep(epoch), pattern("keep", before=times, after=2 * times))


def test_growth_within_the_schedule():
  select = selector(kd("symmetric", n=1, start=2, grow=2))
  np.testing.assert_array_equal(select(1), MASK)
  np.testing.assert_array_equal(select(2), pattern("symmetric", n=1))
  np.testing.assert_array_equal(select(4), pattern("symmetric", n=2))
