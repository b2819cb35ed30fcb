"""A trained model as something that turns recordings into words."""

import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from jaxkd import buckets, workdirs
from jaxkd.data.audio import BrokenAudio
from jaxkd.devices import mesh
from jaxkd.errors import UserError
from jaxkd.inference.alignment import viterbi
from jaxkd.inference.finished import FinishedRun
from jaxkd.inference.listening import Frames, listen
from jaxkd.inference.search import lexicon as lexicon_lib
from jaxkd.inference.search.prefix import prefix_beam
from jaxkd.inference.transcript import Transcript, Word
from jaxkd.labels import UnknownSymbol, Vocabulary, normalise
from jaxkd.models import exported
from jaxkd.models.acoustic import AcousticModel
from jaxkd.teacher import sources
from jaxkd.teacher.stored import Stored

log = logging.getLogger(__name__)
# A search gets stretches of so many seconds at most, which end where nothing is said.
_STRETCH_SECONDS = 20.0
_FRAMES, _LABELS = 128, 32  # what alignments are padded to multiples of
NBEST = 16
_SHOWN = 5  # words in a message

# log p of every class f32[T, V] → text.
Search = Callable[[np.ndarray], str]


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
      search: of stretches of frames, such as `with_phrases` or `with_lexicon`; None for the best
        path.

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
    for start, end in stretches(frames.path, blank_id, longest):
      log_probs = frames.log_probs[start:end]
      text = search(log_probs)
      labels = _aligned(log_probs, text, vocabulary)
      spans = vocabulary.words([x for x, _, _ in labels])
      if len(spans) == len(text.split()):
        shifted = [(label, first + start, last + start) for label, first, last in labels]
        # Of words that are spelled alike the search knows which.
        words = [(word, a, b) for word, (_, a, b) in zip(text.split(), spans, strict=True)]
        yield from timed(shifted, words, frames, seconds)
        continue
      first, last = start * seconds, min(end * seconds, frames.seconds)
      told = "%r has no times but %.2f to %.2f s: its frames cannot spell it"
      log.warning(told, text, first, last)
      yield from (Word(word, first, last, 0.0) for word in text.split())


def load(source: str | os.PathLike, model: str = "student", *, language: str = "") -> Recogniser:
  """A recogniser from a finished run, an exported folder, or a model in Hugging Face's layout.

  Args:
    source: the workdir of a finished run, a folder of `jaxkd export` or `jaxkd convert`, a Hugging
      Face folder, or org/name on its hub.
    model: "student" or "teacher" of a run.
    language: of a Hugging Face model with an adapter for each (MMS), as its files name it.

  Raises:
    UserError: nothing there that can be loaded.
  """
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


def runs(path: np.ndarray, blank_id: int) -> list[tuple[int, int, int]]:
  """(label, first frame, last frame) of each run of a class but the blank."""
  if not len(path):
    return []
  starts = np.flatnonzero(np.concatenate([[True], path[1:] != path[:-1]]))
  ends = np.append(starts[1:], len(path)) - 1
  rows = zip(path[starts].tolist(), starts.tolist(), ends.tolist(), strict=True)
  return [row for row in rows if row[0] != blank_id]


def timed(
  labels: list[tuple[int, int, int]],
  words: Iterable[tuple[str, int, int]],
  frames: Frames,
  frame_seconds: float,
) -> Iterator[Word]:
  """Words of labels, from the first frame of their first label to the last of their last.

  Args:
    labels: as `runs` finds them.
    words: texts with half-open ranges of labels.
    frames: that the labels are of.
    frame_seconds: of one.
  """
  for text, start, end in words:
    first, last = labels[start][1], labels[end - 1][2]
    # What the surest frame of the least sure label says: a word is as sure as its parts.
    sure = min(frames.confidence[a : b + 1].max() for _, a, b in labels[start:end])
    end_s = min((last + 1) * frame_seconds, max(frames.seconds, first * frame_seconds))
    yield Word(text, first * frame_seconds, end_s, float(sure))


