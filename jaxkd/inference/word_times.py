"""Words of labels: when they are said and how sure that is, by the best path or after a search."""

import bisect
import functools
import itertools
import logging
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from jaxkd.inference.alignment import viterbi
from jaxkd.inference.listening import Frames
from jaxkd.inference.search.heard import Heard
from jaxkd.inference.transcript import Word
from jaxkd.labels import Vocabulary

log = logging.getLogger(__name__)
_FRAMES, _LABELS = 128, 32  # what alignments are padded to multiples of


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
    sure = min(_sure(frames, *label) for label in labels[start:end])
    end_s = min((last + 1) * frame_seconds, max(frames.seconds, first * frame_seconds))
    yield Word(text, first * frame_seconds, end_s, float(sure))


def _sure(frames: Frames, label: int, first: int, last: int) -> float:
  """The surest frame's confidence that it is of a label.

  A frame is sure of its best class; of another label it is less so by as much as that is less
  probable. So it makes no jump where the two change places, and what a search invents is not sure.
  """
  sure, best = frames.confidence[first : last + 1], frames.path[first : last + 1]
  if (best != label).any():
    log_p = frames.log_probs[first : last + 1]
    sure = sure * np.exp(log_p[:, label] - log_p[np.arange(len(best)), best])
  return sure.max()


def stretches(path: np.ndarray, vocabulary: Vocabulary, longest: int) -> list[tuple[int, int]]:
  """Half-open ranges of frames that cover all and are cut between words.

  A cut is in the middle of the widest gap between two words in the second half of what may be in a
  range, and behind what is in that gap, such as a space. Without any gap it is in the middle of the
  longest run of blanks there, and without any blank a range is as long as it may be.

  Args:
    path: i32[T], best classes.
    vocabulary: of the classes.
    longest: frames of a range.
  """
  labels = runs(path, vocabulary.blank_id)
  words = vocabulary.words([label for label, _, _ in labels])
  gaps = [
    (labels[end - 1][2] + 1, labels[start][1])
    for (_, _, end), (_, start, _) in itertools.pairwise(words)
  ]
  blanks = np.flatnonzero(np.diff(np.concatenate([[0], path == vocabulary.blank_id, [0]])))
  blanks = list(zip(blanks[::2].tolist(), blanks[1::2].tolist(), strict=True))
  found, start = [], 0
  while len(path) - start > longest:
    low, high = start + longest // 2, start + longest
    end = high
    if gap := _widest(gaps, low, high):
      first, last = gap
      end = (first + last + 1) // 2
      others = np.flatnonzero(path[end:last] != vocabulary.blank_id)
      end += others[-1].item() + 1 if len(others) else 0
    elif run := _widest(blanks, low, high):
      end = sum(run) // 2
    found.append((start, max(end, start + 1)))
    start = found[-1][1]
  return [*found, (start, len(path))] if start < len(path) else found


def _widest(ranges: list[tuple[int, int]], low: int, high: int) -> tuple[int, int] | None:
  """What is between two frames of the range of which that is the most; of equal ones the last."""
  first = bisect.bisect_left(ranges, low, key=lambda pair: pair[1])
  behind = bisect.bisect_right(ranges, high, key=lambda pair: pair[0])
  parts = [(max(a, low), min(b, high)) for a, b in ranges[first:behind]]
  return max(parts, key=lambda part: (part[1] - part[0], part), default=None)


def of_search(
  heard: Heard, frames: Frames, span: tuple[int, int], frame_seconds: float, blank_id: int
) -> list[Word]:
  """The words that a search heard in a stretch, with times by forced alignment of its labels.

  Those without labels share the time between their neighbours evenly, and so do all words where
  there is no alignment; their confidence is 0.

  Args:
    heard: in the stretch.
    frames: of the recording.
    span: half-open range of the stretch's frames.
    frame_seconds: of one.
    blank_id: class of the blank.
  """
  start, end = span
  labels = _aligned(frames.log_probs[start:end], heard.labels, blank_id)
  labels = [(label, first + start, last + start) for label, first, last in labels]
  words = [
    next(timed(labels, [word], frames, frame_seconds)) if labels and word[1] < word[2] else None
    for word in heard.words
  ]
  edges = start * frame_seconds, min(end * frame_seconds, frames.seconds)
  lost = [i for i, word in enumerate(words) if word is None]
  if lost:
    texts = " ".join(heard.words[i][0] for i in lost)
    why = "the model's classes cannot spell it"
    if heard.labels and not labels:
      why = f"its {len(heard.labels)} labels do not fit into {end - start} frames"
    told = "%r has no times of its own between %.2f and %.2f s: %s"
    log.warning(told, texts, *edges, why)
  for _, places in itertools.groupby(enumerate(lost), lambda pair: pair[1] - pair[0]):
    places = [place for _, place in places]
    first, behind = places[0], places[-1] + 1
    start_s = words[first - 1].end_s if first else edges[0]
    end_s = words[behind].start_s if behind < len(words) else edges[1]
    cuts = np.linspace(start_s, max(start_s, end_s), len(places) + 1).tolist()
    for place, pair in zip(places, itertools.pairwise(cuts), strict=True):
      words[place] = Word(heard.words[place][0], *pair, 0.0)
  return words


@functools.partial(jax.jit, static_argnames="blank_id")
def _path(log_probs, frames, labels, label_len, blank_id):
  return viterbi(log_probs, frames, labels, label_len, blank_id=blank_id).path[0]


def _aligned(log_probs: np.ndarray, labels: tuple[int, ...], blank_id: int) -> list:
  """(label, first frame, last frame) of each label; nothing where there are too few frames."""
  frames, count = len(log_probs), len(labels)
  if not count:
    return []
  padded = np.zeros((1, -(-frames // _FRAMES) * _FRAMES, log_probs.shape[1]), np.float32)
  padded[0, :frames] = log_probs
  ids = np.zeros((1, -(-count // _LABELS) * _LABELS), np.int32)
  ids[0, :count] = labels
  lengths = np.array([frames], np.int32), np.array([count], np.int32)
  path = np.asarray(_path(padded, lengths[0], ids, lengths[1], blank_id))[:frames]
  return [(labels[n], first, last) for n, first, last in runs(path, -1)]
