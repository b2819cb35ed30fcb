"""jaxkd evaluate: the figures of a finished run on other data.

Prints the block that results.json has for a split as one JSON object on standard output.
"""

import dataclasses
import json
import logging
import pathlib

from jaxkd import workdirs
from jaxkd.commands import line

log = logging.getLogger(__name__)


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.in_buckets = ("--workdir", "--data")
  parser.epilog = """\
Prints one JSON object on standard output: teacher and student with their
error rates.

example:
  %(prog)s --workdir=runs/symmetric-demo --data=other.jsonl"""
  parser.add_argument(
    "--workdir", metavar="DIR", type=line.finished_run, required=True, help="of a finished run"
  )
  parser.add_argument(
    "--data",
    required=True,
    help="a manifest (JSON lines), a folder of audio or a recording (no error rates then), or "
    "corpus:split; several with commas between",
  )
  parser.add_argument(
    "--model",
    choices=("student", "both"),
    default="both",
    help="both compares the student with its teacher, where it has one",
  )
  parser.add_argument(
    "--stream",
    metavar="MS",
    type=line.milliseconds,
    help="the student hears chunks of so many milliseconds, such as 320ms",
  )


def run(args) -> int:
  """Prints the figures; returns the exit status."""
  from jaxkd.devices import mesh

  mesh.start_processes()
  found = evaluate(args.workdir, args.data, args.model, args.stream)
  if mesh.is_first():
    print(json.dumps(found))
  return 0


def evaluate(
  folder: pathlib.Path, data: str, model: str = "both", stream: int | None = None
) -> dict:
  """A split's block of results.json for other data.

  Args:
    folder: workdir of a finished run.
    data: manifest, folder of audio, recording, or corpus:split.
    model: "student", or "both" for the teacher too.
    stream: milliseconds of the chunks that the student hears; None for whole recordings.

  Raises:
    UserError: the run is not finished, or the data is not there or broken.
  """
  from jaxkd.data.sources import left_out
  from jaxkd.inference import live, scoring
  from jaxkd.inference.finished import FinishedRun
  from jaxkd.training import results

  run = FinishedRun(folder)
  models = run.models(("student",) if model == "student" else workdirs.MODELS)
  if stream is not None:
    chunks = live.chunks(models["student"], stream, str(folder))
    models = models | {"student": dataclasses.replace(models["student"], chunks=chunks)}
  source = run.open(data)
  found = scoring.evaluate(
    models["student"],
    models.get("teacher"),
    source,
    run.devices,
    spikes=True,
    description="evaluating",
  )
  if found.broken:
    log.warning("%s", left_out(data, found.broken, len(source)))
  params = {name: model.parameter_count for name, model in models.items()}
  return results.split_figures(found, source, params)
