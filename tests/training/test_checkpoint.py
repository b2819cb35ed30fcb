"""Save, restore, damage and errors that pass, several processes, and the best."""

import logging
import pathlib
import types

import jax
import jax.numpy as jnp
import pytest

from jaxkd.devices import mesh
from jaxkd.errors import UserError
from jaxkd.models import parameters
from jaxkd.training import checkpoint


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
  """Lengths of the pauses that were asked for; none is made."""
  asked = []
  monkeypatch.setattr(checkpoint, "time", types.SimpleNamespace(sleep=asked.append))
  return asked


def state(x: float):
  return {"w": jnp.full((64, 64), x), "deep": {"b": jnp.arange(4.0) + x}, "step": jnp.int32(x)}


def equal(a, b) -> bool:
  return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def opened(folder: pathlib.Path) -> checkpoint.Checkpoints:
  return checkpoint.Checkpoints(folder, keep_best=2)


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def saved(tmp_path):
  store = opened(tmp_path)
  for step in (1, 2, 3):
    store.save(step, state(step), {"epoch": step, "names": {"a": "b"}})
  store.close()
  return tmp_path


def damage(folder: pathlib.Path) -> None:
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fail(monkeypatch, step: int, times: int) -> None:
  """Reading the parameters of a step fails so many times."""
  read, left = parameters.read, [times]

  def failing(folder, like):
    if folder.parent.name == str(step) and left[0]:
      left[0] -= 1
      raise OSError(5, "Input/output error")
    return read(folder, like)

  monkeypatch.setattr(parameters, "read", failing)


def test_newest_is_restored_with_its_position(saved):
  found, position = opened(saved).restore(state(0))
  assert equal(found, state(3))
  assert position == {"epoch": 3, "names": {"a": "b"}}
  assert not (saved / "set_aside").exists()


def test_nothing_saved_is_none(tmp_path):
  assert opened(tmp_path).restore(state(0)) is None


# Orbax leaves reads of other arrays behind, which end when nobody waits for them any more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", [".", "state", "position", "state/_METADATA", "state/d"])
def test_a_cut_checkpoint_is_set_aside_and_said(saved, caplog, part):
  path = saved / "last" / "3" / part
  damage(path) if path.is_dir() else path.write_bytes(path.read_bytes()[:5])
  before = files_of(saved / "last" / "3")
  store = opened(saved)
  with caplog.at_level(logging.WARNING):
    found, position = store.restore(state(0))
  assert equal(found, state(2)) and position["epoch"] == 2
  aside = saved / "set_aside" / "last-3"
  assert f"checkpoint 3 cannot be read and is set aside in {aside}: " in caplog.text
  assert files_of(aside) == before
  # The same step can be saved again, and damaged again.
  store.save(3, state(3), {"epoch": 3})
  store.close()
  store = opened(saved)
  found, position = store.restore(state(0))
  assert equal(found, state(3)) and position == {"epoch": 3}
  store.close()
  damage(saved / "last" / "3")
  assert equal(opened(saved).restore(state(0))[0], state(2))
  assert sorted(p.name for p in (saved / "set_aside").iterdir()) == ["last-3", "last-3-2"]


def test_an_error_that_passes_costs_a_pause(saved, monkeypatch, pauses):
  before = files_of(saved)
  fail(monkeypatch, step=3, times=1)
  found, position = opened(saved).restore(state(0))
  assert equal(found, state(3)) and position["epoch"] == 3
  assert pauses == [2.0] and files_of(saved) == before


def test_an_error_that_passes_later_deletes_nothing(saved, monkeypatch, caplog):
  before = files_of(saved / "last" / "3")
  fail(monkeypatch, step=3, times=2)
  found, _ = opened(saved).restore(state(0))
  assert equal(found, state(2)) and "Input/output error" in caplog.text
  (saved / "set_aside" / "last-3").rename(saved / "last" / "3")
  assert files_of(saved / "last" / "3") == before
  assert equal(opened(saved).restore(state(0))[0], state(3))


def test_all_damaged_is_an_error_that_touches_nothing(saved):
  damage(saved / "last" / "3")
  damage(saved / "last" / "2")
  before = files_of(saved)
  for _ in range(2):
    with pytest.raises(UserError, match=r"no checkpoint in .*/last can be read \(3: .*; 2: "):
      opened(saved).restore(state(0))
  assert files_of(saved) == before


