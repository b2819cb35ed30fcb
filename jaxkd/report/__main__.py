"""python -m jaxkd.report runs/* [--out=report] [--baseline=NAME] [--utterance=ID]"""

import pathlib
import sys

from absl import flags

from jaxkd import console, report
from jaxkd.commands import cli
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
  page = report.write(
    [pathlib.Path(f) for f in folders],
    pathlib.Path(values.out),
    baseline=values.baseline,
    utterance=values.utterance,
  )
  console.out.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)
  return 0


if __name__ == "__main__":
  sys.exit(cli.guard(main))
