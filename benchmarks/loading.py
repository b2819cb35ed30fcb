"""Memory and time that the loading of a large teacher takes, on virtual devices of this machine.

  python benchmarks/loading.py                                     # HuBERT large: 1.26 GB
  python benchmarks/loading.py --layers=48 --width=1280            # as wide and deep as XLS-R 1B
  python benchmarks/loading.py --fsdp=1 --devices=1 --dtype=bfloat16

Weights are drawn in a process of their own. Printed: bytes of the parameters, by how much the peak
of the process's resident memory (VmHWM) grew while they were loaded, the ratio of the two, and
seconds. What the devices hold is part of that memory, so the ratio is at least 1.
"""

import argparse
import json
import multiprocessing
import pathlib
import re
import tempfile
import time


def main():
  raw = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
  for name, default in (("layers", 24), ("width", 1024), ("devices", 8), ("fsdp", 8)):
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    for act in (make, load):
      process = multiprocessing.get_context("spawn").Process(target=act, args=(folder, args))
      process.start()
      process.join()
      if process.exitcode:
        raise SystemExit(process.exitcode)


def make(folder: str, args) -> None:
  """Writes a model with drawn weights."""
  import jax
  import numpy as np

  from jaxkd.labels import Vocabulary
  from jaxkd.models.huggingface import families, known, weights
  from jaxkd.models.huggingface import folder as huggingface

  sizes = dict(hidden_size=args.width, num_hidden_layers=args.layers)
  sizes["intermediate_size"] = 4 * args.width
  description = {"config": known.HUBERT_LARGE | sizes, "preprocessor": {}}
  config = families.model_config(description, folder)
  labels = Vocabulary(("<pad>", "|", *"abcdefghijklmnopqrstuvwxyz"), 0, "|")
  rng = np.random.default_rng(0)
  draw = lambda x: 0.02 * rng.standard_normal(x.shape, np.float32)
  params = jax.tree.map(draw, weights.structure(config, len(labels.symbols))[1])
  huggingface.save(pathlib.Path(folder), description, config, params, labels)


def load(folder: str, args) -> None:
  """Loads it and prints the figures."""
  import jax

  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", args.devices)
  from jaxkd.devices import mesh
  from jaxkd.teacher import sources

  devices = mesh.make_mesh(args.fsdp)
  found = sources.find(folder, pool=2, dtype=args.dtype)
  before, start = peak_bytes(), time.perf_counter()
  model = found.load(devices)
  jax.block_until_ready(model.params)
  seconds, grown = time.perf_counter() - start, peak_bytes() - before
  held = sum(x.nbytes for x in jax.tree.leaves(model.params))
  figures = {"parameters": model.parameter_count, "held": held, "peak": grown}
  print(json.dumps(figures | {"ratio": round(grown / held, 3), "seconds": round(seconds, 1)}))


def peak_bytes() -> int:
  """Most memory that this process has had at any time."""
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


if __name__ == "__main__":
  main()
