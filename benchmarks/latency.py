"""Word error rate against latency: finished runs of configs/streaming.py in chunks and as a whole.

  python benchmarks/latency.py runs/streaming-s0 runs/streaming-s1 runs/streaming-s2 --out=figures

Runs whose names differ in -sN alone are one line of the table: mean and standard deviation. Latency
is from the first sample of a chunk to the last that its frames wait for. An offset is in frames of
40 ms, of the student's labels from the teacher's, which hears everything. With --out, a picture of
what a run says of one utterance in both modes.
"""

import argparse
import collections
import pathlib
import re
import statistics

import jax
import numpy as np

from jaxkd.commands import evaluate
from jaxkd.inference import live
from jaxkd.inference.finished import FinishedRun
from jaxkd.models.acoustic import AcousticModel

CHUNKS_MS = (160, 320, 640, 1280, None)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("runs", nargs="+", type=pathlib.Path)
  parser.add_argument("--data", default="", help="default: the runs' own test split")
  parser.add_argument("--out", type=pathlib.Path, help="folder for a picture of both modes")
  args = parser.parse_args()
  groups = collections.defaultdict(list)
  for run in args.runs:
    groups[re.sub(r"-s\d+$", "", run.name)].append(run)
  for name, runs in groups.items():
    print(f"{name}: {len(runs)} runs, commit {FinishedRun(runs[0]).results['commit']}")
    for chunk in CHUNKS_MS:
      print(line(runs, chunk, args.data), flush=True)
  if args.out:
    print(picture(args.runs[0], args.out))


def line(runs, chunk: int | None, data: str) -> str:
  """Figures of some runs in chunks of so many milliseconds."""
  found, latency = [], "whole utterance"
  for folder in runs:
    run = FinishedRun(folder)
    found.append(evaluate.evaluate(folder, data or run.config.data.test, stream=chunk))
    if chunk is not None:
      heard = live.chunks(run.student, chunk, str(folder))
      latency = f"{live.Live(run.student, heard).latency_ms:.1f} ms"
  spread = lambda values: (
    f"{statistics.mean(values):5.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:4.2f}"
  )
  wer = spread([100 * x["student"]["wer"] for x in found])
  cer = spread([100 * x["student"]["cer"] for x in found])
  offsets = [x["spike_offsets"] for x in found if x["spike_offsets"]]
  told = spread([x["mean"] for x in offsets]) if offsets else "no teacher"
  name = "all" if chunk is None else f"{chunk} ms"
  return f"  {name:>8}  {latency:>15}  WER {wer}  CER {cer}  offset {told}"


def picture(folder: pathlib.Path, out: pathlib.Path, chunk: int = 320) -> pathlib.Path:
  """A plot of the probabilities of blank and labels over time, in chunks and of the whole."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  run = FinishedRun(folder)
  student, source = run.student, run.open(run.config.data.test)
  # One that is long enough to see something, and short enough to see it well.
  samples = source.read(int(abs(source.durations - 3).argmin()))
  heard = live.chunks(student, chunk, str(folder))
  models = {
    f"chunks of {chunk} ms": AcousticModel(**vars(student) | {"chunks": heard}),
    "the whole utterance": student,
  }
  figure, axes = plt.subplots(2, 1, figsize=(10, 5), sharex=True, sharey=True)
  for axis, (name, model) in zip(axes, models.items(), strict=True):
    output = model(samples[None], np.array([len(samples)], np.int32))
    p = np.asarray(jax.nn.softmax(output.logits[0][output.mask[0]]))
    seconds = np.arange(len(p)) * model.frame_ms / 1000
    axis.plot(seconds, p[:, model.blank_id], color="0.7", label="blank")
    for label in sorted(set(p.argmax(-1)) - {model.blank_id}):
      axis.plot(seconds, p[:, label])
    for frame in np.flatnonzero(np.diff(p.argmax(-1), prepend=model.blank_id)):
      label = p[frame].argmax()
      if label != model.blank_id:
        axis.text(seconds[frame], 1.02, model.labels[label].replace(" ", "_"), fontsize=8)
    if model.chunks:
      for edge in np.arange(0, seconds[-1], chunk / 1000):
        axis.axvline(edge, color="0.9", zorder=0)
    axis.set(title=name, ylabel="probability", ylim=(0, 1.12))
  axes[-1].set_xlabel("seconds")
  figure.tight_layout()
  out.mkdir(parents=True, exist_ok=True)
  figure.savefig(out / "streaming.png", dpi=90)
  return out / "streaming.png"


if __name__ == "__main__":
  main()
