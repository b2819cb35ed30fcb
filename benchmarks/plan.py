"""The plan of an epoch: core-seconds as data grow, joined or not.

  python benchmarks/plan.py                       # LibriSpeech's 281,241 utterances and 10⁶
  python benchmarks/plan.py --utterances=50000

Durations are drawn like LibriSpeech's (12.3 s on average, at most 35); three speeds, 300 s a batch.
"""

import argparse
import time

import numpy as np

from jaxkd.data import plan

SPEEDS = (0.9, 1.0, 1.1)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--utterances", type=int, nargs="+", default=[281_241, 1_000_000])
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  for count in args.utterances:
    durations = np.random.default_rng(0).gamma(6.0, 2.05, count).clip(1.3, 35)
    for join_seconds in (0.0, 30.0):
      sizes = dict(batch_seconds=300, buckets=4, frame_samples=640, speeds=SPEEDS)
      shapes = plan.shapes(durations, join_seconds=join_seconds, **sizes)
      times = []
      for epoch in range(args.rounds):
        started = time.process_time()
        options = dict(seed=0, epoch=epoch, speeds=SPEEDS, join=join_seconds > 0)
        planned = plan.epoch_plan(durations, shapes, **options)
        times.append(time.process_time() - started)
      joined = f"joined to {join_seconds:g} s" if join_seconds else "alone"
      print(
        f"{count:>9,} utterances, {joined}: {np.median(times):.2f} core-seconds "
        f"({min(times):.2f} to {max(times):.2f}), {len(planned):,} batches, padding "
        f"{planned.padding_rate(durations):.1%}"
      )


if __name__ == "__main__":
  main()
