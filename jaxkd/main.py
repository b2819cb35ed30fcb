"""python -m jaxkd.main --config=configs/VARIANT.py[:RECIPE] [--workdir=DIR] [--config.a.b=VALUE]

The same as `jaxkd train`.
"""

import sys

from jaxkd.commands.guard import guard


def main(argv: list[str], *, log: bool = False) -> int:
  """Trains what the config says and prints the table; returns the exit status.

  Args:
    argv: as `sys.argv`.
    log: whether this process is the command's own, whose log goes to the user.
  """
  from jaxkd.commands import line

  return line.run("train", argv[1:], "python -m jaxkd.main", log=log)


if __name__ == "__main__":
  sys.exit(guard(lambda: main(sys.argv, log=True)))
