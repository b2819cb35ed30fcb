"""Prefix beam search: exact where the beam holds everything, greedy where it holds one state."""

import collections
import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import padding
import reference
from jaxkd.inference.search.greedy import best_path, collapse
from jaxkd.inference.search.prefix import prefix_beam

BLANK = 2


def posteriors(seed: int, shape, scale: float = 2.0) -> np.ndarray:
  return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def search(logits, mask=None, *, beam: int, blank_id: int = BLANK):
  """For each utterance, label sequence → log p, best first."""
  mask = np.ones(logits.shape[:2], bool) if mask is None else mask
  found = map(np.asarray, prefix_beam(logits, mask, blank_id=blank_id, beam=beam))
  rows = []
  for sequences, lengths, log_p in zip(*found, strict=True):
    assert (np.diff(log_p[np.isfinite(log_p)]) <= 0).all()
    best = [(tuple(s[:n].tolist()), p) for s, n, p in zip(sequences, lengths, log_p, strict=True)]
    rows.append({s: float(p) for s, p in best if np.isfinite(p)})
    assert len(rows[-1]) == np.isfinite(log_p).sum(), "a sequence occurs twice"
  return rows


def all_paths(logits, blank_id: int = BLANK) -> dict:
  """Label sequence → log p, summed over every path."""
  log_probs = [reference.log_softmax(frame) for frame in logits.astype(np.float64)]
  total = collections.defaultdict(float)
  for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
    labels = tuple(c for c, _ in itertools.groupby(path) if c != blank_id)
    total[labels] += np.exp(sum(frame[c] for frame, c in zip(log_probs, path, strict=True)))
  return {labels: np.log(p) for labels, p in total.items()}


def kept_states(logits, beam: int, blank_id: int = BLANK) -> dict:
  """The search with dictionaries: (label sequence, ends in blank) → p, the best `beam` of them."""
  states = {((), True): 1.0}
  for frame in logits.astype(np.float64):
    p = np.exp(reference.log_softmax(frame))
    after = collections.defaultdict(float)
    for (labels, blank), mass in states.items():
      after[labels, True] += mass * p[blank_id]
      for c in set(range(len(p))) - {blank_id}:
        repeats = labels[-1:] == (c,) and not blank
        after[labels if repeats else (*labels, c), False] += mass * p[c]
    states = dict(sorted(after.items(), key=lambda item: -item[1])[:beam])
  total = collections.defaultdict(float)
  for (labels, _), mass in states.items():
    total[labels] += mass
  return {labels: np.log(mass) for labels, mass in total.items()}


def assert_same(got: dict, expected: dict, atol: float = 1e-4) -> None:
  assert got.keys() == expected.keys()
  for labels, log_p in expected.items():
    assert got[labels] == pytest.approx(log_p, abs=atol)


@pytest.mark.parametrize(("frames", "classes"), [(1, 2), (4, 3), (3, 4), (6, 3)])
def test_a_beam_of_all_states_sums_all_paths(frames, classes):
  logits = posteriors(frames, (3, frames, classes))
  blank = classes - 1
  for row, got in zip(logits, search(logits, beam=300, blank_id=blank), strict=True):
    expected = all_paths(row, blank)
    assert_same(got, expected)
    assert next(iter(got)) == max(expected, key=expected.get)
    assert np.exp(list(got.values())).sum() == pytest.approx(1, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 3, 7]), st.sampled_from([0.5, 2.0, 5.0]))
def test_a_narrow_beam_keeps_the_states_it_should(seed, beam, scale):
  """Sequences that leave the beam and come back are the same sequence again."""
  logits = posteriors(seed, (2, 12, 4), scale)
  for row, got in zip(logits, search(logits, beam=beam), strict=True):
    assert_same(got, kept_states(row, beam))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.3, 2.0, 8.0]))
