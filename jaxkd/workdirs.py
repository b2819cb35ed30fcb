"""What the folder of a run holds by name, and how far the run in it has come."""

import pathlib

from jaxkd import buckets
from jaxkd.errors import UserError

CONFIG = "config.json"  # complete, with the schema's number
DATA = "data.json"  # split, or "teacher" → name, fingerprint and more
LABELS = "labels.json"  # the model's classes
METRICS = "metrics.jsonl"  # what the run computes, by step
RESULTS = "results.json"  # written last
SEARCHED = "search.json"  # of jaxkd search, about the final model
MODELS = ("student", "teacher")  # which figures, hypotheses and searches are of


def is_finished(folder: pathlib.Path) -> bool:
  """Whether a folder is the workdir of a run that has come to its end, for however many epochs."""
  return (folder / RESULTS).exists()


def check_finished(folder: pathlib.Path) -> None:
  """Refuses what is not the workdir of a finished run.

  Raises:
    UserError: it is none.
  """
  if not is_finished(folder):
    raise UserError(
      f"{buckets.name(folder)} is not the workdir of a finished run (no {RESULTS}): run it to its "
      "end first"
    )


def saved_steps(folder: pathlib.Path) -> list[int]:
  """The steps that a run can be resumed from, in ascending order; none where nothing is saved."""
  # A save that is under way has a name of another kind.
  names = [path.name for path in folder.glob("checkpoints/last/*")]
  return sorted(int(name) for name in names if name.isdigit())
