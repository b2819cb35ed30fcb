"""Lexicon and word n-gram beam search by flashlight-text (extra `decode`), as in the paper.

What a hypothesis is worth: the log probabilities of its best path, less prior_scale times the
classes' log prior, plus lm_weight times log10 of the language model, plus word_score a word.

flashlight's decoder knows CTC's rules inside a word only. What it leaves to its caller:

* Words are ended by a class. Where they are spelled with the space behind them, as they are inside
  a sentence, one artificial frame that is surely a space ends the last one. Such a search is exact.
* The last class of a spelling gets one frame, unless it is the space. A word that does not end in
  one is therefore spelled in three ways: as it is, with a blank behind it, and with a double of its
  last class before that (behind it, where it is the only one). A double is an artificial class,
  open only where in the next frame (the one before) the true class is at least as probable as the
  blank: so a repeat costs nothing, and what has a blank between is another word.
* No blank is asked for between equal classes at the end of a spelling; such a word is spelled only
  with a blank behind it, where both classes are inner ones.

What is left: a word of one class that lasts three frames may be heard as two, at the same score but
for the language model; and words that end in two equal classes need the blank behind them.
"""

import collections
import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np

from jaxkd.errors import UserError
from jaxkd.inference.search import ngram
from jaxkd.inference.search.heard import Heard
from jaxkd.labels import CannotSpell, UnknownSymbol, Vocabulary
from jaxkd.labels import lexicon as labels_lexicon
from jaxkd.labels.text import normalise

log = logging.getLogger(__name__)

