"""python -m jaxkd.main --config=configs/VARIANT.py[:RECIPE] [--workdir=DIR] [--config.a.b=VALUE]"""

import sys

from jaxkd.commands import cli


def main(argv: list[str]) -> int:
  """Trains what the config says and prints the table; returns the exit status."""
  config, folder = cli.parse(argv)
  from jaxkd.devices import mesh
  from jaxkd.training import loop as train
  from jaxkd.training import results

  mesh.start_processes()
  found = train.run(config, folder)
  if mesh.is_first():
    results.show(found, folder)
  return 0


if __name__ == "__main__":
  sys.exit(cli.guard(main))
