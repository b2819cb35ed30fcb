"""Word and character error rates, their significance, and lengths of blank runs."""

from collections.abc import Sequence

import jiwer
import numpy as np

# Runs of blanks that are as long and longer share a bin.
_LONGEST_RUN_MS = 1000.0
# Resamples that are in memory at a time.
_TOGETHER = 1000


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> dict:
  """WER and CER over all utterances together, by jiwer.

  Args:
    references: transcripts; empty ones count insertions only.
    hypotheses: one for each reference.

  Returns:
    {"wer", "cer": edits per reference word and character (1.0 is 100 %), "words": reference words};
    both rates are None where the references hold no word.
  """
  words = sum(len(r.split()) for r in references)
  if not words:
    return {"wer": None, "cer": None, "words": 0}
  return {
    "wer": round(jiwer.wer(list(references), list(hypotheses)), 6),
    "cer": round(jiwer.cer(list(references), list(hypotheses)), 6),
    "words": words,
  }


def edit_counts(
  references: Sequence[str], hypotheses: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
  """Word errors and reference words of each utterance, by jiwer.

  Args:
    references: transcripts; an empty one has no word, and each word of its hypothesis is an error.
    hypotheses: one for each reference.

  Returns:
    i64[N] substitutions, deletions and insertions, and i64[N] words; the sum of the first over
    the sum of the second is the WER of `error_rates`.
  """
  found = jiwer.process_words(list(references), list(hypotheses)).alignments
  size = lambda c: max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx)
  # Of no utterance at all, jiwer returns one that is empty.
  found = found[: len(references)]
  errors = [sum(size(c) for c in chunks if c.type != "equal") for chunks in found]
  return np.array(errors, np.int64), np.array([len(r.split()) for r in references], np.int64)


def bootstrap_interval(
  errors: np.ndarray, words: np.ndarray, *, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float]:
  """95 % confidence interval of a WER over the choice of utterances, by the bootstrap.

  As many utterances as there are, are drawn with replacement, again and again; the interval is
  from the 2.5th to the 97.5th percentile of the WERs of the draws (Bisani and Ney, "Bootstrap
  estimates for confidence intervals in ASR performance evaluation", ICASSP 2004). Draws without a
  reference word have no WER and are left out.

  Args:
    errors: i[N], word errors of each utterance.
    words: i[N], its reference words.
    seed: of the draws.
    resamples: number of draws.

  Returns:
    Lower and upper end, errors per word.

  Raises:
    ValueError: the utterances have no word.
  """
  drawn = resampled(seed, resamples, errors, words)
  low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
  return float(low), float(high)


def paired_bootstrap(
  errors_a: np.ndarray,
  errors_b: np.ndarray,
  words: np.ndarray,
  *,
  seed: int = 0,
  resamples: int = 10_000,
) -> float:
  """Two-sided p-value of the difference between the WERs of two systems on the same utterances.

  Utterances are drawn with replacement, for both systems the same ones (Bisani and Ney 2004, whose
  "probability of improvement" is the share of draws where one system is better). Of R draws, A do
  not have a's WER above b's, and B do not have it below; draws without a difference are in both.

      p = min(1, 2 · (min(A, B) + 1) / (R + 1))

  So p is below 5 % where more than 97.5 % of the draws favour one system, systems with the same
  errors in each utterance have p = 1, and p is never 0.

  Args:
    errors_a, errors_b: i[N], word errors of each utterance.
    words: i[N], its reference words.
    seed: of the draws.
    resamples: number of draws.

  Returns:
    p in (0, 1]; the same when a and b change places.

  Raises:
    ValueError: the utterances have no word.
  """
  difference = np.subtract(errors_a, errors_b)
  # Both rates have the same divisor: the sign is that of the errors' difference.
  drawn = resampled(seed, resamples, difference, np.asarray(words) > 0)
  sides = [(drawn[:, 0] <= 0).sum(), (drawn[:, 0] >= 0).sum()]
  return float(min(1.0, 2 * (min(sides) + 1) / (len(drawn) + 1)))


def resampled(seed: int, resamples: int, *columns: np.ndarray) -> np.ndarray:
  """i64[≤ resamples, columns]: sums over drawn utterances, where that of the last column is not 0.

  Utterances with equal numbers are one kind, and how many of each kind are in a draw is
  multinomial: the same distribution, in a fraction of the time.

  Args:
    seed: of the draws.
    resamples: their number.
    columns: i[N] each, numbers of every utterance; the last are those that may not add up to 0.

  Raises:
    ValueError: the last column is all 0.
  """
  table = np.stack([np.asarray(column, np.int64) for column in columns], 1)
  if not table[:, -1].any():
    raise ValueError("a WER needs reference words")
  _, first, counts = np.unique(table, axis=0, return_index=True, return_counts=True)
  order = np.argsort(first)  # in the order of utterances, whichever system comes first
  kinds, shares = table[first[order]], counts[order] / len(table)
  rng = np.random.default_rng(seed)
  sums = [
    rng.multinomial(len(table), shares, size=min(_TOGETHER, resamples - start)) @ kinds
    for start in range(0, resamples, _TOGETHER)
  ]
  sums = np.concatenate(sums)
  return sums[sums[:, -1] > 0]


def longest_run(frame_ms: float) -> int:
  """Frames of the longest run of blanks that has a bin of its own: a second."""
  return max(1, round(_LONGEST_RUN_MS / frame_ms))


def blank_runs(path: np.ndarray, *, blank_id: int, longest: int) -> np.ndarray:
  """How many blanks stand between the labels of a best path.

  Neighbouring frames of one class are one label. A run is what lies between a label and the next:
  0 frames where two different labels touch. Blanks before the first and after the last label are
  silence around the speech and not counted.

  Args:
    path: i[T], class of each frame, blank in padding.
    blank_id: the blank's class.
    longest: frames of the last bin.

  Returns:
    i64[longest + 1]: number of runs of 0, 1, 2, … frames; the last bin has all longer ones too.
  """
  frames = np.flatnonzero(path != blank_id)
  runs = np.diff(frames) - 1
  another = path[frames[1:]] != path[frames[:-1]]
  runs = runs[(runs > 0) | another]
  return np.bincount(np.minimum(runs, longest), minlength=longest + 1)
