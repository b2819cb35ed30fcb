"""The kinds of errors, on pairs that one can count."""

import numpy as np
import pytest

from jaxkd.report import error_kinds
from jaxkd.report.tables import Model, Row

PAIRS = {
  "a": ("letter of the boy", "later of boy boy"),  # substituted, deleted and inserted or two kinds
  "b": ("she will go", "she will go"),
  "c": ("bell", ""),
  "d": (None, "never counted"),
}


def row(*pairs: dict) -> Row:
  return Row("it", "student", [Model(None, {"test": found}, {}) for found in pairs])


def test_rates_are_those_counted_by_hand():
  substituted, deleted, inserted, first, last, doubled, others = error_kinds.rates(row(PAIRS))
  assert substituted == pytest.approx(2 / 8) and deleted == pytest.approx(1 / 8) and inserted == 0
  assert first == pytest.approx(2 / 3)  # letter and bell of letter, she, bell
  assert last == pytest.approx(1 / 3)  # bell of boy, go, bell
  assert doubled == pytest.approx(2 / 3)  # letter and bell of letter, will, bell
  assert others == pytest.approx(1 / 2)  # the of of, the


def test_words_where_none_was_said_are_inserted():
  found = error_kinds.rates(row({"a": ("on it", "on it"), "b": ("", "one two")}))
  np.testing.assert_allclose(found[:3], [0, 0, 2 / 2])


def test_seeds_count_together_and_none_is_nan():
  right = {"a": ("on it", "on it")}
  wrong = {"a": ("on it", "on at all")}
  found = error_kinds.rates(row(right, wrong))
  np.testing.assert_allclose(found, [1 / 4, 0, 1 / 4, 0, 1 / 2, np.nan, np.nan])
  (section,) = error_kinds.section([row(right, wrong), row({"a": (None, "x")})])
  (cells,) = section.blocks[1].rows
  assert cells == ["it", "25.0", "0.0", "25.0", "0.0", "50.0", "", ""]
  assert error_kinds.section([row({})]) == []
