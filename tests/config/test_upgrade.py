"""A config.json of any version reads as the config that it was."""

import copy
import json

import pytest

from golden_configs import RECORDED
from jaxkd import config as config_lib
from jaxkd.errors import UserError

# Before saves by time, rows in multiples of devices, and layers that are computed again.
OTHERS = {
  "checkpoint.every_minutes": 0.0,
  "training.row_multiple": 1,
  "teacher.training.row_multiple": 1,
  "teacher.training.remat": False,
}
# Before there were limits.
LENGTHS = {"min_seconds": 0.0, "max_seconds": 1e6}


@pytest.mark.parametrize("name", sorted(config_lib.DATA.keys() & RECORDED.keys()))
def test_stored_configs_without_a_number_become_todays(name):
  before = copy.deepcopy(RECORDED[name])
  found = config_lib.upgrade(RECORDED[name])
  assert RECORDED[name] == before  # what is given stays as it was
  now = config_lib.base(name)
  with now.unlocked():
    now.data.update(LENGTHS)
    now.labels.alphabet = config_lib.ALPHABET
    now.update_from_flattened_dict(OTHERS)
  assert found.to_dict() == now.to_dict()
  with found.unlocked():  # and a variant's name is no obstacle
    found.variant = "symmetric"
  config_lib.upgrade(found.to_dict())


def test_the_first_versions_config_gets_the_values_that_it_had():
  found = config_lib.upgrade(RECORDED["oldest demo"])
  now = config_lib.base("demo")
  filled = config_lib.flat(now).keys() - _flat(RECORDED["oldest demo"]).keys()
  assert len(filled) > 15
  wanted = config_lib.flat(now) | {f"data.{name}": value for name, value in LENGTHS.items()}
  wanted |= OTHERS
  wanted["labels.alphabet"] = config_lib.ALPHABET
  for name in filled:
    assert config_lib.flat(found)[name] == wanted[name]
  # Its own values are kept where defaults have changed since.
  assert found.student.frontend_channels == (16, 16, 16, 16)
  assert (found.teacher.training.epochs, found.training.join_seconds) == (24, 5.0)


def _flat(tree: dict, prefix: str = "") -> dict:
  found = {}
  for name, value in tree.items():
    found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
  return found


@pytest.mark.parametrize(("before", "loss", "count"), [(0, "kl", 10), (4, "hypotheses", 4)])
def test_hypotheses_were_chosen_by_their_number(before, loss, count):
  stored = copy.deepcopy(RECORDED["demo"])
  stored["kd"]["hypotheses"] = before
  found = config_lib.upgrade(stored)
  assert (found.kd.loss, found.kd.hypotheses) == (loss, count)


@pytest.mark.parametrize("recipe", ["demo", "tedlium", "manifest-small"])
def test_what_is_stored_comes_back(recipe):
  config = config_lib.base(recipe)
  stored = json.loads(json.dumps(config_lib.stored(config)))
  assert stored["schema"] == config_lib.SCHEMA
  again = config_lib.upgrade(stored)
  assert again.to_dict() == config.to_dict()  # tuples and all
  assert config_lib.upgrade(again.to_dict()).to_dict() == config.to_dict()
  assert config_lib.binding(stored) == config_lib.binding(config) == config_lib.binding(again)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda tree: [], "no config of jaxkd"),
    (lambda tree: "demo", "no config of jaxkd"),
    (lambda tree: {"model_type": "hubert"}, "no config of jaxkd"),
    (
      lambda tree: tree | {"schema": config_lib.SCHEMA + 1},
      f"schema is {config_lib.SCHEMA + 1}.*newer",
    ),
    (lambda tree: tree | {"schema": "one"}, "schema is 'one'"),
    (lambda tree: tree | {"schema": True}, "schema is True"),
    (lambda tree: tree | {"schema": -1}, "schema is -1"),
    (lambda tree: tree | {"kd": 5}, "config.kd is 5"),
    (lambda tree: tree | {"student": []}, r"config.student is \(\)"),
    (lambda tree: tree | {"a.b": 1}, "config.a.b: no such field"),
    (lambda tree: tree | {"keys": 1}, "config.keys: no such field"),
    (lambda tree: tree | {"training": {}}, "config.training.epochs is missing"),
    (lambda tree: tree | {"seed": "x"}, "config.seed is 'x'"),
    (lambda tree: tree | {"kd": tree["kd"] | {"hypotheses": "x"}}, "config.kd.hypotheses is 'x'"),
  ],
)
@pytest.mark.parametrize("use", [config_lib.upgrade, config_lib.binding, config_lib.flat])
def test_what_is_no_config_of_ours_is_one_line(change, words, use):
  with pytest.raises(UserError, match=words) as error:
    use(change(copy.deepcopy(RECORDED["demo"])))
  assert "\n" not in str(error.value)


def test_binding_is_what_the_result_depends_on():
  config = config_lib.base("demo")
  binding = config_lib.binding(config)
  left_out = config_lib.flat(config).keys() - binding.keys()
  assert left_out == {
    *(f"data.{field}" for field in ("train", "teacher_train", "dev", "test", "root", "workers")),
    *("data.min_seconds", "data.max_seconds", "labels.lexicon", "labels.alphabet"),
    *("training.remat", "teacher.training.remat", "mesh.fsdp", "profile"),
    *("training.row_multiple", "teacher.training.row_multiple"),
    *("checkpoint.every_steps", "checkpoint.every_minutes"),
  }
  assert binding["training.epochs"] == 8 and binding["training.lr"] == [1e-4, 3e-3, 3e-4, 1e-6]
  assert json.loads(json.dumps(binding)) == binding
