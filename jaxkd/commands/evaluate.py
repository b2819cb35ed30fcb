"""python -m jaxkd.evaluate --workdir=DIR --data=MANIFEST

Evaluates the teacher and the final student of a finished run on any other data, and prints the
block of figures that results.json has for a split as one JSON object on standard output.
"""

import json
import pathlib
import sys

from absl import flags

from jaxkd import console, files
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
  from jaxkd.data import plan
  from jaxkd.devices import mesh
  from jaxkd.inference import scoring
  from jaxkd.models import blueprint
  from jaxkd.teacher import parameter_count
  from jaxkd.training import assembly as build
  from jaxkd.training import results, step

  devices = mesh.make_mesh()
  config, student = blueprint.load_finished(folder, devices)
  found = files.read_json(folder / "results.json")
  beside = results.teacher_source(found, folder)
  teacher = build.load_teacher(config, beside, devices) if beside else None
  source = build.open_split(config, data)
  shapes = build.eval_shapes(source.durations, devices)
  planned = plan.evaluation_plan(source.durations, shapes)
  predict = step.make_eval_step(
    student.graphdef, teacher.graphdef if teacher else None, blank_id=student.blank_id, mesh=devices
  )
  with console.progress("evaluating", len(planned)) as update:
    result = scoring.evaluate(
      predict,
      student.params,
      teacher.params if teacher else None,
      source,
      planned,
      student.vocabulary,
      devices,
      spikes=True,
      on_batch=update,
    )
  models = {"student": student} | ({"teacher": teacher} if teacher else {})
  params = {name: parameter_count(model.params) for name, model in models.items()}
  return results.split_figures(result, source, params)


if __name__ == "__main__":
  sys.exit(cli.guard(main))
