"""What kind of errors a row makes, and which words they fall on."""

import re
from collections.abc import Iterable

import jiwer
import numpy as np

from jaxkd.report.render import Section, Table
from jaxkd.report.tables import Row

_DOUBLED = re.compile(r"([^\W\d_])\1")
_NOTE = (
  "Of the test words in %, over all seeds: those that were heard as others, not heard, and heard "
  "where none was said; then the share of wrong or missing ones among first words, which follow "
  "silence, last words, words with a doubled letter, between whose halves CTC needs a blank, and "
  "all others."
)


def section(rows: Iterable[Row]) -> list[Section]:
  """The report's table of them; nothing where no test data is transcribed."""
  head = [
    "row",
    "substituted",
    "deleted",
    "inserted",
    "first words",
    "last words",
    "doubled letter",
  ]
  cells = [
    [row.name, *(f"{100 * rate:.1f}" if np.isfinite(rate) else "" for rate in found)]
    for row in rows
    if (found := rates(row)) is not None
  ]
  return [Section("Kinds of errors", [_NOTE, Table([*head, "others"], cells)])] if cells else []


def rates(row: Row) -> np.ndarray | None:
  """f64[7], what `section` tells of a row; None without transcribed test data.

  NaN where there are no such words.
  """
  told = [
    (reference, hypothesis)
    for model in row.models
    for reference, hypothesis in model.hypotheses.get("test", {}).values()
    if reference is not None
  ]
  pairs = [pair for pair in told if pair[0].split()]
  if not pairs:
    return None
  in_silence = sum(
    len(hypothesis.split()) for reference, hypothesis in told if not reference.split()
  )
  found = jiwer.process_words(*map(list, zip(*pairs, strict=True)))
  wrong, kinds = [], []
  for words, chunks in zip(found.references, found.alignments, strict=True):
    is_wrong = np.zeros(len(words), bool)
    for chunk in chunks:
      is_wrong[chunk.ref_start_idx : chunk.ref_end_idx] |= chunk.type != "equal"
    wrong.append(is_wrong)
    kinds.append(_kinds(words))
  wrong, kinds = np.concatenate(wrong), np.concatenate(kinds)
  counts = np.array([found.substitutions, found.deletions, found.insertions + in_silence])
  counts = counts / len(wrong)
  sizes = kinds.sum(0)
  shares = np.divide(wrong @ kinds, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
  return np.concatenate([counts, shares])


def _kinds(words: list[str]) -> np.ndarray:
  """i64[words, 4]: whether each is first, last, has a doubled letter, or is none of these."""
  place = np.arange(len(words))
  doubled = np.array([bool(_DOUBLED.search(word)) for word in words])
  kinds = np.stack([place == 0, place == len(words) - 1, doubled])
  return np.stack([*kinds, ~kinds.any(0)], 1).astype(np.int64)
