"""Transcripts of a source: whether they can be taught, and how they are spelled."""

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from jaxkd.data.sources import Source, left_out
from jaxkd.errors import UserError
from jaxkd.labels import UnknownSymbol, UnknownWords, Vocabulary, normalise
from jaxkd.types import SAMPLE_RATE_HZ

log = logging.getLogger(__name__)
# Kinds of classes whose texts have spaces between words or tokens, also where each has only one.
_SPACED = ("phonemes", "tokens")


class Spelling(NamedTuple):
  """How transcripts of joined utterances become labels.

  Attributes:
    vocabulary: the classes.
    between: what stands between the transcripts: a space, or nothing in a language without.
  """

  vocabulary: Vocabulary
  between: str = " "

  @classmethod
  def of(cls, vocabulary: Vocabulary, texts: Iterable[str | None]) -> "Spelling":
    """As the transcripts write: where none has a space, none is taught between two of them."""
    spaced = any(" " in normalise(text) for text in texts if text)
    return cls(vocabulary, " " if spaced or vocabulary.kind in _SPACED else "")

  def __call__(self, texts: list[str]) -> np.ndarray:
    """i32[U] of texts that follow one another."""
    return self.vocabulary.encode(self.between.join(texts))


def transcripts(source: Source, *, all_needed: bool) -> tuple[Source, list[str]]:
  """The utterances that a run with transcripts can use, and their transcripts.

  Args:
    source: of the utterances.
    all_needed: nothing is learnt from an utterance without a transcript, so it is left out.

  Raises:
    UserError: there is no transcript at all.
  """
  untold = {i: "no transcript" for i, text in enumerate(source.texts) if text is None}
  if len(untold) == len(source):
    raise UserError(
      f'{source.name}: no utterance has a transcript ("text"), the first is {source.ids[0]}, and '
      "this run needs them; with config.kd.scale=1.0 the student's data needs none"
    )
  if untold:
    learnt = "are left out" if all_needed else "carry distillation alone"
    told = "%s: %d of %d utterances have no transcript: they %s"
    log.warning(told, source.name, len(untold), len(source), learnt)
  if untold and all_needed:
    source = source.without(untold)
  texts = [text for text in source.texts if text is not None]
  if not any(map(normalise, texts)):
    log.warning("%s: every transcript is empty: the model learns to say nothing", source.name)
  return source, texts


def check_texts(
  source: Source,
  vocabulary: Vocabulary,
  frame_len: Callable[[int], int],
  missing: str = "error",
) -> Source:
  """The source, every transcript of which the classes can write and its audio can hold.

  Args:
    source: of the utterances.
    vocabulary: the classes.
    frame_len: samples → output frames.
    missing: words without phonemes are an error, or "skip": their utterances are left out.

  Raises:
    UserError: names the first that has a character without a class; or the words; or nothing fits.
  """
  untold: dict[int, tuple[str, ...]] = {}
  too_long: dict[int, str] = {}
  for index, text in enumerate(source.texts):
    if text is None:
      continue
    try:
      labels = vocabulary.encode(text)
    except UnknownWords as error:
      untold[index] = error.words
      continue
    except UnknownSymbol as error:
      raise UserError(
        f"{source.name}: {source.ids[index]}: {_unwritten(text, vocabulary, error)}"
      ) from error
    # A path of CTC has a frame for each label, and for a blank between two equal ones.
    needed = len(labels) + int((labels[1:] == labels[:-1]).sum())
    frames = int(frame_len(round(source.durations[index] * SAMPLE_RATE_HZ)))
    if needed > frames:
      too_long[index] = f"its transcript needs {needed} frames, and its audio has {frames}"
  if untold:
    _settle_missing(source, untold, missing)
  if too_long and len(too_long) == sum(text is not None for text in source.texts):
    first = next(iter(too_long))
    raise UserError(
      f"{source.name}: no transcript fits its audio; the first: {source.ids[first]}: "
      f"{too_long[first]}: are the texts those of these recordings?"
    )
  if too_long:
    found = [(source.ids[i], reason) for i, reason in too_long.items()]
    log.warning("%s", left_out(source.name, found, len(source)))
  unsaid = {i: f"no pronunciation for {words[0]!r}" for i, words in untold.items()}
  reasons = unsaid | too_long
  return source.without(reasons) if reasons else source


def _settle_missing(source: Source, untold: dict[int, tuple[str, ...]], missing: str) -> None:
  """An error about words without pronunciation, or a warning where they may be left out."""
  found = _missing(source, untold)
  if missing == "error" or len(untold) == len(source):
    skip = "; config.labels.missing=skip leaves these utterances out" * (missing == "error")
    raise UserError(
      f"{found}: add them to a lexicon, a line `word P1 P2 ...` each, and give it with "
      f"config.labels.name=phonemes config.labels.lexicon=FILE{skip}"
    )
  log.warning("%s: these are left out", found)


def _missing(source: Source, untold: dict[int, tuple[str, ...]]) -> str:
  words = list(dict.fromkeys(word for missing in untold.values() for word in missing))
  count = "1 word has" if len(words) == 1 else f"{len(words)} words have"
  rest = ", ..." if len(words) > 5 else ""
  return (
    f"{source.name}: {count} no pronunciation ({', '.join(words[:5])}{rest}), in {len(untold)} of "
    f"{len(source)} utterances"
  )


def _unwritten(text: str, vocabulary: Vocabulary, error: UnknownSymbol) -> str:
  said = f"the text {text[:60]!r} has {error.symbol!r}, which is no class of the model: "
  if vocabulary.kind == "sentencepiece":
    return f"{said}the transcripts of its training have none"
  if vocabulary.kind == "subwords":
    return f"{said}its tokenizer has no piece for it"
  if vocabulary.kind == "tokens":
    return f"{said}the text must be tokens of the model's vocabulary between spaces"
  known = "".join(s for i, s in enumerate(vocabulary.symbols) if i != vocabulary.blank_id)
  return f"{said}normalise the text, or add it to config.labels.alphabet (now {known!r})"
