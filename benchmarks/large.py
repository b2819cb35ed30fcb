"""An index of millions of utterances: time to open it, memory of each process, time of a plan.

  python benchmarks/large.py                              # 2.5 million utterances
  python benchmarks/large.py --utterances=50000           # quickly

Durations, ids and transcripts are synthetic, and shards are empty files. Measured are: opening as
a run does it; memory of the process that is its own (RssAnon), which mapped files are not; 10,000
ids and texts in random order; the fingerprint where some utterances are left out; the plan.
"""

import argparse
import json
import multiprocessing
import pathlib
import re
import tempfile
import time

import numpy as np

from jaxkd.data import index, plan, shards
from jaxkd.data.sources import NO_LIMITS, Limits, Source


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--utterances", type=int, default=2_500_000)
  parser.add_argument("--a_shard", type=int, default=5000, help="utterances")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    started = time.perf_counter()
    write(folder, args.utterances, args.a_shard)
    size = sum(path.stat().st_size for path in (folder / index.COLUMNS).iterdir())
    print(
      f"{args.utterances:,} utterances: index written in {time.perf_counter() - started:.0f} s, "
      f"{size / args.utterances:.0f} bytes a row on disk, {size / 1e6:.0f} MB"
    )
    for _ in range(2):  # of processes that know nothing of each other
      process = multiprocessing.get_context("spawn").Process(target=read, args=(folder,))
      process.start()
      process.join()


def write(folder: pathlib.Path, utterances: int, a_shard: int) -> None:
  """An index of synthetic rows."""
  rng = np.random.default_rng(0)
  durations = rng.gamma(6.0, 2.05, utterances).clip(1.3, 35).round(3).tolist()
  words = [f"{'x' * int(n)} " for n in rng.integers(2, 9, 1000)]
  texts = ["".join(words[i : i + 30]) for i in range(900)]
  count = -(-utterances // a_shard)
  for number in range(count):
    (folder / f"{number:06}.array_record").touch()
  facts = {"kind": shards.ARRAY_RECORD, "source": "synthetic", "left_out": []}
  facts["shards"] = [{"path": f"{n:06}.array_record", "bytes": 0} for n in range(count)]
  rows = (
    index.Row(f"speaker/{i:09}.flac", s, texts[i % 900], 0.0, i // a_shard, i % a_shard, 0, 0)
    for i, s in enumerate(durations)
  )
  index.write(folder, rows, facts)


def read(folder: pathlib.Path) -> None:
  """Prints the figures of a process that opens the index and plans an epoch."""
  before = memory()
  figures = {}

  def timed(name: str, work):
    started = time.perf_counter()
    found = work()
    figures[f"{name}_seconds"] = round(time.perf_counter() - started, 3)
    return found

  source = timed("open", lambda: Source("x", *shards.opened(folder, NO_LIMITS)))
  source.fingerprint()
  figures["mb_private_after_opening"] = memory() - before
  limited = timed("open_with_limits", lambda: Source("x", *shards.opened(folder, Limits(2.0, 30))))
  order = np.random.default_rng(0).integers(0, len(source), 10_000).tolist()
  timed("random_10000", lambda: [(source.ids[i], source.texts[i]) for i in order])
  timed("all_texts", lambda: sum(text is None for text in source.texts))
  figures["mb_private_after_reading"] = memory() - before
  timed("fingerprint_of_a_part", limited.fingerprint)
  sizes = dict(batch_seconds=300, buckets=4, frame_samples=640)
  made = timed("shapes", lambda: plan.shapes(source.durations, **sizes))
  timed("plan", lambda: plan.epoch_plan(source.durations, made, seed=0, epoch=0))
  print(json.dumps(figures))


def memory() -> int:
  """MB of this process's own, without what lies in files that are mapped."""
  text = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(r"RssAnon:\s*(\d+) kB", text)[1]) // 1024


if __name__ == "__main__":
  main()
