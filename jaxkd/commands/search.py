"""jaxkd search: the models of a finished run with lexicon and language model.

Searches greedily, by prefix beam, with a lexicon, and with a lexicon and a word language model.
What weighs the parts is tuned on dev and then fixed for test. Writes search.json,
hypotheses/<split>.<model>.search.jsonl and, with --lm=train, lm.arpa into the workdir, and prints
a table. What is found on other data than the run's own has that data's fingerprint in its files'
names, search-1a2b3c4d.json, and is in no report.
"""

import dataclasses
import itertools
import logging
import pathlib
import time

import numpy as np

from jaxkd import buckets, console, files, workdirs
from jaxkd.commands import line
from jaxkd.errors import UserError
from jaxkd.inference.search import lexicon as lexicon_lib
from jaxkd.inference.search import ngram
from jaxkd.labels import Vocabulary
from jaxkd.labels.text import normalise

log = logging.getLogger(__name__)
MODELS = ("student", "teacher")
_NBEST = 10


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the command line says, and what is done where it says nothing."""

  models: tuple[str, ...] = MODELS
  lm: str = "train"
  order: int = 4
  lexicon: str = ""
  data: str = ""
  prefix_beam: int = 16
  search: lexicon_lib.Options = lexicon_lib.Options()
  lm_weights: tuple[float, ...] = (0.4, 0.8, 1.2, 1.6, 2.0)
  prior_scales: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7)
  word_scores: tuple[float, ...] = (0.0,)


@dataclasses.dataclass(frozen=True)
class Tools:
  """What words there are; without a lexicon there is no search with one.

  Attributes:
    vocabulary: of the models.
    words: of the lexicon, or None.
    lm: the language model, or None.
  """

  vocabulary: Vocabulary
  words: lexicon_lib.Spellings | None
  lm: lexicon_lib.LanguageModel | None


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
  add("--model", choices=(*MODELS, "both"), default="both", help="which")
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
    models=MODELS if args.model == "both" else (args.model,),
    search=lexicon_lib.Options(args.beam, args.token_beam, args.threshold),
    **{name: getattr(args, name) for name in names},
  )
  show(*search(buckets.output(args.workdir), settings))
  return 0


def search(folder: pathlib.Path, settings: Settings) -> tuple[dict, pathlib.Path]:
  """Searches with the models of a workdir; returns what it writes, and the path of that.

  Args:
    folder: workdir of a finished run.
    settings: what to do.

  Raises:
    UserError: the run is not finished; data, lexicon or language model are not there or do not
      parse; nothing to tune on.
  """
  from jaxkd.inference.finished import FinishedRun
  from jaxkd.training.workdir import check_usable

  check_usable(folder)  # before the work whose results are written there
  opened = FinishedRun(folder)
  models, splits = opened.models(settings.models), opened.splits(settings.data)
  _check_tuning(settings, splits)
  tools = make_tools(settings, opened, folder)
  other = settings.data not in ("", opened.config.data.test)
  mark = f"-{splits['test'].fingerprint()[:8]}" if other else ""
  found = {"data": {split: source.name for split, source in splits.items()}}
  found |= facts(tools, settings, splits)
  for name in models:
    block, rows = _search_model(name, opened, splits, tools, settings)
    found[name] = block
    for split, hypotheses in rows.items():
      files.write_jsonl(folder / "hypotheses" / f"{split}.{name}.search{mark}.jsonl", hypotheses)
  path = folder / workdirs.SEARCHED
  path = path.with_stem(path.stem + mark)
  files.write_json(path, found)
  return found, path


def _check_tuning(settings: Settings, splits: dict) -> None:
  grid = (settings.lm_weights, settings.prior_scales, settings.word_scores)
  dev = splits.get("dev")
  transcribed = dev is not None and any(text is not None for text in dev.texts)
  asked = settings.lm != "none" or settings.lexicon
  if asked and not transcribed and any(len(values) > 1 for values in grid):
    raise UserError(
      "nothing to tune on: the run has no transcribed config.data.dev; give one value each for "
      "--lm_weights, --prior_scales and --word_scores"
    )


def make_tools(settings: Settings, opened, folder: pathlib.Path) -> Tools:
  """Language model and lexicon; says what the one lacks of the other."""
  lm = None
  if settings.lm == "train":
    texts, name = opened.transcripts()
    path = folder / "lm.arpa"
    ngram.write_arpa(ngram.estimate(map(normalise, texts), settings.order), path)
    log.info("%s: a model of order %d of the transcripts of %s", path, settings.order, name)
    lm = lexicon_lib.open_lm(path)
  elif settings.lm != "none":
    lm = lexicon_lib.open_lm(pathlib.Path(settings.lm).expanduser())
  vocabulary = opened.vocabulary
  if settings.lexicon:
    words = lexicon_lib.read_words(pathlib.Path(settings.lexicon).expanduser())
  elif lm is None:
    return Tools(vocabulary, None, None)
  else:
    words = lm.words
  return Tools(vocabulary, lexicon_lib.spell(words, vocabulary), lm)


def facts(tools: Tools, settings: Settings, splits: dict) -> dict:
  """The blocks "lm" and "lexicon" of search.json, whose gaps are said."""
  lm, words = tools.lm, tools.words
  found = {"lm": None, "lexicon": None}
  if lm:
    found["lm"] = {
      "name": settings.lm if settings.lm == "train" else lm.path.name,
      "order": lm.order,
      "words": len(lm.words),
      "file": lm.path.name if settings.lm == "train" else str(lm.path),
    }
  if not words:
    return found
  block = {"words": len(words.words), "cannot_be_spelled": len(words.missing)}
  if words.missing:
    _say("words of the lexicon that the model's classes cannot spell", words.missing)
  if lm:
    missing = [word for word in lm.words if word not in words.words]
    unknown = [word for word in words.words if word not in lm.words]
    block |= {"lm_words_missing": len(missing), "not_in_lm": len(unknown)}
    if missing:
      _say("words of the language model that the lexicon lacks", missing)
    if unknown:
      _say("words of the lexicon that the language model lacks", unknown)
  for split, source in splits.items():
    spoken = [w for text in source.texts if text is not None for w in normalise(text).split()]
    outside = [w for w in spoken if w not in words.words]
    block[f"oov_rate_{split}"] = round(len(outside) / len(spoken), 6) if spoken else None
    if outside:
      _say(f"of {len(spoken)} words spoken in {split} the lexicon lacks", outside)
  return found | {"lexicon": block}


def _say(what: str, words) -> None:
  few = list(dict.fromkeys(words))
  more = ", …" if len(few) > 5 else ""
  log.warning("%s: %d (%s%s)", what, len(words), ", ".join(few[:5]), more)


def _search_model(
  name: str, opened, sources: dict, tools: Tools, settings: Settings
) -> tuple[dict, dict]:
  """A model's block of search.json, and split → rows of hypotheses with N-best lists."""
  splits = _heard(name, opened, sources)
  timed = splits.get("test", splits.get("dev"))
  block = {"rtf": {"acoustic": round(timed.compute_seconds / timed.audio_seconds, 6)}}
  searchers = {
    "greedy": (lambda found: found.greedy(tools.vocabulary), {}),
    "prefix_beam": (
      lambda found: found.prefix_beam(tools.vocabulary, settings.prefix_beam, _NBEST),
      {"beam": settings.prefix_beam},
    ),
  }
  grid = []
  for kind, lm in [("lexicon", None), ("lexicon_lm", tools.lm)] if tools.words else []:
    if kind == "lexicon_lm" and lm is None:
      continue
    search = lexicon_lib.LexiconSearch(tools.words, tools.vocabulary, lm)
    prior = np.zeros(len(tools.vocabulary.symbols))
    if any(settings.prior_scales):
      prior = opened.log_prior(name)
    options, rows = _tune(search, prior, splits.get("dev"), settings, kind, name)
    grid += rows
    shown = dataclasses.asdict(options)
    searchers[kind] = _with_lexicon(search, prior, options, name), shown
  lists = {}
  for kind, (searcher, shown) in searchers.items():
    block[kind] = dict(shown)
    for split, found in splits.items():
      searched = searcher(found)
      lists[split] = searched.nbests
      block[kind][split] = found.error_rates([nbest[0][0] for nbest in searched.nbests])
      if found is timed:
        speed = round(searched.seconds / found.audio_seconds, 6)
        block["rtf"]["search" if kind == "lexicon_lm" else kind] = speed
  rows = {split: splits[split].rows(nbests) for split, nbests in lists.items()}
  return block | {"grid": grid}, rows


