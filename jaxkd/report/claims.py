"""What a grid was to find out: each claim with its figures, interval, p and verdict.

A difference is that of the WERs of two rows on the same test utterances. Its interval is over
seeds and utterances together, in two levels: utterances are drawn with replacement, each with its
errors in all seeds; and what a draw of k seeds adds, a seed with its teacher and both students, is
drawn from t with k - 1 degrees of freedom, scaled by their standard error. Two or three seeds that
are drawn from themselves would say far too little of others: where seeds differ as much as
utterances do, one comparison in seven of equals was significant (p < 0.05).
"""

import dataclasses
import fnmatch
import math
from collections.abc import Sequence

import numpy as np

from jaxkd.errors import UserError, did_you_mean
from jaxkd.inference import error_rates
from jaxkd.report.render import Section, Table
from jaxkd.report.tables import Row

_EXPECTED = ("lower", "higher", "near")
_RESAMPLES = 10_000
_LEVEL = 0.05
# Of a normal estimate: 80 % of all repetitions lie above so many standard errors below it.
_POWER = 0.84


@dataclasses.dataclass(frozen=True)
class Claim:
  """A sentence that runs can decide.

  Attributes:
    text: the sentence.
    a, b: patterns of names of runs, without their seeds ("symmetric-n*-scale1.0-*"); of several
      rows that match, the one with the lowest WER on dev is taken, among those with the most seeds
      that the other side has, too; the claim says which. A row that matches both is not compared
      with itself.
    expect: "lower", a has the lower WER; "higher"; or "near", closer than `margin`.
    margin: of "near", in WER (0.01 is a percentage point).
  """

  text: str
  a: str
  b: str
  expect: str = "lower"
  margin: float = 0.0

  def __post_init__(self):
    if self.expect not in _EXPECTED:
      raise UserError(f"claim {self.text!r}: expect is {self.expect!r}, one of lower, higher, near")
    if (self.margin > 0) != (self.expect == "near"):
      wanted = "above 0 where expect is near, else 0"
      raise UserError(f"claim {self.text!r}: margin is {self.margin}, which must be {wanted}")


@dataclasses.dataclass(frozen=True)
class Finding:
  """A claim and what the runs say.

  Attributes:
    claim: the sentence.
    a, b: names of the rows that were compared; "" where none matched.
    difference: WER of a minus WER of b.
    low, high: its 95 % interval.
    p: two-sided; of "near", twice the smaller of those that the difference is as large as the
      margin, and that it is not; not corrected. NaN of one seed, which says nothing about others.
    corrected: the same after Holm, over all claims that have one.
    seeds: how many both rows have.
    seen: the smallest difference that would be found in 80 % of repetitions, were this the only
      claim.
    lacking: without seeds, what there is not.
  """

  claim: Claim
  a: str = ""
  b: str = ""
  difference: float = math.nan
  low: float = math.nan
  high: float = math.nan
  p: float = math.nan
  corrected: float = math.nan
  seeds: int = 0
  seen: float = math.nan
  lacking: str = "no runs"

  @property
  def verdict(self) -> str:
    """holds, fails, cannot tell, one seed, or what is lacking."""
    if self.seeds < 2:
      return "one seed" if self.seeds else self.lacking
    if not self.corrected < _LEVEL:
      return "cannot tell"
    if self.claim.expect == "near":
      return "holds" if abs(self.difference) < self.claim.margin else "fails"
    return "holds" if (self.difference < 0) == (self.claim.expect == "lower") else "fails"


def judge(claims: Sequence[dict], rows: list[Row]) -> list[Finding]:
  """Every claim, with Holm's correction over them.

  Args:
    claims: fields of each `Claim`.
    rows: of the report.

  Raises:
    UserError: a claim that is none.
  """
  found = [_compare(claim, rows) for claim in read(claims)]
  tested = sorted((f for f in found if f.seeds > 1), key=lambda f: f.p)
  corrected, least = {}, 0.0
  for number, finding in enumerate(tested):
    least = max(least, min(1.0, finding.p * (len(tested) - number)))
    corrected[id(finding)] = least
  return [
    dataclasses.replace(f, corrected=corrected[id(f)]) if id(f) in corrected else f for f in found
  ]


def read(claims: Sequence[dict]) -> list[Claim]:
  """The claims of a grid.

  Raises:
    UserError: one that is none.
  """
  return [_claim(fields) for fields in claims]


def _claim(fields: dict) -> Claim:
  if not isinstance(fields, dict):
    raise UserError(f"a claim of the grid is {fields!r}: it must be a dict of text, a, b, expect")
  known = [f.name for f in dataclasses.fields(Claim)]
  try:
    return Claim(**fields)
  except TypeError as error:
    wrong = next((name for name in fields if name not in known), "")
    near = did_you_mean(wrong, known) if wrong else ""
    raise UserError(f"a claim of the grid is no claim: {error}{near}") from error


def _compare(claim: Claim, rows: list[Row]) -> Finding:
  a, b = _best(claim, rows)
  if a is None or b is None:
    return Finding(claim, _name(a), _name(b))
  if lacking := _lacking(a, b):
    return Finding(claim, _name(a), _name(b), lacking=lacking)
  errors, words = _paired(a, b)
  differences = errors[:, 0] - errors[:, 1]
  drawn = drawn_again(differences, words)
  difference = float(differences.sum() / words.sum() / len(errors))
  low, high = np.quantile(drawn, [0.025, 0.975])
  if claim.expect == "near":
    as_large = max(_share(drawn >= claim.margin), _share(drawn <= -claim.margin))
    sides = as_large, _share(abs(drawn) < claim.margin)
  else:
    sides = _share(drawn <= 0), _share(drawn >= 0)
  p = min(1.0, 2 * min(sides)) if len(errors) > 1 else math.nan
  # Quartiles give a standard error that the few far draws of t do not decide.
  quartiles = np.quantile(drawn, [0.25, 0.75])
  seen = float((high - low) / 2 + _POWER * (quartiles[1] - quartiles[0]) / 1.349)
  return Finding(
    claim, _name(a), _name(b), difference, float(low), float(high), p, p, len(errors), seen
  )


