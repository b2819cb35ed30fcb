"""A trained model as something that turns recordings into words."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from jaxkd import buckets, workdirs
from jaxkd.data.audio import BrokenAudio
from jaxkd.devices import mesh
from jaxkd.errors import UserError, did_you_mean
from jaxkd.inference.finished import FinishedRun
from jaxkd.inference.listening import Frames, listen
from jaxkd.inference.search import heard as heard_lib
from jaxkd.inference.search import lexicon as lexicon_lib
from jaxkd.inference.search.heard import Heard
from jaxkd.inference.search.prefix import checked_beam, prefix_beam
from jaxkd.inference.transcript import Transcript, Word
from jaxkd.inference.word_times import of_search, runs, stretches, timed
from jaxkd.labels import CannotSpell, UnknownSymbol, Vocabulary, normalise
from jaxkd.models import exported
from jaxkd.models.acoustic import AcousticModel
from jaxkd.teacher import sources
from jaxkd.teacher.stored import Stored

# A search gets stretches of so many seconds at most, which end between words.
_STRETCH_SECONDS = 20.0
_FRAMES = 128  # of a prefix beam, which are padded to a multiple
NBEST = 16

# log p of every class f32[T, V] → what is heard in these frames; of a text alone, whose labels are
# not known, each word is looked for in its first spelling.
Search = Callable[[np.ndarray], Heard | str]


@dataclasses.dataclass(frozen=True)
class Recogniser:
  """A model that is ready to listen.

  Attributes:
    model: with its parameters and classes.
    name: where it came from.
  """

  model: AcousticModel | exported.ExportedModel
  name: str

  def transcribe(self, recordings, *, search: Search | None = None):
    """What is said in a recording, or in several.

    Args:
      recordings: a file's path, or samples at 16 kHz: float[S] of full scale 1, i16[S] or i32[S];
        or a list of these.
      search: of stretches of frames, such as `with_beam` or `with_lexicon`; None for the best path.

    Returns:
      A Transcript, or a list of them.

    Raises:
      UserError: a recording that cannot be used.
    """
    if isinstance(recordings, (str, os.PathLike, np.ndarray, np.generic, jax.Array)):
      return self.transcribe([recordings], search=search)[0]
    given = list(recordings)
    found = []
    for recording, said in zip(given, self.each(given, search=search), strict=True):
      if isinstance(said, BrokenAudio):
        raise UserError(f"{_name(recording) or 'the samples'}: {said}")
      found.append(said)
    return found

  def each(
    self, recordings: Iterable, *, search: Search | None = None
  ) -> Iterator[Transcript | BrokenAudio]:
    """As `transcribe`, one after the other; the reason in the place of one that cannot be used."""
    first, second = itertools.tee(recordings)
    said = listen(self.model, first, log_probs=search is not None)
    for recording, frames in zip(second, said, strict=True):
      if isinstance(frames, BrokenAudio):
        yield frames
      else:
        words = tuple(self._words(frames, search))
        yield Transcript(_name(recording), words, frames.seconds)

  def _words(self, frames: Frames, search: Search | None) -> Iterator[Word]:
    blank_id, vocabulary = self.model.blank_id, self.model.vocabulary
    seconds = self.model.frame_ms / 1000
    if search is None:
      labels = runs(frames.path, blank_id)
      yield from timed(labels, vocabulary.words([x for x, _, _ in labels]), frames, seconds)
      return
    longest = max(1, int(1000 * _STRETCH_SECONDS / self.model.frame_ms))
    for start, end in stretches(frames.path, vocabulary, longest):
      heard = search(frames.log_probs[start:end])
      if isinstance(heard, str):
        heard = heard_lib.of_text(heard, vocabulary)
      yield from of_search(heard, frames, (start, end), seconds, blank_id)


def load(source: str | os.PathLike, model: str = "student", *, language: str = "") -> Recogniser:
  """A recogniser from a finished run, an exported folder, or a model in Hugging Face's layout.

  Args:
    source: the workdir of a finished run, a folder of `jaxkd export` or `jaxkd convert`, a Hugging
      Face folder, or org/name on its hub.
    model: "student" or "teacher" of a run.
    language: of a Hugging Face model with an adapter for each (MMS), as its files name it.

  Raises:
    UserError: nothing there that can be loaded, or another `model`.
  """
  if model not in workdirs.MODELS:
    near = did_you_mean(str(model), workdirs.MODELS)
    raise UserError(f"model is {model!r}: it must be {' or '.join(workdirs.MODELS)}{near}")
  source = os.fspath(source)
  folder = buckets.here(source)
  is_run, is_exported = workdirs.is_finished(folder), (folder / exported.FACTS).exists()
  if (is_run or is_exported) and language:
    raise UserError(f"{source} has one vocabulary, and none of the language {language!r}")
  devices = mesh.make_mesh()
  if is_run:
    found = FinishedRun(folder, devices).models((model,))[model]
    if isinstance(found, Stored):
      raise UserError(f"{_hears_none(found)}, or --model=student")
    return Recogniser(found, source)
  if model != "student":
    raise UserError(f"{source} is no finished run, so it has no teacher beside it")
  if is_exported:
    return Recogniser(exported.ExportedModel(folder), source)
  found = sources.find(source, pool=1, dtype="float32", language=language, named="")
  if isinstance(found, Stored):
    raise UserError(_hears_none(found))
  return Recogniser(found.load(devices), source)


def _hears_none(found: Stored) -> str:
  teacher = found.store.header.get("teacher")
  return (
    f"{found.source} is what a teacher said of other audio, and hears none: give the teacher itself"
    + (f", {teacher}" if teacher else "")
  )


def _name(recording) -> str:
  return os.fspath(recording) if isinstance(recording, (str, os.PathLike)) else ""


def with_beam(
  vocabulary: Vocabulary, *, beam: int, phrases: Iterable[str] = (), boost: float = 0.0
) -> Search:
  """A search by prefix beam, whose best hypotheses are ranked anew by the phrases in them.

  Args:
    vocabulary: of the model.
    beam: prefixes that are kept.
    phrases: words that are expected, in any case.
    boost: added to log p for each time that one occurs.

  Raises:
    TypeError, ValueError: beam is not a whole number, 1 or more.
  """
  beam = checked_beam(beam)
  wanted = [phrase.split() for phrase in map(normalise, phrases) if phrase]
  _say_unwritable(wanted, vocabulary)
  find = functools.partial(prefix_beam, blank_id=vocabulary.blank_id, beam=beam)

  def search(log_probs: np.ndarray) -> Heard:
    frames = -(-len(log_probs) // _FRAMES) * _FRAMES
    padded = np.zeros((1, frames, log_probs.shape[1]), np.float32)
    padded[0, : len(log_probs)] = log_probs
    found = map(np.asarray, find(padded, np.arange(frames)[None] < len(log_probs)))
    # The sequences of a text add up; the first of them, which is the likeliest, is aligned.
    scores: dict[str, float] = {}
    labels: dict[str, np.ndarray] = {}
    for sequence, length, p in zip(*(x[0] for x in found), strict=True):
      if np.isfinite(p):
        text = vocabulary.decode(sequence[:length])
        scores[text] = float(np.logaddexp(scores.get(text, -np.inf), p))
        labels.setdefault(text, sequence[:length])
    bonus = lambda text: boost * sum(_count(phrase, text.split()) for phrase in wanted)
    best = max(scores, key=lambda text: scores[text] + bonus(text), default="")
    return heard_lib.of_labels(labels.get(best, ()), vocabulary)

  return search


def _count(phrase: list[str], words: list[str]) -> int:
  """How often words follow one another somewhere in others, overlaps included."""
  return sum(words[i : i + len(phrase)] == phrase for i in range(len(words) - len(phrase) + 1))


def _say_unwritable(phrases: list[list[str]], vocabulary: Vocabulary) -> None:
  """Logs the phrases that no hypothesis can have."""
  missing = []
  for phrase in map(" ".join, phrases):
    try:
      vocabulary.encode(phrase)
    except UnknownSymbol:
      missing.append(phrase)
    except CannotSpell:  # nothing is known of this one or of others
      return
  if missing:
    lexicon_lib.say("phrases that the model's classes cannot spell", missing)


def with_lexicon(
  vocabulary: Vocabulary,
  words: Iterable[str],
  lm: lexicon_lib.LanguageModel | None,
  options: lexicon_lib.Options,
  *,
  name: str = "the lexicon",
) -> Search:
  """A search among the sentences of some words, weighed by a language model.

  Args:
    vocabulary: of the model.
    words: of which sentences are made.
    lm: the language model, or None.
    options: of the search.
    name: of where the words are from, for errors.

  Raises:
    UserError: none of the words can be spelled, or what it takes is not installed.
  """
  spelled = lexicon_lib.spell(words, vocabulary, name)
  lexicon_lib.say_missing(spelled, lm)
  found = lexicon_lib.LexiconSearch(spelled, vocabulary, lm)
  prior = np.zeros(len(vocabulary.symbols))

  def search(log_probs: np.ndarray) -> Heard:
    best = found(log_probs, prior, options)
    return best[0].heard if best else Heard()

  return search