def test_beam_of_one_is_greedy(seed, scale):
  logits = posteriors(seed, (3, 20, 5), scale)
  mask = padding.length_masks([20, 13, 1], 20)
  paths = np.asarray(best_path(logits, mask, blank_id=BLANK))
  for row, real, path, got in zip(logits, mask, paths, search(logits, mask, beam=1), strict=True):
    ((labels, log_p),) = got.items()
    assert labels == tuple(collapse(path, blank_id=BLANK))
    best = sum(reference.log_softmax(frame).max() for frame in row[real].astype(np.float64))
    assert log_p == pytest.approx(best, abs=1e-3)


def test_padding_is_not_read():
  logits, lengths = posteriors(2, (3, 9, 4)), [9, 5, 0]
  mask = padding.length_masks(lengths, 9)
  filled = padding.fill(logits, mask, np.nan, longer=4)
  longer = np.pad(mask, ((0, 0), (0, 4)))
  got = search(filled, longer, beam=8)
  for row, length, found in zip(logits, lengths, got, strict=True):
    if length:
      assert_same(found, search(row[None, :length], beam=8)[0], 1e-5)
  assert got[2] == {(): 0.0}


def test_what_is_not_there_has_no_probability():
  hypotheses, lengths, log_p = prefix_beam(
    posteriors(3, (1, 1, 3)), np.ones((1, 1), bool), blank_id=BLANK, beam=5
  )
  assert np.isfinite(log_p[0]).tolist() == [True] * 3 + [False] * 2
  assert sorted(lengths[0].tolist()) == [0, 0, 0, 1, 1] and (hypotheses[0, 3:] == BLANK).all()


def test_a_class_that_cannot_be_is_never_said():
  logits = posteriors(4, (1, 5, 4))
  logits[:, :, 0] = -np.inf
  got = search(logits, beam=200)[0]
  assert got and not any(0 in labels for labels in got)
  assert np.exp(list(got.values())).sum() == pytest.approx(1, abs=1e-4)


def test_no_frame_compares_the_labels_of_all_pairs():
  """Pairs of sequences and their labels are arrays; pairs of sequences with labels are none."""
  beam, frames = 32, 64
  search = functools.partial(prefix_beam, blank_id=BLANK, beam=beam)
  logits = np.zeros((1, frames, 5), np.float32)
  traced = jax.make_jaxpr(search)(logits, np.ones((1, frames), bool))
  largest = max(sizes_of(traced.jaxpr))
  assert beam * frames <= largest < beam * beam * 5


def sizes_of(jaxpr):
  """Elements of all arrays that a traced function makes."""
  is_jaxpr = lambda x: hasattr(x, "eqns")
  for equation in jaxpr.eqns:
    yield from (variable.aval.size for variable in equation.outvars)
    inner = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
    for found in filter(is_jaxpr, inner):
      yield from sizes_of(getattr(found, "jaxpr", found))


@pytest.mark.parametrize("beam", [1, 4, 100])
def test_agrees_with_flashlight(beam):
  """The same states, the same sums, the same pruning, and so the same N-best list."""
  flashlight = pytest.importorskip("flashlight.lib.text.decoder")
  logits = posteriors(5, (6, 15, 5), 3.0)
  for row, got in zip(logits, search(logits, beam=beam), strict=True):
    emissions = np.array([reference.log_softmax(frame) for frame in row], np.float32)
    options = flashlight.LexiconFreeDecoderOptions(
      beam_size=beam,
      beam_size_token=5,
      beam_threshold=1e6,
      lm_weight=0.0,
      sil_score=0.0,
      log_add=True,
      criterion_type=flashlight.CriterionType.CTC,
    )
    decoder = flashlight.LexiconFreeDecoder(options, flashlight.ZeroLM(), BLANK, BLANK, [])
    expected = {}
    for result in decoder.decode(emissions.ctypes.data, *emissions.shape):
      labels = collapse(np.array(result.tokens), blank_id=BLANK)
      expected[tuple(labels.tolist())] = result.score
    assert_same(got, expected, 1e-3)
