"""Finished workdirs → one table with honest statistics, plots, Markdown, HTML and CSV.

`collect` reads folders, `tables` groups runs into rows and computes their figures, `command` says
how a row was made, `claims` judges what a grid was to find out, `plots` and `pictures` draw,
`render` writes.
"""

import contextlib
import difflib
import pathlib
from collections.abc import Sequence

from jaxkd import buckets, console, files
from jaxkd.errors import UserError


def write(
  folders: list[pathlib.Path],
  out: pathlib.Path,
  *,
  baseline: str | None = None,
  utterance: str | None = None,
  claims: Sequence[dict] = (),
) -> pathlib.Path:
  """Reads workdirs and writes report.md, report.html, report.csv and plots; returns the HTML file.

  Args:
    folders: workdirs, finished or not; anything else is listed as such.
    out: made if absent; what an earlier report left there is replaced. One process at a time
      writes there, and others wait.
    baseline: name of a row or workdir; None for CTC alone, else standard distillation.
    utterance: of the test set, whose posteriors are drawn; None for the first.
    claims: of a grid, to be judged (`claims.Claim`).

  Raises:
    UserError: no finished run, test sets that differ, no such baseline or utterance, no
      matplotlib, or a folder that cannot be written.
  """
  from jaxkd.report import claims as claims_lib
  from jaxkd.report import collect, document, plots, tables

  plots.library()
  with console.progress("reading", len(folders)) as update:
    distinct = {folder.resolve(): folder for folder in reversed(folders)}
    read = [collect.read(f) for f in reversed(distinct.values()) if update() is None]
  runs = [found for found in read if isinstance(found, collect.Run)]
  left_out = [found for found in read if isinstance(found, collect.LeftOut)]
  if not runs:
    reasons = "; ".join(f"{f.folder}: {f.reason}" for f in left_out[:3])
    raise UserError(f"no finished run among {len(read)} folders ({reasons})")
  collect.check_same_test(runs)
  rows = tables.make_rows(runs)
  chosen = tables.find_baseline(rows, baseline)
  heard = _utterance(runs, utterance)
  with _alone(out):
    judged = claims_lib.judge(claims, rows)
    return document.write(tables.compare(rows, chosen), left_out, chosen, heard, judged, out)


@contextlib.contextmanager
def _alone(out: pathlib.Path):
  """While one process writes a report into a folder, which is made, others wait."""
  with contextlib.ExitStack() as stack:
    try:
      out.mkdir(parents=True, exist_ok=True)
      (out / "report.csv").touch()
      waits = f"waiting for another process that writes {buckets.name(out)}"
      stack.enter_context(files.locked(out / ".lock", waits=waits))
    except OSError as error:
      raise UserError(f"--out={out} cannot be written: {error.strerror}") from error
    yield


def _utterance(runs, wanted: str | None) -> str | None:
  """Id of the utterance that is drawn: of the test set, or of dev where no run has one."""
  keys = (("test", "student"), ("dev", "student"))
  split, rows = next(
    ((k[0], run.hypotheses[k]) for k in keys for run in runs if k in run.hypotheses), ("test", {})
  )
  if wanted is None:
    return next(iter(rows), None)
  if wanted not in rows:
    near = difflib.get_close_matches(wanted, rows, n=3, cutoff=0.0)
    raise UserError(
      f"--utterance={wanted} is not in the {split} set; some that are: {', '.join(near)}"
    )
  return wanted
