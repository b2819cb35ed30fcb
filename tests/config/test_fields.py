"""The table: what it says is what check does, whatever the value."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import config as config_lib
from jaxkd.config import fields, recipes
from jaxkd.config.check import fits
from jaxkd.config.schema import Block, Field, Kinds, allowed
from jaxkd.errors import UserError


def leaves(node, config, path=""):
  """(dotted name, field) of every value of a config."""
  known = node.of(config.name) if isinstance(node, Kinds) else node.fields
  for name, inner in known.items():
    if name not in config:
      continue
    if isinstance(inner, Field):
      yield path + name, inner
    else:
      yield from leaves(inner, config[name], f"{path}{name}.")


def make():
  """A config with a model of each kind and every selection field's kind by turns."""
  config = config_lib.base("demo").copy_and_resolve_references().unlock()
  config.teacher.model = recipes.huggingface("org/model")
  config.teacher.training = recipes.finetuning()
  config.kd.selection = dict(name="threshold", min_label_prob=0.1)
  return config


LEAVES = dict(leaves(fields.FIELDS, make()))
TUPLES = sorted(name for name, field in LEAVES.items() if field.each)
JUNK = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.integers(min_value=10**30, max_value=10**400),
  st.floats(),
  st.text(max_size=5),
  st.binary(max_size=3),
  st.lists(st.integers(), max_size=3),
  st.dictionaries(st.text("ab", max_size=2), st.integers(), max_size=2),
  st.sampled_from([np.float32(1), np.int64(1), np.zeros(2), 1j, int, "\ud800", "a\nb"]),
)
NESTED = st.recursive(JUNK, lambda inner: st.lists(inner, max_size=5).map(tuple), max_leaves=6)


def place(path: str, value):
  tree = make().to_dict()  # a dict casts nothing
  block = tree
  *parents, name = path.split(".")
  for parent in parents:
    block = block[parent]
  block[name] = value
  return ConfigDict(tree)


def outcome(config) -> str:
  """The line of check, "" where it passes; any other exception fails the test."""
  try:
    config_lib.check(config)
  except UserError as error:
    assert "\n" not in str(error) and len(str(error)) < 1000
    return str(error)
  return ""


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(st.sampled_from(sorted(LEAVES)), NESTED)
def test_whatever_a_value_is_check_passes_it_or_says_why(path, value):
  config, field = place(path, value), LEAVES[path]
  line = outcome(config)
  if not isinstance(value, dict) and not fits(value, field):
    assert f"config.{path}" in line or path == "recipe"


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.sampled_from(TUPLES), st.data())
def test_one_wrong_element_is_found(path, data):
  good = list(LEAVES[path].default) or [-20.0, -10.0]
  index = data.draw(st.integers(0, len(good) - 1))
  good[index] = data.draw(st.one_of(st.just("a"), st.just(None), st.just(-1000), st.just(math.nan)))
  assert outcome(place(path, tuple(good))).startswith(f"config.{path} is ")


@pytest.mark.parametrize(
  ("field", "words", "good", "bad"),
  [
    (Field(1, low=1, high=9), "an integer from 1 to 9", [1, 9], [0, 10, 1.0, True, "1"]),
    (Field(1.0, low=0.0), "a number, 0 or more", [0, 0.0, 5], [-0.1, math.inf, math.nan, True]),
    (Field(1.0, low=0.0, above=True), "a number above 0", [1e-9], [0.0, -1]),
    (Field(False), "True or False", [True, False], [0, 1, "True", None]),
    (Field(""), "text", ["", "x"], [0, None, b"x"]),
    (Field("a", choices=("a", "b")), "one of a, b", ["b"], ["c", "", None]),
    (
      Field((1,), each=Field(1, low=1)),
      "a tuple of one or more integers, 1 or more",
      [(1,), (1, 2, 3)],
      [(), [1], 1, (0,), (1.5,), ((1,),), None],
    ),
    (
      Field((), each=Field(0.0), sizes=(0, 2)),
      "() or a tuple of two numbers",
      [(), (1, 2.5)],
      [(1.0,), (1.0, 2.0, 3.0), ("x", "y"), (True, 1.0)],
    ),
  ],
)
def test_words_and_check_say_the_same(field, words, good, bad):
  assert allowed(field) == words
  assert all(fits(value, field) for value in good)
  assert not any(fits(value, field) for value in bad)


def every_field(node, path=""):
  if isinstance(node, Field):
    yield path, node
  elif isinstance(node, Block):
    for name, inner in node.fields.items():
      yield from every_field(inner, f"{path}.{name}")
  else:
    for kind in node.kinds:
      for name, inner in node.of(kind).items():
        yield f"{path}.{name}", inner


def test_every_field_says_what_it_is_and_has_a_default_that_fits():
  for path, field in every_field(fields.FIELDS):
    assert field.about and not field.about.endswith("."), path
    assert fits(field.default, field), path


@pytest.mark.parametrize("recipe", ["demo", "tedlium", "librispeech-small"])
def test_described_defaults_are_the_recipes(recipe):
  rows = config_lib.describe(recipe)
  given = config_lib.base(recipe)
  said = {}
  for row in rows:
    # A field of several kinds has a row for each.
    said.setdefault(row.name, []).append(row.default)
  for path, _ in leaves(fields.FIELDS, given):
    value = given
    for name in path.split("."):
      value = value[name]
    assert value in said[path]
  assert {path.removeprefix(".") for path, _ in every_field(fields.FIELDS)} == set(said)


def test_described_rows_say_unit_range_and_who_reads_them():
  rows = {row.name: row for row in config_lib.describe("demo")}
  assert rows["features.low_hz"][1:4] == (60.0, "Hz", "a number from 0 to 8000")
  assert rows["kd.softness"].about.endswith("(kd.loss=kl or split_kl)")
  of_n = [row.about for row in config_lib.describe("demo") if row.name == "kd.selection.n"]
  assert [about.rpartition("=")[2] for about in of_n] == ["symmetric)", "shuffled)"]
  assert rows["labels.size"].about.endswith("(labels.name=sentencepiece)")
