"""jaxkd search: the models of a finished run with lexicon and language model.

Searches greedily, by prefix beam, with a lexicon, and with a lexicon and a word language model.
What weighs the parts is tuned on dev and then fixed for test. Writes search.json,
hypotheses/<split>.<model>.search.jsonl and, with --lm=train, lm.arpa into the workdir, and prints
a table. What is found on other data than the run's own has that data's fingerprint in its files'
names, search-1a2b3c4d.json, and is in no report.
"""

import pathlib

from jaxkd import buckets, console, workdirs
from jaxkd.commands import line
from jaxkd.inference.search import lexicon as lexicon_lib
from jaxkd.inference.search.settings import KINDS, Settings


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  default = Settings()
  parser.in_buckets = ("--workdir", "--data")
  parser.epilog = """\
Lists have commas between their values, and every combination is tried on dev.

example:
  %(prog)s --workdir=runs/symmetric-demo \\\n    --lm=4gram.arpa.gz --lexicon=words.txt"""
  add = parser.add_argument
  told = "of a finished run; the results go there too"
  add("--workdir", metavar="DIR", type=line.finished_run, required=True, help=told)
  add("--model", choices=(*workdirs.MODELS, "both"), default="both", help="which")
  add(
    "--lm",
    metavar="FILE",
    default=default.lm,
    help="an ARPA file (.gz too); train: estimated from the training transcripts of the student "
    "or else of the teacher, kept as lm.arpa; none",
  )
  order = line.whole(2, 6)
  add("--order", type=order, default=default.order, help="of the model that is estimated, 2 to 6")
  add(
    "--lexicon",
    metavar="FILE",
    default=default.lexicon,
    help="a word a line (pronunciations behind it are not read: the run's labels say how words are "
    "spelled); default: the words of the language model",
  )
  add(
    "--data",
    default=default.data,
    help="decoded instead of the run's test data, into files of another name: a manifest or "
    "corpus:split",
  )
  tuned = parser.add_argument_group("tuned on dev, each a list")
  for name, told in {
    "lm_weights": "of log10 p",
    "prior_scales": "of the model's log prior, which is subtracted",
    "word_scores": "added for every word",
  }.items():
    shown = ",".join(f"{x:g}" for x in getattr(default, name))
    tuned.add_argument(f"--{name}", metavar="LIST", type=_weights, default=shown, help=told)
  with_lexicon = parser.add_argument_group("the search with a lexicon, and without")
  whole, search = line.whole(1), default.search
  for name, kind, value, told in (
    ("beam", whole, search.beam, "hypotheses that are kept"),
    ("token_beam", whole, search.token_beam, "classes that are tried in each frame"),
    ("threshold", line.number(0), search.threshold, "below the best score, where others are left"),
    ("prefix_beam", whole, default.prefix_beam, "prefixes that are kept without a lexicon"),
  ):
    with_lexicon.add_argument(f"--{name}", metavar="N", type=kind, default=f"{value:g}", help=told)


_weights = line.several(line.number(-1e3, 1e3))


def run(args) -> int:
  """Searches and prints the table; returns the exit status."""
  names = ("lm", "order", "lexicon", "data", "prefix_beam")
  names += ("lm_weights", "prior_scales", "word_scores")
  settings = Settings(
    models=workdirs.MODELS if args.model == "both" else (args.model,),
    search=lexicon_lib.Options(args.beam, args.token_beam, args.threshold),
    **{name: getattr(args, name) for name in names},
  )
  from jaxkd.inference.search import tuned
  from jaxkd.training.workdir import check_usable

  folder = buckets.output(args.workdir)
  check_usable(folder)  # before the work whose results are written there
  show(*tuned.search(folder, settings))
  return 0


def show(found: dict, path: pathlib.Path) -> None:
  """Prints the table of a search.json in a workdir on standard output."""
  from rich.table import Table

  table = Table(title=f"{buckets.name(path.parent)} · search", title_justify="left")
  for heading in ("", "search", "dev WER %", "test WER %", "test CER %", "RTF"):
    table.add_column(heading, justify="left" if heading in ("", "search") else "right")
  blocks = {model: found[model] for model in workdirs.MODELS if model in found}
  for model, block in blocks.items():
    for kind in (k for k in KINDS if k in block):
      row, speed = block[kind], block["rtf"][KINDS[kind].timed]
      rates = [row.get(split, {}).get(rate) for split, rate in _COLUMNS]
      table.add_row(model, KINDS[kind].title, *map(console.percent, rates), f"{speed:.4f}")
  console.out.print(table)
  facts = [_tuned(model, block) for model, block in blocks.items() if "lexicon_lm" in block]
  facts += [
    f"{model}: real-time factor of the acoustic model {block['rtf']['acoustic']:.4f}"
    for model, block in blocks.items()
  ]
  for fact in [*facts, f"results: {buckets.name(path)}"]:
    console.out.print(fact, highlight=False, markup=False, soft_wrap=True)


_COLUMNS = (("dev", "wer"), ("test", "wer"), ("test", "cer"))


def _tuned(model: str, block: dict) -> str:
  row = block["lexicon_lm"]
  return (
    f"{model}: LM weight {row['lm_weight']:g}, prior scale {row['prior_scale']:g}, "
    f"word score {row['word_score']:g} of {len(block['grid'])} tried on dev"
  )
