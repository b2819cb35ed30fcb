"""Word and character error rates."""

from collections.abc import Sequence

import jiwer


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
