"""Claims of grids: what they compare, their intervals, corrections and verdicts."""

import types

import numpy as np
import pytest

from jaxkd.errors import UserError
from jaxkd.report import claims
from jaxkd.report.tables import Row

WORDS = np.full(300, 10)


def row(name, errors, dev=0.1, seeds=None):
  """A row of runs with errors i[seeds, utterances]."""
  seeds = range(len(errors)) if seeds is None else seeds
  runs = [types.SimpleNamespace(series=name, results={"seed": s}) for s in seeds]
  made = Row(name, "student", [types.SimpleNamespace(run=run) for run in runs])
  of_dev = np.full((len(errors), 1), round(100 * dev)), np.array([100])
  made.__dict__["errors"] = {"test": (np.asarray(errors), WORDS), "dev": of_dev}
  return made


def drawn(rate, seeds=3, seed=0, spread=0.0):
  """Errors of utterances of 10 words, and rates of seeds that differ by a normal `spread`."""
  rng = np.random.default_rng(seed)
  rates = np.clip(rate + spread * rng.standard_normal(seeds), 0, 1)
  return rng.binomial(10, rates[:, None], (seeds, len(WORDS)))


def claim(a, b, expect="lower", **more):
  return dict(text=f"{a} is {expect} than {b}", a=a, b=b, expect=expect, **more)


def test_verdicts():
  rows = [row("good", drawn(0.1)), row("bad", drawn(0.2, seed=1)), row("same", drawn(0.1, seed=2))]
  found = claims.judge(
    [
      claim("good", "bad"),
      claim("bad", "good"),
      claim("bad", "good", "higher"),
      claim("good", "same"),
      claim("good", "same", "near", margin=0.08),
      claim("good", "bad", "near", margin=0.02),
      claim("good", "absent*"),
    ],
    rows,
  )
  assert [f.verdict for f in found] == [
    *("holds", "fails", "holds", "cannot tell", "holds", "fails", "no runs"),
  ]
  first = found[0]
  wanted = (drawn(0.1).sum() - drawn(0.2, seed=1).sum()) / 3 / WORDS.sum()
  np.testing.assert_allclose(first.difference, wanted)
  assert first.low < wanted < first.high < 0 and first.seeds == 3 and 0 < first.seen < 0.05
  # Holm: the smallest p times their number, and never less than one before.
  ps = sorted(f.p for f in found[:6])
  assert min(f.corrected for f in found[:6]) == pytest.approx(6 * ps[0])
  assert all(f.corrected >= f.p for f in found[:6])


def test_the_best_setting_on_dev_is_compared():
  rows = [row("n-1", drawn(0.3), dev=0.2), row("n-2", drawn(0.1), dev=0.1), row("ctc", drawn(0.2))]
  (found,) = claims.judge([claim("n-*", "ctc")], rows)
  assert (found.a, found.b) == ("n-2", "ctc")


def test_a_row_is_not_compared_with_itself():
  """Where patterns overlap it is the next best; of one row alone nothing can be said."""
  rows = [row("n-1", drawn(0.3), dev=0.2), row("n-2", drawn(0.1), dev=0.1), row("ctc", drawn(0.2))]
  rows[2].__dict__["errors"]["dev"] = np.full((3, 1), 15), np.array([100])
  found = claims.judge([claim("n-*", "*"), claim("*", "n-*"), claim("n-2", "n-2")], rows)
  assert [(f.a, f.b) for f in found] == [("n-2", "ctc"), ("n-2", "n-1"), ("n-2", "n-2")]
  assert [f.verdict for f in found] == ["holds", "holds", "same row"]


def test_what_cannot_be_compared_says_why():
  first, second = row("n-1", drawn(0.3)), row("n-1", drawn(0.1), seeds=[3, 4])
  longer = row("ctc", drawn(0.2))
  longer.__dict__["errors"]["test"] = longer.errors["test"][0], WORDS + 1
  found = claims.judge([claim("n-*", "n-1"), claim("n-1", "ctc")], [first, second])
  assert [f.verdict for f in found] == ["no seed that both have", "no runs"]
  (found,) = claims.judge([claim("n-1", "ctc")], [first, longer])
  assert found.verdict == "other test data" and not found.seeds
  (section,) = claims.section([found])
  assert section.blocks[1].rows[0][1:8] == ["n-1", "ctc", "", "", "", "", "other test data"]


def test_a_setting_with_other_seeds_is_not_the_best():
  """Each seed has its own teacher: one that is better makes no setting better."""
  rows = [
    row("n-1", drawn(0.20), dev=0.2),
    row("n-2", drawn(0.15, seed=1), dev=0.15),
    row("n-5", drawn(0.05, seeds=1, seed=2), dev=0.05, seeds=[1]),
    row("standard", drawn(0.20, seed=3)),
  ]
  (found,) = claims.judge([claim("n-*", "standard")], rows)
  assert (found.a, found.seeds, found.verdict) == ("n-2", 3, "holds")


