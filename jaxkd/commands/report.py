"""jaxkd report: finished runs of one test set side by side."""

import itertools
import pathlib

from jaxkd import buckets, console, report


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.in_buckets = ("", "--out")
  parser.epilog = """\
Writes report.md, report.html (one file, for a phone or paper), report.csv and
plots. Runs that differ only in their seed share a row; folders that hold no
finished run are listed with the reason. Needs pip install 'jaxkd[report]'.

example: %(prog)s runs/*"""
  parser.add_argument(
    "folders",
    metavar="WORKDIR",
    nargs="+",
    help="workdirs of students, and of teachers if they are to be named",
  )
  parser.add_argument("--out", metavar="DIR", default="report", help="where it is written to")
  parser.add_argument(
    "--baseline",
    metavar="NAME",
    help="the row that p values compare with: a variant or the name of a workdir "
    "(default CTC alone if it is there, else standard distillation)",
  )
  parser.add_argument(
    "--utterance",
    metavar="ID",
    help="of the test utterance whose posteriors are drawn (default the first)",
  )


def run(args) -> int:
  """Writes the report; returns the exit status."""
  out, folders = buckets.output(args.out), list(itertools.chain(*map(_matching, args.folders)))
  page = report.write(folders, out, baseline=args.baseline, utterance=args.utterance)
  console.out.print(f"report: {buckets.name(page)}", highlight=False, markup=False, soft_wrap=True)
  return 0


def _matching(given: str) -> list[pathlib.Path]:
  """The folder of a name; all those beside each other for s3://bucket/runs/*, as a shell has it."""
  if not buckets.is_url(given):
    return [pathlib.Path(given)]
  if not given.endswith("/*"):
    return [buckets.here(given)]
  return [buckets.fetch(path) for path in buckets.folders(buckets.place(given[:-2]), "")]
