"""jaxkd evaluate: the figures of a finished run on other data.

Prints the block that results.json has for a split as one JSON object on standard output.
"""

import json
import pathlib

from jaxkd.commands import line


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.epilog = """\
Prints one JSON object on standard output: teacher and student with their
error rates.

example: %(prog)s --workdir=runs/symmetric-demo --data=other.jsonl"""
  parser.add_argument(
    "--workdir", metavar="DIR", type=line.finished_run, required=True, help="of a finished run"
  )
  parser.add_argument(
    "--data",
    required=True,
    help="a manifest (JSON lines), a folder of audio (no error rates then), or corpus:split",
  )


def run(args) -> int:
  """Prints the figures; returns the exit status."""
  from jaxkd.devices import mesh

  mesh.start_processes()
  found = evaluate(args.workdir, args.data)
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
