"""Save, restore, damage, best and average."""

import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import UserError
from jaxkd.training import checkpoint


def state(x: float):
  return {"w": jnp.full((64, 64), x), "deep": {"b": jnp.arange(4.0) + x}, "step": jnp.int32(x)}


def equal(a, b) -> bool:
  return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


@pytest.fixture
def saved(tmp_path):
  store = checkpoint.Checkpoints(tmp_path, keep_best=2)
  for step in (1, 2, 3):
    store.save(step, state(step), {"epoch": step, "names": {"a": "b"}})
  store.close()
  return tmp_path


def damage(folder: pathlib.Path) -> None:
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_newest_is_restored_with_its_position(saved):
  found, position = checkpoint.Checkpoints(saved, keep_best=2).restore(state(0))
  assert equal(found, state(3))
  assert position == {"epoch": 3, "names": {"a": "b"}}


def test_nothing_saved_is_none(tmp_path):
  assert checkpoint.Checkpoints(tmp_path, keep_best=1).restore(state(0)) is None


def test_a_cut_checkpoint_is_left_out_and_said(saved, caplog):
  damage(saved / "last" / "3")
  store = checkpoint.Checkpoints(saved, keep_best=2)
  with caplog.at_level(logging.WARNING):
    found, position = store.restore(state(0))
  assert equal(found, state(2)) and position["epoch"] == 2
  assert "checkpoint 3 cannot be read" in caplog.text
  # The same step can be saved again.
  store.save(3, state(3), {"epoch": 3})
  store.close()
  found, position = checkpoint.Checkpoints(saved, keep_best=2).restore(state(0))
  assert equal(found, state(3))


def test_all_damaged_is_an_error(saved):
  damage(saved / "last" / "3")
  damage(saved / "last" / "2")
  with pytest.raises(UserError, match="no checkpoint in .* can be read"):
    checkpoint.Checkpoints(saved, keep_best=2).restore(state(0))


def test_best_are_the_lowest_scores(tmp_path):
  store = checkpoint.Checkpoints(tmp_path, keep_best=2)
  for step, score in [(1, 0.5), (2, 0.2), (3, 0.9), (4, 0.3)]:
    store.save_best(step, state(step), score)
  assert [step for step, _ in store.best(state(0))] == [2, 4]
  assert equal(store.best(state(0))[0][1], state(2))


def test_best_saved_after_the_restored_step_is_forgotten(saved):
  store = checkpoint.Checkpoints(saved, keep_best=2)
  store.save_best(2, state(2), 0.5)
  store.save_best(7, state(7), 0.1)
  store.restore(state(0))
  assert [step for step, _ in store.best(state(0))] == [2]


def test_average():
  mean = checkpoint.average([state(1), state(3)])
  np.testing.assert_array_equal(mean["w"], 2.0)
  np.testing.assert_array_equal(mean["deep"]["b"], np.arange(4.0) + 2)
  half = checkpoint.average([jnp.ones(3, jnp.bfloat16), jnp.zeros(3, jnp.bfloat16)])
  assert half.dtype == jnp.bfloat16


def test_params_round_trip_and_damage(tmp_path):
  checkpoint.save_params(tmp_path / "final", state(5))
  assert equal(checkpoint.load_params(tmp_path / "final", state(0)), state(5))
  with pytest.raises(UserError, match="cannot be read"):
    checkpoint.load_params(tmp_path / "absent", state(0))
  damage(tmp_path / "final")
  with pytest.raises(UserError, match="cannot be read"):
    checkpoint.load_params(tmp_path / "final", state(0))


@pytest.mark.parametrize(
  ("other", "words"),
  [
    ({"w": jnp.zeros((32, 64))}, r"w is of shape \(64, 64\) there, and of shape \(32, 64\)"),
    ({"more": jnp.zeros(3)}, r"more is absent there, and of shape \(3,\) by config.json"),
  ],
)
def test_another_model_is_named(saved, other, words):
  like = state(0) | other
  with pytest.raises(UserError, match=f"last/3/state is of another model: {words}"):
    checkpoint.Checkpoints(saved, keep_best=2).restore(like)
  checkpoint.save_params(saved / "final", state(5))
  with pytest.raises(UserError, match=f"final is of another model: {words}"):
    checkpoint.load_params(saved / "final", like)