def _heard(name: str, opened, sources: dict) -> dict:
  """Split → what a model says of its frames; the splits share programs."""
  from jaxkd.inference.frames import evaluation_shapes
  from jaxkd.inference.search.split import hear

  model = opened.models((name,))[name]
  durations = np.concatenate([source.durations for source in sources.values()])
  shapes = evaluation_shapes(durations, opened.devices, model.frame_samples)
  return {
    split: hear(model, source, opened.devices, shapes=shapes, description=f"{name}: {split}")
    for split, source in sources.items()
  }


def _with_lexicon(search, prior, options, name: str):
  """SplitFrames → Searched."""
  from jaxkd.inference.search.split import Searched

  def searcher(found):
    nbests = []
    with console.progress(f"searching with the {name}", len(found.log_probs)) as update:
      started = time.perf_counter()
      for log_probs in found.log_probs:
        nbests.append([(h.text, h.score) for h in search(log_probs, prior, options, _NBEST)])
        update()
      return Searched(nbests, time.perf_counter() - started)

  return searcher


def _tune(search, prior, dev, settings: Settings, kind: str, name: str):
  """The best options by WER on dev (ties: by CER, then the first), and the rows of the grid."""
  weights = settings.lm_weights if kind == "lexicon_lm" else (0.0,)
  points = [
    dataclasses.replace(settings.search, lm_weight=w, prior_scale=p, word_score=s)
    for w, p, s in itertools.product(weights, settings.prior_scales, settings.word_scores)
  ]
  if dev is None or not dev.transcribed:
    return points[0], []
  rows = []
  with console.progress(f"tuning the {name}", len(points) * len(dev.log_probs)) as update:
    for options in points:
      texts = []
      for log_probs in dev.log_probs:
        texts.append(search(log_probs, prior, options)[0].text)
        update()
      rates = dev.error_rates(texts)
      tuned = {k: getattr(options, k) for k in ("lm_weight", "prior_scale", "word_score")}
      rows.append({"search": kind} | tuned | {"dev_wer": rates["wer"], "dev_cer": rates["cer"]})
  best = min(range(len(rows)), key=lambda i: (rows[i]["dev_wer"], rows[i]["dev_cer"]))
  return points[best], rows


def show(found: dict, path: pathlib.Path) -> None:
  """Prints the table of a search.json in a workdir on standard output."""
  from rich.table import Table

  table = Table(title=f"{buckets.name(path.parent)} · search", title_justify="left")
  for heading in ("", "search", "dev WER %", "test WER %", "test CER %", "RTF"):
    table.add_column(heading, justify="left" if heading in ("", "search") else "right")
  names = {
    "greedy": "greedy",
    "prefix_beam": "prefix beam",
    "lexicon": "lexicon",
    "lexicon_lm": "lexicon + LM",
  }
  for model in (m for m in MODELS if m in found):
    block = found[model]
    for kind in (k for k in names if k in block):
      row, speed = block[kind], block["rtf"]["search" if kind == "lexicon_lm" else kind]
      rates = [row.get(split, {}).get(rate) for split, rate in _COLUMNS]
      table.add_row(model, names[kind], *map(console.percent, rates), f"{speed:.4f}")
  console.out.print(table)
  facts = [_tuned(model, found[model]) for model in MODELS if "lexicon_lm" in found.get(model, {})]
  facts += [
    f"{model}: real-time factor of the acoustic model {found[model]['rtf']['acoustic']:.4f}"
    for model in MODELS
    if model in found
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