def stretches(path: np.ndarray, blank_id: int, longest: int) -> list[tuple[int, int]]:
  """Half-open ranges of frames that cover all, cut in the middle of long runs of blanks.

  Args:
    path: i32[T], best classes.
    blank_id: class of the blank.
    longest: frames of a range; it is cut there where there is no blank in its second half.
  """
  found, start = [], 0
  while len(path) - start > longest:
    half = start + longest // 2
    blanks = [(b - a, (a + b) // 2) for a, b in _blank_runs(path[half : start + longest], blank_id)]
    end = half + max(blanks)[1] if blanks else start + longest
    found.append((start, end))
    start = end
  return [*found, (start, len(path))] if start < len(path) else found


def _blank_runs(path: np.ndarray, blank_id: int) -> list[tuple[int, int]]:
  """Half-open ranges of blanks."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], path == blank_id, [0]])))
  return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@functools.partial(jax.jit, static_argnames="blank_id")
def _path(log_probs, frames, labels, label_len, blank_id):
  return viterbi(log_probs, frames, labels, label_len, blank_id=blank_id).path[0]


def _aligned(log_probs: np.ndarray, text: str, vocabulary: Vocabulary) -> list:
  """(label, first frame, last frame) of each label of a text, by forced alignment.

  Nothing where there are too few frames for it, or the classes cannot write it, as what a phoneme
  model shows of sounds that are no word.
  """
  try:
    labels = vocabulary.encode(text)
  except UnknownSymbol:
    return []
  frames, count = len(log_probs), len(labels)
  if not count:
    return []
  padded = np.zeros((1, -(-frames // _FRAMES) * _FRAMES, log_probs.shape[1]), np.float32)
  padded[0, :frames] = log_probs
  ids = np.zeros((1, -(-count // _LABELS) * _LABELS), np.int32)
  ids[0, :count] = labels
  lengths = np.array([frames], np.int32), np.array([count], np.int32)
  path = np.asarray(_path(padded, lengths[0], ids, lengths[1], vocabulary.blank_id))[:frames]
  return [(int(labels[n]), first, last) for n, first, last in runs(path, -1)]


def with_beam(
  vocabulary: Vocabulary, *, beam: int, phrases: Iterable[str] = (), boost: float = 0.0
):
  """A search by prefix beam, whose best hypotheses are ranked anew by the phrases in them.

  Args:
    vocabulary: of the model.
    beam: prefixes that are kept.
    phrases: words that are expected, in any case.
    boost: added to log p for each time that one occurs.
  """
  wanted = [f" {normalise(phrase)} " for phrase in phrases if normalise(phrase)]
  find = functools.partial(prefix_beam, blank_id=vocabulary.blank_id, beam=beam)

  def search(log_probs: np.ndarray) -> str:
    frames = -(-len(log_probs) // _FRAMES) * _FRAMES
    padded = np.zeros((1, frames, log_probs.shape[1]), np.float32)
    padded[0, : len(log_probs)] = log_probs
    found = map(np.asarray, find(padded, np.arange(frames)[None] < len(log_probs)))
    scores: dict[str, float] = {}
    for sequence, length, p in zip(*(x[0] for x in found), strict=True):
      if np.isfinite(p):
        text = vocabulary.decode(sequence[:length])
        scores[text] = float(np.logaddexp(scores.get(text, -np.inf), p))
    bonus = lambda text: boost * sum(f" {text} ".count(phrase) for phrase in wanted)
    return max(scores, key=lambda text: scores[text] + bonus(text), default="")

  return search


def with_lexicon(
  vocabulary: Vocabulary,
  words: Iterable[str],
  lm: lexicon_lib.LanguageModel | None,
  options: lexicon_lib.Options,
) -> Search:
  """A search among the sentences of some words, weighed by a language model."""
  spelled = lexicon_lib.spell(words, vocabulary)
  if missing := spelled.missing:
    few = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
    log.warning(
      "words of the lexicon that the model's classes cannot spell: %d (%s)", len(missing), few
    )
  found = lexicon_lib.LexiconSearch(spelled, vocabulary, lm)
  prior = np.zeros(len(vocabulary.symbols))

  def search(log_probs: np.ndarray) -> str:
    best = found(log_probs, prior, options)
    return best[0].text if best else ""

  return search
