"""jaxkd VERB …, and python -m jaxkd VERB …"""

import sys

from jaxkd.commands.guard import guard


def main() -> int:
  """Runs the command line that this process was started with; returns the exit status."""
  return guard(_run)


def _run() -> int:
  from jaxkd.commands import line

  return line.main(sys.argv[1:], log=True)


if __name__ == "__main__":
  sys.exit(main())
