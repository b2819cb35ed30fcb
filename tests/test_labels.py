"""Text ↔ classes, and the file they are kept in."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxkd import labels as labels_lib
from jaxkd.errors import UserError

ALPHABET = "abcdefghijklmnopqrstuvwxyz' é"


def test_blank_is_the_last_class():
  labels = labels_lib.characters("ab ")
  assert labels.symbols == ("a", "b", " ", labels_lib.BLANK) and labels.blank_id == 3


def test_encoded_text_is_decoded_again():
  labels = labels_lib.characters(ALPHABET)
  ids = labels.encode("it's a café")
  assert ids.dtype == np.int32 and len(ids) == 11 and ids[0] == 8
  assert labels.decode(ids) == "it's a café"
  assert labels.encode("").shape == (0,) and labels.decode([]) == ""


@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
@hypothesis.given(st.text(ALPHABET))
def test_any_text_is_decoded_normalised(text):
  labels = labels_lib.characters(ALPHABET)
  assert labels.decode(labels.encode(text)) == labels_lib.normalise(text)


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(st.text())
def test_normalised_text_stays_as_it_is(text):
  once = labels_lib.normalise(text)
  assert labels_lib.normalise(once) == once


def test_decode_leaves_single_spaces():
  labels = labels_lib.characters("ab ")
  assert labels.decode([2, 0, 2, 2, 1, 2]) == "a b"


@pytest.mark.parametrize(
  "text, expected",
  [
    ("Hello  World\n", "hello world"),
    ("\tA\u00a0b ", "a b"),
    ("IT\u2019S", "it's"),
    ("cafe\u0301", "caf\u00e9"),
    ("CAFE\u0301", "caf\u00e9"),
    ("", ""),
  ],
)
def test_normalise(text, expected):
  assert labels_lib.normalise(text) == expected


@pytest.mark.parametrize("text, symbol", [("abc", "c"), ("a-b", "-"), ("ab<blank>", "<")])
def test_unknown_symbol_is_named(text, symbol):
  with pytest.raises(labels_lib.UnknownSymbol, match=symbol) as error:
    labels_lib.characters("ab ").encode(text)
  assert error.value.symbol == symbol


def test_blank_is_no_symbol_of_a_text():
  labels = labels_lib.Labels(("-", "a", "b"), 0)
  np.testing.assert_array_equal(labels.encode("ab"), [1, 2])
  with pytest.raises(labels_lib.UnknownSymbol):
    labels.encode("a-b")


def test_saved_classes_are_loaded_again(tmp_path):
  path = tmp_path / "labels.json"
  for labels in (labels_lib.characters(ALPHABET), labels_lib.Labels(("-", "ß", "字"), 0)):
    labels.save(path)
    assert labels_lib.Labels.load(path) == labels


def test_damaged_file_is_named(tmp_path):
  path = tmp_path / "labels.json"
  with pytest.raises(UserError, match="labels.json"):
    labels_lib.Labels.load(path)
  labels_lib.characters(ALPHABET).save(path)
  whole = path.read_text()
  for text in (whole[: len(whole) // 2], "", "[]", "{}", '{"symbols": 3, "blank_id": 0}', "null"):
    path.write_text(text)
    with pytest.raises(UserError, match="labels.json"):
      labels_lib.Labels.load(path)
  path.write_bytes(b"\xff\xfe\x00")
  with pytest.raises(UserError, match="labels.json"):
    labels_lib.Labels.load(path)
