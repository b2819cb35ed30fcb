"""Students that hear streams in sherpa-onnx: speed and memory on one thread.

  python benchmarks/online.py --exported=runs/streaming/export   # what an export has written
  python benchmarks/online.py --sizes small --stream=320         # a recipe's size, random weights

Each file is heard in a process of its own, without jaxkd: 60 s of noise in packets of 100 ms, on
one core. Printed: megabytes; the real-time factor (CPU seconds a second of audio; median and range
over the rounds), and what of it is a chunk, in milliseconds; the peak memory of the process, and
how much of it was there before the model: Python with the runtime. Reads /proc: on Linux.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

RATE_HZ, SECONDS, LEFT_FRAMES = 16_000, 60, 64


def listen(model: pathlib.Path, mels: int, rounds: int) -> dict:
  """Seconds of each round, and kilobytes, of a process that does nothing else."""
  import sherpa_onnx

  noise = np.random.default_rng(0).normal(size=SECONDS * RATE_HZ).astype(np.float32)
  audio = noise * np.abs(np.sin(np.arange(len(noise), dtype=np.float32) / RATE_HZ * 7)) * 0.1
  before, seconds = peak_kb(), []
  recogniser = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
    tokens=str(model.with_name("tokens.txt")), model=str(model), feature_dim=mels, num_threads=1
  )
  for _ in range(rounds + 1):
    start, stream = time.process_time(), recogniser.create_stream()
    for packet in np.split(audio, SECONDS * 10):
      stream.accept_waveform(RATE_HZ, packet)
      while recogniser.is_ready(stream):
        recogniser.decode_stream(stream)
    seconds.append(time.process_time() - start)
  return {"seconds": seconds[1:], "before": before, "peak": peak_kb()}


def peak_kb() -> int:
  """Most memory of this process so far; getrusage would tell that of its parent."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def report(model: pathlib.Path, rounds: int) -> None:
  """Runs the process of one file and prints a line."""
  import onnx

  told = onnx.load(model)
  mels = told.graph.input[0].type.tensor_type.shape.dim[2].dim_value
  shift = next(int(x.value) for x in told.metadata_props if x.key == "decode_chunk_len")
  command = [sys.executable, __file__, "--listen", str(model), str(mels), str(rounds)]
  found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
  factors = np.array(found["seconds"]) / SECONDS
  print(
    f"  {model.name:16} {model.stat().st_size / 1e6:6.1f} MB  RTF {np.median(factors):.4f} "
    f"({factors.min():.4f} to {factors.max():.4f}), {np.median(factors) * shift * 10:.1f} ms a "
    f"chunk of {shift * 10}; peak {found['peak'] / 1e3:.0f} MB, {found['before'] / 1e3:.0f} before"
  )


def write(size: str, stream_ms: int, place: pathlib.Path) -> None:
  """The files of a student of a recipe's size with drawn weights."""
  from export import student
  from jaxkd.export import online, quantised
  from jaxkd.models.acoustic import Chunks

  model = student(size, normalise="none")
  chunks = Chunks(int(stream_ms / model.frame_ms), LEFT_FRAMES)
  model = dataclasses.replace(model, chunks=chunks)
  online.SLOT.write_classes(model, place)
  (place / "model.onnx").write_bytes(online.SLOT.build(model, False).SerializeToString())
  quantised.write_int8(place / "model.onnx", place / "model.int8.onnx")
  print(f"{size}: {model.parameter_count:,} parameters, chunks of {stream_ms} ms")


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--exported", type=pathlib.Path)
  parser.add_argument("--sizes", nargs="+", default=[])
  parser.add_argument("--stream", type=int, default=320, help="milliseconds of a chunk")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--listen", nargs=3, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  if args.listen:
    model, mels, rounds = args.listen
    print(json.dumps(listen(pathlib.Path(model), int(mels), int(rounds))))
    return
  if args.exported:
    for model in sorted((args.exported / "online").glob("*.onnx")):
      report(model, args.rounds)
  for size in args.sizes:
    with tempfile.TemporaryDirectory() as folder:
      write(size, args.stream, pathlib.Path(folder))
      for model in sorted(pathlib.Path(folder).glob("*.onnx")):
        report(model, args.rounds)


if __name__ == "__main__":
  main()