def _lacking(a: Row, b: Row) -> str:
  """Why two rows cannot be compared; "" where they can."""
  if a is b:
    return "same row"
  if not np.array_equal(a.errors["test"][1], b.errors["test"][1]):
    return "other test data"
  return "" if _shared(a, b) else "no seed that both have"


def _share(draws: np.ndarray) -> float:
  return (int(draws.sum()) + 1) / (len(draws) + 1)


def _name(row: Row | None) -> str:
  """The name of a row's runs, without their seed; "" of no row."""
  return "" if row is None else row.first.series


def _best(claim: Claim, rows: list[Row]) -> tuple[Row | None, Row | None]:
  """The rows of a claim, None where none matches; seeds come first, since they have teachers."""
  of_a, of_b = (_matching(pattern, rows) for pattern in (claim.a, claim.b))
  pairs = [(a, b, _shared(a, b)) for a in of_a for b in of_b if a is not b]
  if not pairs:
    return next(iter(of_a), None), next(iter(of_b), None)
  most = max(len(seeds) for *_, seeds in pairs)
  on_dev = lambda pair: tuple(_on_dev(row, pair[2]) for row in pair[:2])
  return min((pair for pair in pairs if len(pair[2]) == most), key=on_dev)[:2]


def _matching(pattern: str, rows: list[Row]) -> list[Row]:
  tested = [row for row in rows if row.role == "student" and "test" in row.errors]
  return [row for row in tested if fnmatch.fnmatch(_name(row), pattern)]


def _seeds(row: Row) -> list[int]:
  return [run.results["seed"] for run in row.runs]


def _shared(a: Row, b: Row) -> list[int]:
  """Seeds that both rows have, in the order of a's."""
  return [seed for seed in dict.fromkeys(_seeds(a)) if seed in _seeds(b)]


def _on_dev(row: Row, seeds: list[int]) -> float:
  """WER on dev over these seeds; +inf without dev data, which is behind all others."""
  rates = row.rates("dev")
  if rates is None or not seeds:
    return math.inf
  return float(np.mean([rates[_seeds(row).index(seed)] for seed in seeds]))


def _paired(a: Row, b: Row) -> tuple[np.ndarray, np.ndarray]:
  """i64[seeds, 2, utterances] errors of seeds that both rows have, and i64[utterances] words."""
  (errors_a, words), (errors_b, _) = a.errors["test"], b.errors["test"]
  of_seed = lambda row, errors, seed: errors[_seeds(row).index(seed)]
  seeds = _shared(a, b)
  pairs = [(of_seed(a, errors_a, seed), of_seed(b, errors_b, seed)) for seed in seeds]
  return np.array(pairs, np.int64), words


def drawn_again(differences: np.ndarray, words: np.ndarray, *, seed: int = 0) -> np.ndarray:
  """f64[draws]: differences of WERs over other seeds and utterances, as the module says.

  Args:
    differences: i[seeds, utterances], errors of one system minus those of the other.
    words: i[utterances], reference words.
    seed: of the draws.
  """
  count = len(differences)
  sums = error_rates.resampled(seed, _RESAMPLES, differences.sum(0), words)
  found = sums[:, 0] / sums[:, 1] / count
  if count > 1:
    error = (differences.sum(1) / words.sum()).std(ddof=1) / math.sqrt(count)
    found += error * np.random.default_rng([seed, 1]).standard_t(count - 1, len(found))
  return found


def section(findings: list[Finding]) -> list[Section]:
  """The report's page of claims; nothing where there are none."""
  if not findings:
    return []
  head = ["claim", "a", "b", "seeds", "a - b, WER points", "95 % interval", "p", "verdict", "seen"]
  rows = [
    [
      f.claim.text + ("" if not f.claim.margin else f" (within {100 * f.claim.margin:g})"),
      f.a or f"no run like {f.claim.a}",
      f.b or f"no run like {f.claim.b}",
      str(f.seeds or ""),
      *(["", "", ""] if not f.seeds else _figures(f)),
      f.verdict,
      "" if not f.seeds else f"{100 * f.seen:.1f}",
    ]
    for f in findings
  ]
  note = (
    "Differences of test WER between rows on the same utterances; of several settings the best on "
    "dev is compared. Intervals are over utterances (bootstrap) and seeds (t, with one degree of "
    "freedom less than there are seeds), p after Holm's correction over all claims here. Seen: the "
    "smallest difference that runs like these would find in 80 % of repetitions, were it the only "
    "claim. One seed says nothing about others: its interval is over utterances "
    "alone, and it has no p."
  )
  return [Section("Claims", [note, Table(head, rows)])]


def _figures(f: Finding) -> list[str]:
  p = "" if f.seeds < 2 else "< 0.001" if f.corrected < 0.001 else f"{f.corrected:.3f}"
  return [f"{100 * f.difference:+.1f}", f"{100 * f.low:+.1f} to {100 * f.high:+.1f}", p]
