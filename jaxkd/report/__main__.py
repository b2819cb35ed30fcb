"""python -m jaxkd.report runs/* [--out=report] [--baseline=NAME] [--utterance=ID]"""

import difflib
import pathlib
import sys

from absl import flags

from jaxkd import cli, console
from jaxkd.errors import UserError

HELP = """\
usage: python -m jaxkd.report WORKDIR ... [--out=report] [--baseline=NAME] [--utterance=ID]

Compares finished runs of one test set: report.md, report.html (one file, for a phone or paper),
report.csv and plots. Runs that differ only in their seed share a row; folders that hold no
finished run are listed with the reason. Needs pip install 'jaxkd[report]'.

  WORKDIR      workdirs of students, and of teachers if they are to be named: runs/*
  --out        the folder it is written to (default report)
  --baseline   the row that p values compare with: a variant or the name of a workdir (default: CTC
               alone if it is there, else standard distillation)
  --utterance  id of the test utterance whose posteriors are drawn (default: the first)
"""


def main(argv: list[str]) -> int:
  """Writes the report; returns the exit status."""
  values = flags.FlagValues()
  flags.DEFINE_string("out", "report", "", flag_values=values)
  flags.DEFINE_string("baseline", None, "", flag_values=values)
  flags.DEFINE_string("utterance", None, "", flag_values=values)
  if any(a in ("--help", "-h") for a in argv[1:]) or len(argv) == 1:
    print(HELP, end="")
    return 0
  try:
    folders = values(argv)[1:]
  except flags.Error as error:
    raise UserError(" ".join(str(error).split())) from error
  if not folders:
    raise UserError("usage: python -m jaxkd.report WORKDIR ... [--out=report]")
  page = write(
    [pathlib.Path(f) for f in folders],
    pathlib.Path(values.out),
    baseline=values.baseline,
    utterance=values.utterance,
  )
  console.out.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)
  return 0


def write(
  folders: list[pathlib.Path],
  out: pathlib.Path,
  *,
  baseline: str | None = None,
  utterance: str | None = None,
) -> pathlib.Path:
  """Reads workdirs and writes report.md, report.html, report.csv and plots; returns the HTML file.

  Args:
    folders: workdirs, finished or not; anything else is listed as such.
    out: made if absent; what an earlier report left there is replaced.
    baseline: name of a row or workdir; None for CTC alone, else standard distillation.
    utterance: of the test set, whose posteriors are drawn; None for the first.

  Raises:
    UserError: no finished run, test sets that differ, no such baseline or utterance, no
      matplotlib, or a folder that cannot be written.
  """
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
  heard = _utterance(runs[0], utterance)
  try:
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.csv").touch()
  except OSError as error:
    raise UserError(f"--out={out} cannot be written: {error.strerror}") from error
  return document.write(tables.compare(rows, chosen), left_out, chosen, heard, out)


def _utterance(run, wanted: str | None) -> str | None:
  """Id of the utterance that is drawn."""
  rows = next(
    (run.hypotheses[s, "student"] for s in ("test", "dev") if (s, "student") in run.hypotheses), {}
  )
  if wanted is None:
    return next(iter(rows), None)
  if wanted not in rows:
    near = difflib.get_close_matches(wanted, rows, n=3, cutoff=0.0)
    raise UserError(
      f"--utterance={wanted} is not in the test set; some that are: {', '.join(near)}"
    )
  return wanted


if __name__ == "__main__":
  sys.exit(cli.guard(main))
