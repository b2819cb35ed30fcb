"""python -m jaxkd.evaluate --workdir=DIR --data=MANIFEST

Evaluates the teacher and the final student of a finished run on any other data, and prints the
block of figures that results.json has for a split as one JSON object on standard output.
"""

import json
import pathlib
import sys

from absl import flags

from jaxkd.commands import cli
from jaxkd.errors import UserError

HELP = """\
usage: python -m jaxkd.evaluate --workdir=DIR --data=DATA

Evaluates teacher and student of a finished run; prints one JSON object on standard output.

  DIR   workdir of a finished run
  DATA  a manifest (JSON lines), a folder of audio (no error rates then), or corpus:split
"""


def main(argv: list[str]) -> int:
  """Prints the figures; returns the exit status."""
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  flags.DEFINE_string("data", None, "", flag_values=values)
  if any(a in ("--help", "-h") for a in argv[1:]) or len(argv) == 1:
    print(HELP, end="")
    return 0
  try:
    rest = values(argv)
  except flags.Error as error:
    raise UserError(" ".join(str(error).split())) from error
  if len(rest) > 1 or not values.workdir or not values.data:
    raise UserError("usage: python -m jaxkd.evaluate --workdir=DIR --data=MANIFEST")
  from jaxkd.devices import mesh

  mesh.start_processes()
  found = evaluate(pathlib.Path(values.workdir), values.data)
  if mesh.is_first():
    print(json.dumps(found))
  return 0


def evaluate(folder: pathlib.Path, data: str) -> dict:
  """A split's block of results.json for other data.

  Args:
    folder: workdir of a finished run.
    data: manifest, folder of audio, or corpus:split.

  Raises:
    UserError: the run is not finished, or the data is not there or broken.
  """
  from jaxkd.inference import scoring
  from jaxkd.inference.finished import FinishedRun
  from jaxkd.training import results

  run = FinishedRun(folder)
  models, source = run.models(), run.open(data)
  found = scoring.evaluate(
    models["student"],
    models.get("teacher"),
    source,
    run.devices,
    spikes=True,
    description="evaluating",
  )
  params = {name: model.parameter_count for name, model in models.items()}
  return results.split_figures(found, source, params)


if __name__ == "__main__":
  sys.exit(cli.guard(main))