@pytest.mark.parametrize(
  ("other", "words"),
  [
    ({"w": jnp.zeros((32, 64))}, r"w is of shape \(64, 64\) there, and of shape \(32, 64\)"),
    ({"more": jnp.zeros(3)}, r"more is absent there, and of shape \(3,\) by the config"),
  ],
)
def test_another_model_is_named_and_untouched(saved, other, words):
  before = files_of(saved)
  with pytest.raises(UserError, match=f"last/3/state is of another model: {words}"):
    opened(saved).restore(state(0) | other)
  assert files_of(saved) == before


def test_what_cannot_be_set_aside_is_said(saved):
  damage(saved / "last" / "3")
  (saved / "set_aside").write_text("a file in the way")
  with pytest.raises(UserError, match=r"checkpoint 3 cannot be read and cannot be set aside in "):
    opened(saved).restore(state(0))
  assert (saved / "last" / "3").exists()


@pytest.mark.parametrize("another_model", [False, True])
def test_what_another_process_cannot_read_is_read_by_none(
  saved, monkeypatch, caplog, another_model
):
  """The other process has trouble with step 3 alone: it answers twice, then it can read."""
  answers = iter([{"another_model": another_model, "line": "from afar"}] * 2)
  calls = []

  def gather(mine):
    if mine is None or isinstance(mine, dict) and "another_model" in mine:
      calls.append(mine)
      return [mine, next(answers, None)]
    return [mine, mine]

  monkeypatch.setattr(mesh, "gather", gather)
  store = opened(saved)
  if another_model:
    with pytest.raises(UserError, match="from afar"):
      store.restore(state(0))
    assert not (saved / "set_aside").exists()
    return
  found, position = store.restore(state(0))
  assert equal(found, state(2)) and position["epoch"] == 2
  assert calls == [None] * 3
  assert "checkpoint 3 cannot be read and is set aside in" in caplog.text
  assert "from afar" in caplog.text
  assert (saved / "set_aside" / "last-3").exists()


def test_only_the_first_process_lists_and_moves(saved, monkeypatch):
  """A second process does what the first says, which has listed a step less and moved nothing."""
  damage(saved / "last" / "3")
  listed = iter([[2]])
  first = lambda mine: [next(listed) if isinstance(mine, list) and mine and mine[0] == 3 else mine]
  monkeypatch.setattr(mesh, "gather", lambda mine: first(mine) * 2)
  monkeypatch.setattr(mesh, "is_first", lambda: False)
  before = files_of(saved)
  assert equal(opened(saved).restore(state(0))[0], state(2))
  assert files_of(saved) == before


def test_best_are_the_lowest_scores(tmp_path):
  store = opened(tmp_path)
  for step, score in [(1, 0.5), (2, 0.2), (3, 0.9), (4, 0.3)]:
    store.save_best(step, state(step), score)
  assert [step for step, _ in store.best(state(0))] == [2, 4]
  assert equal(store.best(state(0))[0][1], state(2))


def test_best_saved_after_the_restored_step_is_set_aside(saved):
  store = opened(saved)
  store.save_best(2, state(2), 0.5)
  store.save_best(7, state(7), 0.1)
  store.restore(state(0))
  assert [step for step, _ in store.best(state(0))] == [2]
  assert (saved / "set_aside" / "best-7").is_dir()
  # It is made again, and is the best again.
  store.save_best(7, state(7), 0.1)
  assert [step for step, _ in store.best(state(0))] == [7, 2]


def test_damaged_best_are_left_out(tmp_path, caplog):
  store = opened(tmp_path)
  store.save_best(1, state(1), 0.2)
  store.save_best(2, state(2), 0.1)
  damage(tmp_path / "best" / "2" / "default")
  assert [step for step, _ in store.best(state(0))] == [1]
  assert "best checkpoint 2 cannot be read and is left out: " in caplog.text
  damage(tmp_path / "best" / "1" / "default")
  with pytest.raises(UserError, match=r"no checkpoint in .*/best can be read"):
    store.best(state(0))


def test_a_damaged_score_does_not_hide_the_others(tmp_path, caplog):
  store = opened(tmp_path)
  store.save_best(1, state(1), 0.2)
  store.save_best(2, state(2), 0.1)
  store.close()
  damage(tmp_path / "best" / "2")
  assert [step for step, _ in opened(tmp_path).best(state(0))] == [1]
  assert "best checkpoint 2 has no readable score and is set aside in " in caplog.text
  assert (tmp_path / "set_aside" / "best-2").is_dir()
