"""Error rates counted by hand, and best paths."""

import numpy as np
import pytest

from jaxkd.decode.greedy import best_path, collapse
from jaxkd.metrics import error_rates


def test_no_error():
  rates = error_rates(["a b c", "d"], ["a b c", "d"])
  assert rates == {"wer": 0.0, "cer": 0.0, "words": 4}


@pytest.mark.parametrize(
  "references, hypotheses, word_errors, words, character_errors, characters",
  [
    (["the cat sat"], ["the hat sat"], 1, 3, 1, 11),
    (["the cat sat"], ["the sat"], 1, 3, 4, 11),
    (["the cat"], ["the big cat"], 1, 2, 4, 7),
    (["ab"], [""], 1, 1, 2, 2),
    # All utterances together: the mean of their rates would be 1 / 2.
    (["a", "b c d e"], ["x", "b c d e"], 1, 5, 1, 8),
    # More errors than words.
    (["a"], ["b c d"], 3, 1, 5, 1),
    # An empty reference counts insertions only.
    (["", "a b"], ["c", "a b"], 1, 2, 1, 3),
    (["", "a b"], ["", "a b"], 0, 2, 0, 3),
  ],
)
def test_rates_by_hand(references, hypotheses, word_errors, words, character_errors, characters):
  rates = error_rates(references, hypotheses)
  assert rates["words"] == words
  assert rates["wer"] == pytest.approx(word_errors / words, abs=1e-6)
  assert rates["cer"] == pytest.approx(character_errors / characters, abs=1e-6)


@pytest.mark.parametrize("references", [[], [""], ["", " "]])
def test_references_without_a_word_have_no_rate(references):
  rates = error_rates(references, ["a"] * len(references))
  assert rates == {"wer": None, "cer": None, "words": 0}


@pytest.mark.parametrize(
  "path, expected",
  [
    ([], []),
    ([0, 0, 0], []),
    ([1, 1, 1], [1]),
    ([1, 0, 1], [1, 1]),
    ([0, 2, 2, 0, 0, 1, 3, 3, 0], [2, 1, 3]),
  ],
)
def test_collapse_merges_repeats_and_drops_blanks(path, expected):
  np.testing.assert_array_equal(collapse(np.array(path, np.int32), blank_id=0), expected)
  # The same with the blank as the last class.
  moved = (np.array(path, np.int32) - 1) % 4
  np.testing.assert_array_equal(collapse(moved, blank_id=3), np.array(expected, np.int32) - 1)


def test_best_path_is_blank_in_padding():
  logits = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
  lengths = np.array([6, 0, 3])
  mask = np.arange(6) < lengths[:, None]
  expected = np.where(mask, logits.argmax(-1), 2)
  for garbage in (0, np.nan, np.inf):
    dirty = np.where(mask[..., None], logits, np.float32(garbage))
    path = best_path(dirty, mask, blank_id=2)
    assert path.dtype == np.int32
    np.testing.assert_array_equal(path, expected)
