"""Whether confidence orders a student's right and wrong words: the area under the ROC curve.

  python benchmarks/confidence.py runs/symmetric-demo        # of its test data
  python benchmarks/confidence.py runs/symmetric-demo --data=other.jsonl

0.5 is chance, 1 a perfect order. A word is wrong where jiwer's alignment with the transcript
substitutes or inserts it. In brackets the 95 % interval of a bootstrap over recordings.
"""

import argparse
import pathlib

import jiwer
import numpy as np

from jaxkd.inference.finished import FinishedRun
from jaxkd.inference.recogniser import Recogniser
from jaxkd.labels import normalise


def right_and_wrong(reference: str, words: list[str]) -> list[bool]:
  """For each word of a hypothesis, whether the transcript has it there."""
  right = [False] * len(words)
  if words and reference:
    for chunk in jiwer.process_words(reference, " ".join(words)).alignments[0]:
      if chunk.type == "equal":
        right[chunk.hyp_start_idx : chunk.hyp_end_idx] = [True] * (
          chunk.hyp_end_idx - chunk.hyp_start_idx
        )
  return right


def area(confidence: np.ndarray, right: np.ndarray) -> float:
  """Probability that a right word is surer than a wrong one; a tie counts half."""
  good, bad = confidence[right][:, None], confidence[~right][None]
  return float((good > bad).mean() + (good == bad).mean() / 2)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("workdir", type=pathlib.Path)
  parser.add_argument("--data", default="")
  args = parser.parse_args()
  run = FinishedRun(args.workdir)
  source = run.open(args.data) if args.data else list(run.splits().values())[-1]
  audio = [source.read(i) for i in range(len(source))]
  found = []
  for text, said in zip(source.texts, Recogniser(run.student, "").transcribe(audio), strict=True):
    right = right_and_wrong(normalise(text), [word.text for word in said.words])
    found.append([(word.confidence, ok) for word, ok in zip(said.words, right, strict=True)])
  pooled = lambda rows: np.array([pair for row in rows for pair in row])
  whole = pooled(found)
  rng, areas = np.random.default_rng(0), []
  for _ in range(1000):
    sample = pooled([found[i] for i in rng.integers(0, len(found), len(found))])
    if 0 < sample[:, 1].sum() < len(sample):
      areas.append(area(sample[:, 0], sample[:, 1] > 0))
  low, high = np.percentile(areas, [2.5, 97.5])
  right = whole[:, 1] > 0
  print(
    f"{args.workdir}: {len(whole)} words, {(~right).sum()} of them wrong: "
    f"area {area(whole[:, 0], right):.3f} ({low:.3f} to {high:.3f}); mean confidence "
    f"{whole[right, 0].mean():.3f} of right words, {whole[~right, 0].mean():.3f} of wrong ones"
  )


if __name__ == "__main__":
  main()
