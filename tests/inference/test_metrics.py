"""Error rates and blank runs counted by hand, best paths, and the bootstrap against formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.inference.error_rates import (
  blank_runs,
  bootstrap_interval,
  edit_counts,
  error_rates,
  paired_bootstrap,
)
from jaxkd.inference.search.greedy import best_path, collapse

LONGEST = 25


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


def test_edits_by_hand():
  references = ["the cat sat", "a", "", "x y", "same words"]
  hypotheses = ["the hat", "a b c", "d", "", "same words"]
  errors, words = edit_counts(references, hypotheses)
  np.testing.assert_array_equal(errors, [2, 2, 1, 2, 0])
  np.testing.assert_array_equal(words, [3, 1, 0, 2, 2])
  assert errors.dtype == words.dtype == np.int64
  assert [len(x) for x in edit_counts([], [])] == [0, 0]


def test_edits_add_up_to_the_error_rate():
  rng = np.random.default_rng(0)
  text = lambda: " ".join(rng.choice(list("abcd"), rng.integers(0, 9)))
  references, hypotheses = ([text() for _ in range(60)] for _ in range(2))
  errors, words = edit_counts(references, hypotheses)
  rates = error_rates(references, hypotheses)
  assert rates["words"] == words.sum()
  assert rates["wer"] == pytest.approx(errors.sum() / words.sum(), abs=1e-6)
  for row in range(60):
    alone = edit_counts([references[row]], [hypotheses[row]])
    assert (alone[0][0], alone[1][0]) == (errors[row], words[row])


def utterances(seed: int, size: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
  """Errors and words of utterances whose words are wrong independently."""
  rng = np.random.default_rng(seed)
  words = rng.integers(1, 20, size)
  return rng.binomial(words, rate), words


def test_interval_is_the_normal_approximation():
  """Of a ratio of means: residuals errors - WER · words, over the words of a mean utterance."""
  errors, words = utterances(0, 3000, 0.2)
  wer = errors.sum() / words.sum()
  deviation = np.std(errors - wer * words, ddof=1) / np.sqrt(3000) / words.mean()
  low, high = bootstrap_interval(errors, words, seed=1)
  assert low == pytest.approx(wer - 1.96 * deviation, abs=0.1 * deviation)
  assert high == pytest.approx(wer + 1.96 * deviation, abs=0.1 * deviation)


def test_interval_is_that_of_drawing_utterances_one_by_one():
  errors, words = np.array([0, 0, 3, 1, 0, 5]), np.array([4, 4, 6, 2, 9, 6])
  drawn = np.random.default_rng(0).integers(0, 6, (100_000, 6))
  expected = np.quantile(errors[drawn].sum(1) / words[drawn].sum(1), [0.025, 0.975])
  found = bootstrap_interval(errors, words, resamples=100_000)
  np.testing.assert_allclose(found, expected, atol=0.01)


def test_interval_of_equal_utterances_is_a_point():
  assert bootstrap_interval(np.full(9, 1), np.full(9, 4)) == (0.25, 0.25)
  assert bootstrap_interval(np.zeros(9, int), np.full(9, 4)) == (0.0, 0.0)


def test_draws_without_a_word_are_left_out():
  """A third of these draws has none."""
  low, high = bootstrap_interval(np.array([1, 2]), np.array([0, 4]))
  assert (low, high) == (0.5, 0.75)
  with pytest.raises(ValueError, match="needs reference words"):
    bootstrap_interval(np.array([1, 2]), np.array([0, 0]))


def test_interval_covers():
  """Of 200 test sets the interval has the true rate in about 95 %."""
  found = [
    bootstrap_interval(*utterances(seed, 150, 0.15), seed=seed, resamples=800)
    for seed in range(200)
  ]
  assert 0.9 <= np.mean([low <= 0.15 <= high for low, high in found]) <= 0.99


def test_draws_are_of_the_seed():
  errors, words = utterances(2, 50, 0.3)
  assert bootstrap_interval(errors, words, seed=4) == bootstrap_interval(errors, words, seed=4)
  assert bootstrap_interval(errors, words, seed=4) != bootstrap_interval(errors, words, seed=5)


def test_equal_systems_do_not_differ():
  errors, words = utterances(3, 80, 0.2)
  assert paired_bootstrap(errors, errors, words) == 1
  # As many errors, in other utterances.
  order = np.random.default_rng(0).permutation(80)
  assert paired_bootstrap(errors, errors[order], words) > 0.8


def test_clear_difference():
  """Pairing tells apart what the intervals of both do not."""
  hard = np.random.default_rng(4).binomial(20, 0.5, 100)
  words = np.full(100, 20)
  assert paired_bootstrap(hard, hard + (np.arange(100) % 10 == 0), words) < 0.01
  assert paired_bootstrap(hard, hard + 1, words) == 2 / 10_001  # the least there is
  first, second = (bootstrap_interval(e, words) for e in (hard, hard + (np.arange(100) % 10 == 0)))
  assert first[1] > second[0]


def test_p_is_that_of_the_normal_approximation():
  a, words = utterances(5, 2000, 0.2)
  b = np.random.default_rng(6).binomial(words, 0.206)
  z = (a - b).sum() / (np.std(a - b, ddof=1) * np.sqrt(2000))
  expected = math.erfc(abs(z) / np.sqrt(2))
  assert 0.02 < expected < 0.5
  found = paired_bootstrap(a, b, words, seed=2, resamples=100_000)
  assert found == pytest.approx(expected, rel=0.1)


def test_systems_may_change_places():
  a, words = utterances(6, 60, 0.2)
  b = np.random.default_rng(0).binomial(words, 0.25)
  found = paired_bootstrap(a, b, words, seed=9)
  assert 0 < found < 1 and found == paired_bootstrap(b, a, words, seed=9)
  assert found != paired_bootstrap(a, b, words, seed=10)


def test_p_is_small_as_often_as_it_says():
  """Where nothing differs, about 5 % of 200 test sets have p below 0.05."""
  small = 0
  for seed in range(200):
    a, words = utterances(seed, 120, 0.2)
    b = np.random.default_rng(seed).binomial(words, 0.2)
    small += paired_bootstrap(a, b, words, seed=seed, resamples=600) < 0.05
  assert 2 <= small <= 20


@pytest.mark.parametrize(
  "path, expected",
  [
    ([], {}),
    ([0, 0, 0], {}),
    ([0, 0, 1, 1, 0], {}),  # one label has nothing to be between
    ([1, 2], {0: 1}),
    ([1, 1, 1], {}),
    ([1, 0, 1], {1: 1}),
    ([0, 1, 1, 0, 0, 2, 3, 3, 0, 0, 0, 3, 0], {0: 1, 2: 1, 3: 1}),
    ([1, *[0] * LONGEST, 2, *[0] * 99, 1, *[0] * (LONGEST - 1), 1], {25: 2, 24: 1}),
  ],
)
def test_blank_runs_by_hand(path, expected):
  counts = blank_runs(np.array(path, np.int32), blank_id=0, longest=LONGEST)
  assert counts.shape == (LONGEST + 1,)
  assert {int(n): int(counts[n]) for n in np.flatnonzero(counts)} == expected


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 3))
def test_blank_runs_fill_the_space_between_labels(path, blank_id):
  """There is one run less than labels, and runs and label frames add up to what is between."""
  path = np.array(path, np.int32)
  counts = blank_runs(path, blank_id=blank_id, longest=LONGEST)
  assert counts.sum() == max(len(collapse(path, blank_id=blank_id)) - 1, 0)
  frames = np.flatnonzero(path != blank_id)
  if counts[-1] == 0 and len(frames):
    assert counts @ np.arange(LONGEST + 1) == frames[-1] - frames[0] + 1 - len(frames)
