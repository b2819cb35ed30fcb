"""The paper's sizes in use: bytes and speed of exported students, in each runtime, on one thread.

  python benchmarks/export.py                                # small and medium
  python benchmarks/export.py --sizes=small --rounds=5

Weights are random, so texts say nothing: what is measured is size, speed, and that all say the
same. Recordings are noise of 4 to 16 s, one at a time, on one core. The runtimes take turns.
Printed: megabytes, the real-time factor (seconds a second of audio; median and range over the
rounds), and the largest difference of log probabilities from jaxkd.
"""

import argparse
import os
import pathlib
import tempfile
import time

os.environ.setdefault(
  "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
if hasattr(os, "sched_setaffinity"):
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import numpy as np

from jaxkd import config as config_lib
from jaxkd.export import check, quantised, runtimes, slots
from jaxkd.labels import characters
from jaxkd.models import registry
from jaxkd.models.acoustic import AcousticModel

RATE_HZ = 16_000


def student(size: str, normalise: str = "utterance") -> AcousticModel:
  """A student of a recipe's size with drawn weights, which sherpa-onnx's two places can take."""
  config = config_lib.base(f"manifest-{size}")
  config.features.update(kind="sherpa", mels=80, normalise=normalise)
  model = registry.architecture(config.student, config.features, dtype="float32")
  vocabulary = characters(" 'abcdefghijklmnopqrstuvwxyz")
  graphdef, like = model.structure(len(vocabulary.symbols))
  rng = np.random.default_rng(0)
  scale = lambda shape: 0.05 if len(shape) < 2 else (1 / np.prod(shape[:-1])) ** 0.5
  draw = lambda x: (scale(x.shape) * rng.normal(size=x.shape)).astype(np.float32)
  return AcousticModel(graphdef, jax.tree.map(draw, like), vocabulary, model.frame_samples)


def recordings() -> list[np.ndarray]:
  """f32[S] of noise that comes and goes."""
  rng = np.random.default_rng(0)
  found = []
  for seconds in (4, 7, 10, 16):
    noise = rng.normal(size=seconds * RATE_HZ)
    envelope = np.abs(np.sin(np.arange(len(noise)) / RATE_HZ * 7)) ** 2
    found.append((0.1 * noise * envelope).astype(np.float32))
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--sizes", nargs="+", default=["small", "medium"])
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  audio = recordings()
  length = sum(map(len, audio)) / RATE_HZ
  for size in args.sizes:
    model = student(size)
    print(f"{size}: {model.parameter_count:,} parameters, {len(audio)} recordings, {length:.0f} s")
    with tempfile.TemporaryDirectory() as folder:
      measure(model, pathlib.Path(folder), audio, args.rounds)


def measure(model: AcousticModel, folder: pathlib.Path, audio, rounds: int) -> None:
  heard = check.Heard(audio, [], {}, [], False)
  contestants, facts = {"jaxkd float32": lambda x: jax.block_until_ready(here(model, x))}, {}
  for slot in slots.fitting(model)[0]:
    place = folder / slot.folder
    place.mkdir()
    slot.write_classes(model, place)
    whole, small = place / "model.onnx", place / "model.int8.onnx"
    whole.write_bytes(slot.build(model, False).SerializeToString())
    quantised.write_int8(whole, small)
    for path in (whole, small):
      name = f"{slot.folder} {'int8' if path is small else 'float32'}"
      facts[name] = path.stat().st_size, check.difference(model, path, heard)
      contestants[f"onnxruntime: {name}"] = by_onnxruntime(path, model)
      if slot.folder != "onnx-asr":
        contestants[f"sherpa-onnx: {name}"] = runtimes.RUNTIMES[slot.folder][1](path)
  times = {name: [] for name in contestants}
  for turn in range(rounds + 1):
    for name, run in contestants.items():
      start = time.perf_counter()
      for x in audio:
        run(x)
      if turn:  # the first one compiles
        times[name].append((time.perf_counter() - start) / sum(map(len, audio)) * RATE_HZ)
  for name, found in times.items():
    line = f"  {name:34} RTF {np.median(found):.4f} ({min(found):.4f} to {max(found):.4f})"
    if name.startswith("onnxruntime"):
      bytes_, difference = facts[name.partition(": ")[2]]
      line += f"  {bytes_ / 1e6:6.1f} MB  largest difference {difference:.0e}"
    print(line)


def by_onnxruntime(path: pathlib.Path, model: AcousticModel):
  run, inputs = runtimes.log_probs(path), check.INPUTS[path.parent.name]
  settings = slots.settings_of(model)
  return lambda audio: run(**inputs(audio, settings))


def here(model: AcousticModel, audio: np.ndarray):
  return model(audio[None], np.array([len(audio)], np.int32)).logits


if __name__ == "__main__":
  main()
