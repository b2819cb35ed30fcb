"""Parameters on disk: round trip, damage, another model, kills while they are replaced; average."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import corpus
from jaxkd.errors import UserError
from jaxkd.models import parameters

# Writes parameters over and over: 0, 1, 2, ...
WRITER = """
import pathlib, sys
import jax.numpy as jnp
from jaxkd.models import parameters
for number in range(1_000_000):
  parameters.save_params(pathlib.Path(sys.argv[1]), {"w": jnp.full((64, 64), number)})
  print(number, flush=True)
"""


def tree(x: float):
  return {"w": jnp.full((64, 64), x), "deep": {"b": jnp.arange(4.0) + x}}


def equal(a, b) -> bool:
  return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def damage(folder: pathlib.Path) -> None:
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_average():
  mean = parameters.average([tree(1), tree(3)])
  np.testing.assert_array_equal(mean["w"], 2.0)
  np.testing.assert_array_equal(mean["deep"]["b"], np.arange(4.0) + 2)
  half = parameters.average([jnp.ones(3, jnp.bfloat16), jnp.zeros(3, jnp.bfloat16)])
  assert half.dtype == jnp.bfloat16


def test_round_trip_replacement_and_damage(tmp_path):
  folder = tmp_path / "final"
  for x in (4, 5):
    parameters.save_params(folder, tree(x))
    assert equal(parameters.load_params(folder, tree(0)), tree(x))
    assert [p.name for p in tmp_path.iterdir()] == ["final"]
  parameters.check_params(folder, tree(0))
  absent = tmp_path / "absent"
  damage(folder)
  for check in (parameters.load_params, parameters.check_params):
    with pytest.raises(UserError, match=r"absent is not there: copy the whole workdir"):
      check(absent, tree(0))
    with pytest.raises(UserError, match=r"final cannot be read: "):
      check(folder, tree(0))


@pytest.mark.parametrize(
  ("other", "words"),
  [
    ({"w": jnp.zeros((32, 64))}, r"w is of shape \(64, 64\) there, and of shape \(32, 64\)"),
    ({"more": jnp.zeros(3)}, r"more is absent there, and of shape \(3,\) by the config"),
  ],
)
def test_another_model_is_named(tmp_path, other, words):
  parameters.save_params(tmp_path / "final", tree(5))
  with pytest.raises(UserError, match=f"final is of another model: {words}"):
    parameters.load_params(tmp_path / "final", tree(0) | other)
  with pytest.raises(UserError, match=f"final is of another model: {words}"):
    parameters.check_params(tmp_path / "final", tree(0) | other)


@pytest.mark.parametrize("moment", range(3))
def test_a_kill_between_the_renames_leaves_one(tmp_path, monkeypatch, moment):
  folder, path_type = tmp_path / "final", type(tmp_path)
  parameters.save_params(folder, tree(1))
  rename, count = path_type.rename, iter(range(10))

  def killed(self, target):
    if self.parent == tmp_path and next(count) == moment:
      raise KeyboardInterrupt
    return rename(self, target)

  monkeypatch.setattr(path_type, "rename", killed)
  if moment < 2:
    with pytest.raises(KeyboardInterrupt):
      parameters.save_params(folder, tree(2))
  else:
    parameters.save_params(folder, tree(2))
  monkeypatch.undo()
  assert equal(parameters.load_params(folder, tree(0)), tree(min(moment, 1) + 1))
  parameters.save_params(folder, tree(3))
  assert equal(parameters.load_params(folder, tree(0)), tree(3))
  assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_kills_at_any_moment_leave_the_old_or_the_new(tmp_path):
  folder, rng = tmp_path / "final", np.random.default_rng(0)
  for _ in range(3):
    line = [sys.executable, "-c", WRITER, str(folder)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(line, cwd=corpus.ROOT, **pipe)
    process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
      process.wait(timeout=rng.uniform(0.0, 0.3))
    process.kill()
    said = process.communicate()[0].split()
    found = parameters.load_params(folder, {"w": jnp.zeros((64, 64), jnp.int32)})["w"]
    assert int(found[0, 0]) - int(said[-1] if said else 0) in (0, 1)
    assert (found == found[0, 0]).all()
