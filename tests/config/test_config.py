"""config.check catches what is wrong before data loads; the defaults are pinned."""

import importlib.util
import pathlib

import pytest

from jaxkd import config as config_lib
from jaxkd import selection
from jaxkd.config import recipes
from jaxkd.errors import UserError

CONFIGS = sorted(pathlib.Path(__file__).parents[2].glob("configs/*.py"))


def load(path: pathlib.Path, recipe: str = "demo"):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(recipe)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
@pytest.mark.parametrize("scale", [0.25, 0.9, 1.0])
def test_every_config_passes_at_every_scale(path, scale):
  config = load(path)
  if config.teacher.source != "none":
    config.kd.scale = scale
  if config.student.name == "huggingface":
    config.student.source = "org/model"
  config_lib.check(config)
  config_lib.check(config_lib.for_teacher(config))


def test_every_selection_has_a_config_and_a_function():
  used = {load(path).kd.selection.name for path in CONFIGS}
  assert used == set(config_lib.SELECTIONS)
  for name in config_lib.SELECTIONS:
    assert callable(getattr(selection, name))


def test_label_free_student_does_not_get_the_transcribed_part():
  config = config_lib.base("demo")
  assert config_lib.train_data(config) == "demo:unlabelled"
  config.kd.scale = 0.9
  assert config_lib.train_data(config) == "demo:train"
  config.data.train = "mine.jsonl"
  assert config_lib.train_data(config) == "mine.jsonl"


def test_paper_values():
  config = config_lib.base("manifest")
  paper = recipes.training()
  assert paper.lr == (7e-6, 5e-4, 5e-5, 1e-7)
  assert (paper.optimizer, paper.eps, paper.weight_decay) == ("radam", 1e-16, 0.01)
  assert config.kd.temperature == 2.0
  assert config.features.low_hz == 60.0 and config.features.high_hz == 7600.0


def mutate(path: str, value):
  config = config_lib.base("demo")
  block = config
  *parents, field = path.split(".")
  for parent in parents:
    block = block[parent]
  with config.unlocked(), config.ignore_type():
    block[field] = value
  return config


@pytest.mark.parametrize(
  ("path", "value", "words"),
  [
    ("kd.scale", 1.5, ["kd.scale", "1.5", "0 to 1"]),
    ("kd.scale", -0.1, ["kd.scale", "-0.1"]),
    ("kd.scale", float("nan"), ["kd.scale", "nan"]),
    ("kd.temperature", 0.0, ["kd.temperature", "0.0"]),
    (
      "kd.selection",
      {"name": "symetric", "n": 2},
      ["symetric", "did you mean 'symmetric'", "trim"],
    ),
    ("kd.selection", {"name": "symmetric"}, ["kd.selection.n", "missing"]),
    ("kd.selection", {"name": "symmetric", "n": -1}, ["kd.selection.n", "-1"]),
    ("kd.selection", {"name": "symmetric", "n": 1.5}, ["kd.selection.n", "1.5", "integer"]),
    ("kd.selection", {"name": "symmetric", "m": 1, "n": 2}, ["kd.selection.m", "its fields: n"]),
    ("kd.selection", {"name": "threshold", "min_label_prob": 2.0}, ["min_label_prob", "0 to 1"]),
    ("kd.selection", {"n": 2}, ["kd.selection.name"]),
    ("kd.grow_epochs", 2, ["kd.grow_epochs", "all_frames"]),
    ("kd.typo", 1, ["kd.typo", "no such field"]),
    ("dtype", "float16", ["dtype", "float16", "bfloat16"]),
    ("training.optimizer", "sgd", ["training.optimizer", "sgd", "radam"]),
    ("training.lr", (1e-3,), ["training.lr", "four"]),
    ("training.lr_parts", (0.5, 0.5, 0.5), ["lr_parts", "add up to 1"]),
    ("training.speeds", (), ["training.speeds"]),
    ("training.noise_db", (-10.0,), ["noise_db"]),
    ("training.epochs", 0, ["training.epochs", "1 or more"]),
    ("training.epochs", "ten", ["training.epochs", "ten", "int"]),
    ("student.width", 65, ["student.width", "65", "multiple"]),
    ("student.conv_kernel", 16, ["conv_kernel", "odd"]),
    ("student.frontend_pool", ((4, 1), (1, 1)), ["frontend_pool"]),
    ("teacher.source", "none", ["kd.scale", "teacher.source"]),
    ("data.train", "", ["data.train"]),
    ("data.teacher_train", "", ["data.teacher_train", "teacher.source"]),
    ("data.test", "demo:tset", ["data.test", "demo:tset"]),
    ("data.test", "digits:test", ["data.root"]),
    ("features.high_hz", 10.0, ["features.high_hz"]),
    ("seed", -1, ["seed", "-1"]),
  ],
)
def test_wrong_values_get_one_line(path, value, words):
  with pytest.raises(UserError) as error:
    config_lib.check(mutate(path, value))
  line = str(error.value)
  assert "\n" not in line
  for word in words:
    assert word in line


def test_unknown_recipe_lists_the_choices():
  with pytest.raises(UserError, match="unknown recipe 'dmeo'.*demo.*manifest"):
    config_lib.base("dmeo")


def test_missing_field():
  config = config_lib.base("demo")
  with config.unlocked():
    del config.kd["temperature"]
  with pytest.raises(UserError, match="config.kd.temperature is missing"):
    config_lib.check(config)
