"""A plan in two levels for 50 million utterances, simulated: seeded shards first, then their rows.

  python benchmarks/levels.py                             # 50 million utterances in 10,000 shards
  python benchmarks/levels.py --utterances=2500000 --exact

An epoch draws the order of the shards; of so many shards at a time (a group) the rows are planned
exactly, as `data/plan.py` plans a whole epoch. Each process computes the same, and holds one group.
Durations are synthetic, in a file that is mapped as an index's are. Printed are the time until the
first batch is known, what the planner takes of a core, its memory, padding, and that each utterance
is there once. --exact plans all of them at once beside it.
"""

import argparse
import pathlib
import re
import tempfile
import time

import numpy as np

from jaxkd.data import plan

SIZES = dict(batch_seconds=300, buckets=4, frame_samples=640)
_MADE = 1_000_000


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--utterances", type=int, default=50_000_000)
  parser.add_argument("--a_shard", type=int, default=5000, help="utterances")
  parser.add_argument("--group", type=int, default=100, help="shards that are planned at a time")
  parser.add_argument("--join_seconds", type=float, default=0.0)
  parser.add_argument("--exact", action="store_true")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    path = pathlib.Path(name) / "seconds.bin"
    write(path, args.utterances)
    before = memory()
    durations = np.memmap(path, "<f8", "r")
    two_levels(durations, args, before)
    if args.exact:
      started = time.process_time()
      made = plan.shapes(durations, join_seconds=args.join_seconds, **SIZES)
      whole = plan.epoch_plan(durations, made, seed=0, epoch=0, join=args.join_seconds > 0)
      spent, padding = time.process_time() - started, whole.padding_rate(durations)
      print(f"exact: {spent:.1f} core-seconds, {len(whole):,} batches, padding {padding:.2%}")


def write(path: pathlib.Path, utterances: int) -> None:
  """Durations like LibriSpeech's."""
  rng = np.random.default_rng(0)
  with path.open("wb") as file:
    for first in range(0, utterances, _MADE):
      count = min(_MADE, utterances - first)
      file.write(rng.gamma(6.0, 2.05, count).clip(1.3, 35).round(3).tobytes())


def two_levels(durations: np.ndarray, args, before: int) -> None:
  """Plans an epoch group by group and prints the figures."""
  started, planned = time.perf_counter(), time.process_time()
  shards = np.random.default_rng([0, 0]).permutation(-(-len(durations) // args.a_shard))
  # Shapes are of a sample: all shapes must hold the longest, which a column's maximum says.
  sample = durations[np.linspace(0, len(durations) - 1, min(_MADE, len(durations)), dtype=int)]
  sample = np.append(sample, durations.max())
  made = plan.shapes(sample, join_seconds=args.join_seconds, **SIZES)
  seen = np.zeros(len(durations), bool)
  batches, padding, most, first = 0, 0.0, 0, None
  for number, start in enumerate(range(0, len(shards), args.group)):
    rows = rows_of(shards[start : start + args.group], args.a_shard, len(durations))
    here = durations[rows]
    join = args.join_seconds > 0
    epoch = plan.epoch_plan(here, made, seed=number, epoch=0, join=join)
    first = first or time.perf_counter() - started
    padding += epoch.padding_rate(here) * len(epoch)
    batches += len(epoch)
    most = max(most, memory() - before - seen.nbytes // 2**20)
    assert not seen[rows].any()
    seen[rows[epoch._rows.utterances]] = True
  assert seen.all()
  print(
    f"two levels, {len(durations):,} utterances, {len(shards):,} shards, {args.group} at a time: "
    f"first batch after {first:.1f} s, {time.process_time() - planned:.1f} core-seconds, "
    f"{most} MB, {batches:,} batches, padding {padding / batches:.2%}, each utterance once"
  )


def rows_of(shards: np.ndarray, a_shard: int, utterances: int) -> np.ndarray:
  """i64: the rows of shards, one shard after the other."""
  rows = (shards[:, None] * a_shard + np.arange(a_shard)).ravel()
  return rows[rows < utterances]


def memory() -> int:
  """MB of this process's own, without what lies in files that are mapped."""
  text = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(r"RssAnon:\s*(\d+) kB", text)[1]) // 1024


if __name__ == "__main__":
  main()
