"""What a model says of every frame of a split, kept in memory to be searched many times."""

import dataclasses
import functools
import time

import jax
import numpy as np

from jaxkd import console
from jaxkd.data.plan import Shape
from jaxkd.data.sources import Source
from jaxkd.inference import error_rates
from jaxkd.inference.frames import frames, log_softmax
from jaxkd.inference.search.greedy import collapse
from jaxkd.inference.search.prefix import prefix_beam
from jaxkd.labels import Vocabulary, normalise
from jaxkd.models.acoustic import AcousticModel

# Batches of the prefix beam: so many rows, and frames up to a multiple of so many.
_ROWS, _FRAMES = 16, 64
# N-best list: (text, score) of different sentences, best first.
NBest = list[tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class Searched:
  """What a search found.

  Attributes:
    nbests: for each utterance.
    seconds: that it took, compiling left out.
  """

  nbests: list[NBest]
  seconds: float


@dataclasses.dataclass(frozen=True)
class SplitFrames:
  """The utterances of a split that could be decoded, in its order.

  Attributes:
    ids, references: of the utterances; a reference is None where there is no transcript.
    log_probs: f32[T, V] of each, real frames only.
    audio_seconds: of all of them.
    compute_seconds: that the model took for them, compiling left out.
  """

  ids: list[str]
  references: list[str | None]
  log_probs: list[np.ndarray]
  audio_seconds: float
  compute_seconds: float

  @property
  def transcribed(self) -> bool:
    return any(reference is not None for reference in self.references)

  def error_rates(self, hypotheses: list[str]) -> dict:
    """{"wer", "cer", "words"} of a text for each utterance."""
    known = [i for i, reference in enumerate(self.references) if reference is not None]
    pairs = [[texts[i] for i in known] for texts in (self.references, hypotheses)]
    return error_rates.error_rates(*pairs)

  def rows(self, nbests: list[NBest]) -> list[dict]:
    """Rows of a file of hypotheses: id, reference, hypothesis, nbest."""
    return [
      {
        "id": name,
        "reference": reference,
        "hypothesis": nbest[0][0],
        "nbest": [{"text": text, "score": round(float(score), 4)} for text, score in nbest],
      }
      for name, reference, nbest in zip(self.ids, self.references, nbests, strict=True)
    ]

  def greedy(self, vocabulary: Vocabulary) -> Searched:
    """The best path of each utterance, with its log probability."""
    started, nbests = time.perf_counter(), []
    for log_probs in self.log_probs:
      path = log_probs.argmax(-1).astype(np.int32)
      text = vocabulary.decode(collapse(path, blank_id=vocabulary.blank_id))
      nbests.append([(text, log_probs.max(-1).sum())])
    return Searched(nbests, time.perf_counter() - started)

  def prefix_beam(self, vocabulary: Vocabulary, beam: int, count: int) -> Searched:
    """The `count` best label sequences of each utterance as texts, with their log probability."""
    order = sorted(range(len(self.log_probs)), key=lambda i: len(self.log_probs[i]))
    nbests: list[NBest] = [[] for _ in order]
    shapes, seconds = set(), 0.0
    search = functools.partial(prefix_beam, blank_id=vocabulary.blank_id, beam=beam)
    with console.progress("prefix beam", len(order)) as update:
      for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        batch = self._batch(chosen)
        if batch[1].shape not in shapes:  # compiles
          jax.block_until_ready(search(*batch))
          shapes.add(batch[1].shape)
        started = time.perf_counter()
        found = map(np.asarray, search(*batch))
        for i, *best in zip(chosen, *found, strict=False):
          nbests[i] = _texts(vocabulary, *best)[:count]
        seconds += time.perf_counter() - started
        update(len(chosen))
    return Searched(nbests, seconds)

  def _batch(self, chosen: list[int]) -> tuple[np.ndarray, np.ndarray]:
    longest = max(len(self.log_probs[i]) for i in chosen)
    frames = -(-longest // _FRAMES) * _FRAMES
    logits = np.zeros((_ROWS, frames, self.log_probs[0].shape[1]), np.float32)
    mask = np.zeros((_ROWS, frames), bool)
    for row, i in enumerate(chosen):
      logits[row, : len(self.log_probs[i])] = self.log_probs[i]
      mask[row, : len(self.log_probs[i])] = True
    return logits, mask


def _texts(vocabulary: Vocabulary, sequences, lengths, log_p) -> NBest:
  """Texts of label sequences; several that are one text, such as with more spaces, add up."""
  found: dict[str, float] = {}
  for sequence, length, p in zip(sequences, lengths, log_p.astype(np.float64), strict=True):
    if np.isfinite(p):
      text = vocabulary.decode(sequence[:length])
      found[text] = np.logaddexp(found.get(text, -np.inf), p)
  return sorted(found.items(), key=lambda pair: -pair[1])


def hear(
  model: AcousticModel,
  source: Source,
  devices: jax.sharding.Mesh,
  *,
  shapes: tuple[Shape, ...] | None = None,
  description: str = "",
) -> SplitFrames:
  """What a model says of every frame of a source.

  Args:
    model: of the frames.
    source: of the utterances.
    devices: mesh, of this process.
    shapes: of the batches; None for those that suit the source.
    description: beside the progress bar.
  """
  index = {unique: i for i, unique in enumerate(source.ids)}
  found: dict[int, np.ndarray] = {}
  seconds = 0.0
  said = frames(
    {"model": model}, source, devices, shapes=shapes, timed=True, description=description
  )
  for spoken in said:
    seconds += spoken.seconds
    log_probs, mask = spoken.my_rows("model")
    for ids, row, real in zip(spoken.host.ids, log_probs, mask, strict=True):
      if ids:
        found[index[ids[0]]] = log_softmax(row[real])
  order = sorted(found)
  texts = [source.texts[i] for i in order]
  return SplitFrames(
    ids=[source.ids[i] for i in order],
    references=[None if text is None else normalise(text) for text in texts],
    log_probs=[found[i] for i in order],
    audio_seconds=float(source.durations[order].sum()),
    compute_seconds=seconds,
  )
