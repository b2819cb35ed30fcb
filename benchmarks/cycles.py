"""Where the time of the student's update goes on TPU, by the compiler's cycles; without a TPU.

  python benchmarks/cycles.py                                  # compiles: minutes of a core
  python benchmarks/cycles.py --save=step.hlo                  # and keeps the program
  python benchmarks/cycles.py --read=step.hlo                  # of a program that was kept

Full size, rows of 15 s, as `jaxkd plan-tpu --utterance_seconds=15`. An operation of which the
compiler tells no cycles is named below the table.
"""

import argparse
import pathlib

from jaxkd.devices import chips, hlo

# Part of the update → what the calls of its operations are from; the first that fits is taken.
PARTS = {
  "student's layers": ("._run_blocks",),
  "log-mel features, SpecAugment": ("features.py", "augment.py"),
  "student's front-end": ("FrontEnd", "frontend.py", "conformer.py:ConformerCTC.encode"),
  "teacher's convolutions": ("waveform.py", "conv_features"),
  "teacher's layers": ("._run_layers",),
  "teacher's rest": ("wav2vec2.py",),
  "rest of the step": (".py",),
}


def part_of(rest, calls):
  """Which part an instruction is of."""
  found = next((p for p, of in PARTS.items() if any(o in c for o in of for c in calls)), None)
  in_loop = "while/body" in rest
  if found in (None, "rest of the step") and in_loop:
    found = "student's layers" if "jvp" in rest else "teacher's layers"
  if found == "student's layers":
    back = "transpose(jvp" in rest or "remat" in rest
    return f"student's layers, {'gradient' if back else 'forward'}"
  return found or "parameters cast or copied"


def compiled(args):
  """The text of the compiled step."""
  from jaxkd.config import overrides
  from jaxkd.devices import mesh, slices
  from jaxkd.training import ahead

  _, devices = slices.slice_of(args.topology)
  config, _ = overrides.parse(["", f"--config={overrides.find_variant('symmetric')}:{args.recipe}"])
  step = ahead.steps_of(config)[-1]
  where = mesh.make_mesh(config.mesh.fsdp, devices)
  traced, _ = ahead.trace(step, ahead.shape_of(step, args.seconds), where)
  return traced.lower().compile().as_text()


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--recipe", default="librispeech")
  parser.add_argument("--topology", default="v5e:2x4")
  parser.add_argument("--seconds", type=float, default=15.0, help="of a row")
  parser.add_argument("--save", type=pathlib.Path)
  parser.add_argument("--read", type=pathlib.Path)
  args = parser.parse_args()
  text = args.read.read_text() if args.read else compiled(args)
  if args.save:
    args.save.write_text(text)
  hertz = chips.TPUS[args.topology.partition(":")[0]].clock_hz
  parts = hlo.cycles_by(text, part_of)
  for name in sorted(parts, key=parts.get, reverse=True):
    print(f"{1000 * parts[name] / hertz:8.2f} ms  {name}")
  cost = hlo.cost(text)
  print(f"{1000 * cost.cycles / hertz:8.2f} ms  in all, and of no known cycles:")
  for name in sorted(cost.unknown, key=cost.unknown.get, reverse=True):
    print(f"{cost.unknown[name] / 1e6:8.2f} MB  {name}")


if __name__ == "__main__":
  main()