def test_one_seed_says_nothing_about_others():
  """However sure it is of its utterances; nor does it count among the claims that are corrected."""
  rows = [row("good", drawn(0.05, seeds=1), seeds=[1]), row("bad", drawn(0.3, seed=1))]
  rows += [row("same", drawn(0.3, seed=2)), row("better", drawn(0.2, seed=3))]
  one, other = claims.judge([claim("good", "bad"), claim("better", "same")], rows)
  assert one.verdict == "one seed" and one.high < 0 and np.isnan(one.corrected)
  assert other.corrected == other.p and other.verdict == "holds"
  (section,) = claims.section([one])
  assert section.blocks[1].rows[0][5:8] == [
    f"{100 * one.low:+.1f} to {100 * one.high:+.1f}",
    "",
    "one seed",
  ]


def test_near_is_refused_as_rarely_as_it_is_taken(monkeypatch):
  """Of differences that are the margin itself, over seeds that differ."""
  monkeypatch.setattr(claims, "_RESAMPLES", 1000)
  verdicts = []
  for trial in range(60):
    rng = np.random.default_rng(trial)
    rates = np.clip([[0.2], [0.25]] + 0.01 * rng.standard_normal((2, 4)), 0, 1)
    pair = rng.binomial(10, rates[..., None], (2, 4, len(WORDS)))
    rows = [row("a", pair[0]), row("b", pair[1])]
    (found,) = claims.judge([claim("a", "b", "near", margin=0.05)], rows)
    verdicts.append(found.verdict)
  assert verdicts.count("cannot tell") >= 53


def test_seeds_are_paired_and_only_those_that_both_have():
  errors = drawn(0.2, seeds=4, spread=0.1)
  rows = [row("a", errors[[2, 1]] - (errors[[2, 1]] > 0), seeds=[2, 1]), row("b", errors)]
  (found,) = claims.judge([claim("a", "b")], rows)
  assert found.seeds == 2 and found.verdict == "holds"
  wanted = -(errors[[2, 1]] > 0).sum() / 2 / WORDS.sum()
  np.testing.assert_allclose(found.difference, wanted)


@pytest.mark.parametrize("seeds", [2, 5])
def test_the_interval_covers_what_it_says(seeds, monkeypatch):
  """Two systems of one rate whose seeds differ: 95 % of intervals hold 0, or nearly so many."""
  monkeypatch.setattr(claims, "_RESAMPLES", 1000)
  inside = 0
  for trial in range(100):
    rng = np.random.default_rng(trial)
    rates = np.clip(0.2 + 0.02 * rng.standard_normal((2, seeds)), 0, 1)
    errors = rng.binomial(10, rates[..., None], (2, seeds, 120))
    low, high = np.quantile(claims.drawn_again(errors[0] - errors[1], WORDS[:120]), [0.025, 0.975])
    inside += low <= 0 <= high
  assert 90 <= inside < 100


def test_spread_of_seeds_is_that_of_their_mean():
  """Utterances that all differ alike: the interval is that of a t test of k seeds."""
  of_seeds = np.array([0, 1, 2, 5, 9])
  found = claims.drawn_again(np.tile(of_seeds[:, None], 50), np.ones(50))
  half = 2.776 * of_seeds.std(ddof=1) / np.sqrt(5)
  wanted = of_seeds.mean() + half * np.array([-1, 1])
  np.testing.assert_allclose(np.quantile(found, [0.025, 0.975]), wanted, atol=0.05 * half)
  assert claims.drawn_again(np.ones((1, 50)), np.ones(50)).std() < 1e-12


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    (claim("a", "b", "better"), "expect is 'better', one of lower, higher, near"),
    (claim("a", "b", "near"), "margin is 0.0, which must be above 0"),
    (claim("a", "b", margin=0.1), "margin is 0.1, which must be"),
    (dict(text="a", a="b"), "no claim: .*'b'"),
    (dict(text="a", a="b", b="c", expects="lower"), "did you mean 'expect'"),
  ],
)
def test_what_is_no_claim_is_one_line(fields, words):
  with pytest.raises(UserError, match=words) as error:
    claims.judge([fields], [])
  assert "\n" not in str(error.value)


def test_the_page():
  rows = [row("good", drawn(0.1)), row("bad", drawn(0.2, seed=1))]
  found = claims.judge([claim("good", "bad"), claim("good", "absent")], rows)
  (section,) = claims.section(found)
  table = section.blocks[1]
  assert table.rows[0][7] == "holds" and table.rows[0][4].startswith("-")
  assert table.rows[1][2] == "no run like absent" and table.rows[1][7] == "no runs"
  assert claims.section([]) == []