_NEVER = -1e4  # log p of what is not to be; not -inf, which would spread as NaN
_ORDERS = (2, 6)  # of models that flashlight's KenLM reads
_HOMOPHONES = 6  # words with one spelling that flashlight keeps
_SHOWN = 5  # words in a message


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of a search; the defaults are the paper's.

  Attributes:
    beam: hypotheses that are kept.
    token_beam: best classes of a frame that may be entered.
    threshold: hypotheses that are so much worse than the best are dropped.
    lm_weight: of the language model's log10 p.
    word_score: added for every word.
    prior_scale: of the classes' log prior, which is subtracted.
  """

  beam: int = 1024
  token_beam: int = 12
  threshold: float = 14.0
  lm_weight: float = 0.0
  word_score: float = 0.0
  prior_scale: float = 0.0


@dataclasses.dataclass(frozen=True)
class Spellings:
  """Words as class sequences inside a sentence.

  Attributes:
    words: word → its spellings, one or more.
    missing: words that cannot be spelled.
  """

  words: dict[str, list[tuple[int, ...]]]
  missing: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """An ARPA file.

  Attributes:
    path: of the file.
    contents: of the file.
    words: normalised word → as it is written in the file, where it is likeliest.
  """

  path: pathlib.Path
  contents: ngram.Contents
  words: dict[str, str]

  @property
  def order(self) -> int:
    """Words of its longest n-grams."""
    return len(self.contents.sizes)


@dataclasses.dataclass(frozen=True)
class Hypothesis:
  """A sentence and its score (module docstring); higher is better.

  Attributes:
    text, score: of the sentence.
    heard: which spellings of its words were.
  """

  text: str
  score: float
  heard: Heard = Heard()


def spell(words: Iterable[str], labels: Vocabulary, name: str = "the lexicon") -> Spellings:
  """Spells words with the classes of a model.

  Args:
    words: in any order, repeats allowed.
    labels: the classes.
    name: of where the words are from, for errors.

  Raises:
    UserError: none of the words can be spelled.
  """
  spelled, missing = {}, []
  for word in dict.fromkeys(words):
    try:
      found = {tuple(map(int, ids)) for ids in labels.spellings(word)} if word.strip() else set()
    except UnknownSymbol:
      found = set()
    except CannotSpell as error:
      raise UserError(
        f"the words of {name} cannot be spelled exactly as the model's tokenizer would: "
        f"{error.reason}; without a lexicon it can be used, also with a prefix beam"
      ) from error
    if found := sorted(found - {()}):
      spelled[word] = found
    else:
      missing.append(word)
  if not spelled:
    few = f" ({_few(missing)})" if missing else ""
    raise UserError(
      f"{name} has no word that the classes can spell{few}: give words as the model's own "
      "transcripts have them"
    )
  return Spellings(spelled, tuple(missing))


def say_missing(spelled: Spellings, lm: LanguageModel | None) -> tuple[list[str], list[str]]:
  """What lexicon and language model lack, which is logged.

  Returns:
    Words of the language model that the lexicon lacks, and words of the lexicon that the language
    model lacks: these are <unk> there, and never heard where it has none.
  """
  if spelled.missing:
    say("words of the lexicon that the model's classes cannot spell", spelled.missing)
  if lm is None:
    return [], []
  missing = [word for word in lm.words if word not in spelled.words]
  unknown = [word for word in spelled.words if word not in lm.words]
  said = set(spelled.missing)
  if others := [word for word in missing if word not in said]:
    say("words of the language model that the lexicon lacks", others)
  if unknown:
    say("words of the lexicon that the language model lacks", unknown)
  return missing, unknown


def say(what: str, words: Sequence[str]) -> None:
  """Logs how many words there are of a kind, and the first of them."""
  log.warning("%s: %d (%s)", what, len(words), _few(words))


def _few(words: Iterable[str]) -> str:
  few = list(dict.fromkeys(words))
  return ", ".join(few[:_SHOWN]) + (", …" if len(few) > _SHOWN else "")


def read_words(path: pathlib.Path) -> list[str]:
  """Normalised words of a list of words, or of a lexicon as `labels.lexicon.read` reads it.

  The word is the first field of a line; lines that are empty or begin with # or ;;; are skipped.

  Raises:
    UserError: absent, not UTF-8, or without any word; spaces in a word before a tab.
  """
  words = {}
  for number, line in labels_lexicon.lines(path, name=f"--lexicon={path}"):
    try:
      words[labels_lexicon.word_of(line)[0]] = None
    except ValueError as error:
      raise UserError(f"{path}:{number}: {error}: {line.strip()[:60]!r}") from error
  if not words:
    raise UserError(f"--lexicon={path} holds no words")
  return list(words)


def open_lm(path: pathlib.Path) -> LanguageModel:
  """Checks an ARPA file. Of words that differ in their case only, the likeliest is taken.

  What is nothing but spaces, such as a no-break one, is no word.

  Raises:
    UserError: it does not parse, its order is not 2 to 6, or it has no words.
  """
  contents = ngram.read_contents(path)
  low, high = _ORDERS
  if not low <= (order := len(contents.sizes)) <= high:
    raise UserError(f"{path} is of order {order}: the search reads {low} to {high}")
  normal = {word: normal for word in contents.words if (normal := normalise(word))}
  if not normal:
    raise UserError(f"{path} has no words: give a language model of sentences")
  written: dict[str, str] = {}
  for word in sorted(normal, key=lambda word: -contents.words[word]):
    written.setdefault(normal[word], word)
  if merged := len(normal) - len(written):
    log.warning(
      "%s: %d of %d words differ from likelier ones in case or spelling only (such as %r from %r): "
      "the likelier are taken",
      path,
      merged,
      len(normal),
      *next((w, written[n]) for w, n in normal.items() if written[n] != w),
    )
  return LanguageModel(path, contents, {n: written[n] for n in normal.values()})


class LexiconSearch:
  """Finds sentences of a lexicon's words, weighed by a language model."""

  def __init__(self, spelled: Spellings, labels: Vocabulary, lm: LanguageModel | None = None):
    """Builds the prefix tree and loads the language model.

    Raises:
      UserError: flashlight-text is not installed, or does not take the language model.
    """
    self._flashlight = _flashlight()
    self._words = list(spelled.words)
    self._blank = labels.blank_id
    spellings = list(spelled.words.values())
    space = _space(labels)
    self._used = sorted({c for word in spellings for ids in word for c in ids} | {self._blank})
    ends = {ids[-1] for word in spellings for ids in word}
    # The class that fills the time between words and ends the last.
    self._between = space if ends == {space} else self._blank
    # Classes with a double before and behind them, whose columns follow all others in this order.
    self._before = _ends(spellings, self._between, alone=False)
    self._behind = _ends(spellings, self._between, alone=True)
    self._classes = len(labels.symbols)
    # Columns → classes.
    self._true = [*range(self._classes), *self._before, *self._behind]
    self._lm = self._load(lm)
    known = {i for i, word in enumerate(self._words) if lm and word in lm.words}
    self._trie = self._prefix_tree(spellings, known)

  def _load(self, lm: LanguageModel | None):
    if lm is None:
      return self._flashlight.ZeroLM()
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    words = Dictionary()
    for word in self._words:
      words.add_entry(lm.words.get(word, word))
    try:
      if lm.contents.finite:
        with _silent():
          return KenLM(str(lm.path), words)
      reason = ""
    except RuntimeError as error:
      reason = " ".join(str(error).split())[-200:]
    # KenLM knows fewer forms of ARPA files than `ngram`, and its -inf would spread as NaN.
    with tempfile.TemporaryDirectory() as folder:
      plain = pathlib.Path(folder) / "lm.arpa"
      try:
        ngram.write_plain(lm.path, lm.contents, plain)
        with _silent():
          return KenLM(str(plain), words)
      except (RuntimeError, UserError, OSError) as error:
        reason = reason or " ".join(str(error).split())[-200:]
        raise UserError(f"{lm.path} is not taken by KenLM: {reason}") from error

  def _prefix_tree(self, spellings, known: set[int]):
    start = self._lm.start(False)
    scores = [self._lm.score(start, index)[1] for index in range(len(self._words))]
    tree = self._flashlight.Trie(self._columns, self._between)
    alike: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
    # Of too many words that are spelled alike the likelier ones are kept, and only the first of
    # those that the language model cannot tell apart.
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
      for ids in spellings[index]:
        for variant in self._variants(ids):
          others = alike[variant]
          if len(others) < _HOMOPHONES and (index in known or known.issuperset(others)):
            others.append(index)
            tree.insert(list(variant), index, scores[index])
    tree.smear(self._flashlight.SmearingMode.MAX)
    return tree

  @property
  def _columns(self) -> int:
    return self._classes + len(self._before) + len(self._behind)

  def _variants(self, ids: tuple[int, ...]) -> list[tuple[int, ...]]:
    if ids[-1] == self._between:
      return [ids]
    *first, last = ids
    with_blank = (*ids, self._blank)
    if not first:
      double = self._classes + len(self._before) + self._behind.index(last)
      return [ids, with_blank, (last, double)]
    double = self._classes + self._before.index(last)
    return [with_blank] if first[-1] == last else [ids, with_blank, (*first, double, last)]

  def __call__(
    self, log_probs: np.ndarray, log_prior: np.ndarray, options: Options, nbest: int = 1
  ) -> list[Hypothesis]:
    """The best sentences of one utterance, best first; they differ, and there may be fewer.

    Args:
      log_probs: f32[T, V], of real frames.
      log_prior: f32[V], of the model on its training data.
      options: of the search.
      nbest: how many.
    """
    flashlight = self._flashlight
    emissions = self._emissions(log_probs, log_prior, options.prior_scale)
    decoder = flashlight.LexiconDecoder(
      flashlight.LexiconDecoderOptions(
        beam_size=options.beam,
        beam_size_token=options.token_beam * (1 if self._columns == self._classes else 2),
        beam_threshold=options.threshold,
        lm_weight=options.lm_weight,
        word_score=options.word_score,
        unk_score=-math.inf,
        sil_score=0.0,
        log_add=False,
        criterion_type=flashlight.CriterionType.CTC,
      ),
      self._trie,
      self._lm,
      self._between,
      self._blank,
      -1,
      [],
      False,
    )
    found = {}
    for result in decoder.decode(emissions.ctypes.data, *emissions.shape):
      if len(found) >= nbest and result.score < min(other.score for other in found.values()):
        break
      words = [self._words[i] for i in result.words if i >= 0]
      found.setdefault(" ".join(words), result)
    # flashlight puts equals in the order of their addresses.
    best = sorted(found.items(), key=lambda item: (-item[1].score, item[0].count(" "), item[0]))
    return [Hypothesis(text, result.score, self._heard(result)) for text, result in best[:nbest]]

  def _heard(self, result) -> Heard:
    """The labels of a result's path, and where its words end in them."""
    labels, words, start, before = [], [], 0, self._blank
    # What it has for each frame stands between what it has for the start and the end.
    columns, ended = result.tokens[1:-1], result.words[1:-1]
    for number, (column, word) in enumerate(zip(columns, ended, strict=True), 1):
      label = self._true[column]
      # The artificial frame is of no audio.
      if label not in (before, self._blank) and number < len(columns):
        labels.append(label)
      before = label
      if word < 0:
        continue
      end = len(labels)
      while start < end and labels[start] == self._between:
        start += 1
      while start < end and labels[end - 1] == self._between:
        end -= 1
      words.append((self._words[word], start, end))
      start = len(labels)
      if label != self._between:  # the next word's label, even if it is the same
        before = self._blank
    return Heard(tuple(labels), tuple(words))

  def _emissions(self, log_probs, log_prior, prior_scale: float) -> np.ndarray:
    """f32[T + 1, …]: scores of the classes that the lexicon uses, and the frame that ends words."""
    scores = log_probs - prior_scale * log_prior
    open_ = scores >= scores[:, [self._blank]]
    emissions = np.full((len(scores) + 1, self._columns), _NEVER, np.float32)
    emissions[:-1, self._used] = scores[:, self._used]
    emissions[-1, self._between] = 0
    before, behind = np.split(emissions[:-1, self._classes :], [len(self._before)], axis=1)
    before[:-1] = np.where(open_[1:], scores[:-1], _NEVER)[:, self._before]
    behind[1:] = np.where(open_[:-1], scores[1:], _NEVER)[:, self._behind]
    return emissions


def _ends(spellings, between: int, *, alone: bool) -> list[int]:
  """Last classes, but for the one between words, of spellings of one class or of several."""
  ends = {ids[-1] for word in spellings for ids in word if (len(ids) == 1) == alone}
  return sorted(ends - {between})


def _space(labels: Vocabulary) -> int:
  """The class of the space, or -1."""
  return labels.symbols.index(labels.space) if labels.space in labels.symbols else -1


def _flashlight():
  try:
    from flashlight.lib.text import decoder
  except ImportError as error:
    raise UserError(
      f"the search with a lexicon needs flashlight-text ({error}): pip install 'jaxkd[decode]' "
      "under Python 3.11 or 3.12; without it: --lm=none and no --lexicon"
    ) from error
  return decoder


@contextlib.contextmanager
def _silent():
  """KenLM draws a progress bar on the process's standard error."""
  kept = os.dup(2)
  try:
    with open(os.devnull, "w") as nothing:
      os.dup2(nothing.fileno(), 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
