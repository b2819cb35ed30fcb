"""The models of a finished run with lexicon and language model, tuned on dev, fixed for test."""

import dataclasses
import itertools
import logging
import pathlib
import time

import numpy as np

from jaxkd import console, files, workdirs
from jaxkd.errors import UserError
from jaxkd.inference.finished import FinishedRun
from jaxkd.inference.frames import evaluation_shapes
from jaxkd.inference.search import lexicon as lexicon_lib
from jaxkd.inference.search import ngram
from jaxkd.inference.search.settings import KINDS, Settings
from jaxkd.inference.search.split import Searched, hear
from jaxkd.labels import Vocabulary
from jaxkd.labels.text import normalise

log = logging.getLogger(__name__)
_NBEST = 10


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


def search(folder: pathlib.Path, settings: Settings) -> tuple[dict, pathlib.Path]:
  """Searches with the models of a run; returns what search.json holds, and its path.

  The workdir gets hypotheses/<split>.<model>.search.jsonl and search.json, and lm.arpa where the
  language model is estimated. What is found on other data than the run's own has that data's
  fingerprint in its files' names, and is in no report.

  Args:
    folder: workdir of a finished run.
    settings: what to search with.

  Raises:
    UserError: the run is not finished; data, lexicon or language model are not there or do not
      parse; nothing to tune on.
  """
  opened = FinishedRun(folder)
  models, splits = opened.models(settings.models), opened.splits(settings.data)
  _check_tuning(settings, splits)
  tools = _make_tools(settings, opened, folder)
  other = settings.data not in ("", opened.config.data.test)
  mark = f"-{splits['test'].fingerprint()[:8]}" if other else ""
  found = {"data": {split: source.name for split, source in splits.items()}}
  found |= _facts(tools, settings, splits)
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


def _make_tools(settings: Settings, opened, folder: pathlib.Path) -> Tools:
  """Language model and lexicon; says what the one lacks of the other."""
  lm = None
  if settings.lm == "train":
    texts, name = opened.transcripts()
    path = folder / "lm.arpa"
    ngram.write_arpa(ngram.estimate(map(normalise, texts), settings.order), path)
    log.info("%s: a model of order %d of the transcripts of %s", path, settings.order, name)
    lm = lexicon_lib.open_lm(path)
  elif settings.lm != "none":
    lm = lexicon_lib.open_lm(files.expanded(settings.lm))
  vocabulary = opened.vocabulary
  if settings.lexicon:
    words = lexicon_lib.read_words(files.expanded(settings.lexicon))
  elif lm is None:
    return Tools(vocabulary, None, None)
  else:
    words = lm.words
  name = f"--lexicon={settings.lexicon}" if settings.lexicon else str(lm.path)
  return Tools(vocabulary, lexicon_lib.spell(words, vocabulary, name), lm)


def _facts(tools: Tools, settings: Settings, splits: dict) -> dict:
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
  missing, unknown = lexicon_lib.say_missing(words, lm)
  if lm:
    block |= {"lm_words_missing": len(missing), "not_in_lm": len(unknown)}
  for split, source in splits.items():
    spoken = [w for text in source.texts if text is not None for w in normalise(text).split()]
    outside = [w for w in spoken if w not in words.words]
    block[f"oov_rate_{split}"] = round(len(outside) / len(spoken), 6) if spoken else None
    if outside:
      lexicon_lib.say(f"of {len(spoken)} words spoken in {split} the lexicon lacks", outside)
  return found | {"lexicon": block}


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
        block["rtf"][KINDS[kind].timed] = speed
  rows = {split: splits[split].rows(nbests) for split, nbests in lists.items()}
  return block | {"grid": grid}, rows


def _heard(name: str, opened, sources: dict) -> dict:
  """Split → what a model says of its frames; the splits share programs."""
  model = opened.models((name,))[name]
  durations = np.concatenate([source.durations for source in sources.values()])
  shapes = evaluation_shapes(durations, opened.devices, model.frame_samples)
  return {
    split: hear(model, source, opened.devices, shapes=shapes, description=f"{name}: {split}")
    for split, source in sources.items()
  }


def _with_lexicon(search, prior, options, name: str):
  """SplitFrames → Searched."""

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
