"""What the README and the docs say is there: code that runs, verbs, rooms, files, fields."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import test_rooms
from jaxkd import config as config_lib
from jaxkd.commands import line
from jaxkd.config import overrides

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "BUILD_NOTES.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def block(mark: str) -> str:
  """The code below <!-- mark --> in the README."""
  return re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", README, re.S)[1]


def test_the_library_block_runs():
  rng = np.random.default_rng(0)
  frames, classes = 12, 5
  lengths = jnp.array([12, 7])
  names = dict(
    teacher_logits=jnp.array(rng.normal(size=(2, frames, classes)), jnp.float32),
    student_logits=jnp.array(rng.normal(size=(2, frames, classes)), jnp.float32),
    mask=jnp.arange(frames)[None] < lengths[:, None],
    logit_len=lengths,
    labels=jnp.array([[1, 2, 2], [3, 0, 0]]),
    label_len=jnp.array([3, 1]),
  )
  names["logits"] = names["student_logits"]
  exec(block("library"), names)
  assert names["selected"].dtype == bool and names["selected"].shape == (2, frames)
  assert not np.any(names["selected"] & ~names["mask"])
  # By hand: the mean KL at T = 2 over the selected frames.
  p, q = (jax.nn.softmax(names[k] / 2.0) for k in ("teacher_logits", "student_logits"))
  kl = 4 * (p * jnp.log(p / q)).sum(-1)
  np.testing.assert_allclose(names["kd"], kl[names["selected"]].mean(), rtol=1e-5)
  assert names["ctc"].shape == (2,) and np.all(np.isfinite(names["ctc"]))


def test_the_objective_of_the_library_page_can_be_learnt():
  """Also where a row has no path, and in padding that is NaN."""
  page = (ROOT / "docs" / "library.md").read_text()
  names: dict = {}
  exec(re.search(r"<!-- objective -->\n```python\n(.*?)```", page, re.S)[1], names)
  rng = np.random.default_rng(0)
  mask = jnp.arange(12)[None] < jnp.array([12, 3])[:, None]
  draw = lambda: jnp.where(mask[..., None], jnp.array(rng.normal(size=(2, 12, 5))), jnp.nan)
  student, teacher = draw(), draw()
  labels, label_len = jnp.array([[1, 2, 2, 3], [3, 3, 1, 0]]), jnp.array([4, 3])
  value = jax.value_and_grad(names["objective"])
  loss, gradient = value(student, teacher, mask, labels, label_len)
  assert np.isfinite(loss) and not np.any(gradient[~mask]) and np.all(np.isfinite(gradient))
  assert names["objective"](student - 0.1 * gradient, teacher, mask, labels, label_len) < loss


def test_commands_are_one_line_each():
  for mark in ("demo", "tests"):
    assert block(mark).count("\n") == 1 and block(mark).startswith("python3 -m venv .venv && ")


def test_verbs_and_variants_and_sizes_are_those_there_are():
  said = set(re.findall(r"^jaxkd ([\w-]+) ", README[README.index("## Commands") :], re.M))
  assert said == set(line.VERBS)
  table = README[README.index("| variant |") : README.index("A recipe is data")]
  assert set(re.findall(r"`(\w+)`", table)) - {"before", "after"} == set(overrides.variants())
  about = README[README.index("A recipe is data") : README.index("A run keeps")]
  assert set(re.findall(r"`(\w+)`", about)) == {*config_lib.DATA, *config_lib.SIZES}


def test_the_map_has_every_room():
  text = (ROOT / "CONTRIBUTING.md").read_text()
  said = set(re.findall(r"`(?:jaxkd/)?(\w+)(?:\.py|/)`", text[text.index("## Map") :]))
  rooms = {room for line in test_rooms.ROOMS for room in line}
  assert rooms - said == {"main", "__main__"}  # entries


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_pages_name_is_there(page):
  text = page.read_text()
  for target in re.findall(r"\]\(([^)#]+)\)", text):
    assert target.startswith("http") or (page.parent / target).exists(), target
  for path in re.findall(r"`((?:jaxkd|tests|configs|launch|benchmarks)/[\w/.]+)`", text):
    assert (ROOT / path).exists() or "NAME" in path or "VERB" in path, path
  fields = {row.name.removeprefix("config.") for row in config_lib.describe()}
  assert set(re.findall(r"--config\.([a-z_.]+)=", text)) <= fields
