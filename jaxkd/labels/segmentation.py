"""Text → ids of pieces, by the models of Hugging Face's tokenizer.json: BPE, Unigram, WordLevel.

Each gives what the tokenizers library gives, where it has a piece for everything; where it would
say that something is unknown, the character is named instead.
"""

import functools
import heapq
import itertools
import re
from collections.abc import Callable

from jaxkd.labels.vocabulary import UnknownSymbol

# A stretch of text → ids; raises UnknownSymbol.
Segment = Callable[[str], tuple[int, ...]]

WORD_START = "▁"  # sentencepiece's mark of a space, at the head of pieces that begin a word
_UNKNOWN_PENALTY = 10.0


class NotHere(ValueError):
  """Something that a tokenizer.json asks for and that cannot be had exactly."""


def segmenter(model: dict) -> Segment:
  """What a tokenizer.json's `model` does.

  Raises:
    NotHere: another kind of model, or a part of one that is not here.
    KeyError, TypeError, ValueError: it is damaged.
  """
  kind = kind_of(model)
  if kind not in _MODELS:
    raise NotHere(f"its model is {kind!r}: it must be one of {', '.join(_MODELS)}")
  return functools.lru_cache(maxsize=100_000)(_MODELS[kind](model))


def kind_of(model: dict) -> str:
  """BPE, Unigram or another, also where older files do not say it."""
  return model.get("type") or ("Unigram" if isinstance(model["vocab"], list) else "BPE")


def ids_of(model: dict) -> dict[str, int]:
  """Piece → id of a model."""
  pieces = model["vocab"]
  if isinstance(pieces, list):
    return {piece: i for i, (piece, _) in enumerate(pieces)}
  return {str(piece): int(i) for piece, i in pieces.items()}


def _word_level(model: dict) -> Segment:
  ids = ids_of(model)

  def segment(text: str) -> tuple[int, ...]:
    if text not in ids:
      raise UnknownSymbol(text)
    return (ids[text],)

  return segment


def _bytes_of(ids: dict[str, int], character: str, allowed: bool) -> tuple[int, ...]:
  """The pieces of a character's bytes, <0xE2> and the like.

  Raises:
    UnknownSymbol: there are none.
  """
  names = [f"<0x{byte:02X}>" for byte in character.encode()]
  if not allowed or any(name not in ids for name in names):
    raise UnknownSymbol(character)
  return tuple(ids[name] for name in names)


def _bpe(model: dict) -> Segment:
  """Pairs are merged by their rank, of equal ones the first, until none is left."""
  for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
    if model.get(field):
      raise NotHere(f"its model's {field} is {model[field]!r}")
  ids, merges = ids_of(model), {}
  for rank, merge in enumerate(model.get("merges") or ()):
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    merges[ids[left], ids[right]] = rank, ids[left + right]
  by_bytes, whole = bool(model.get("byte_fallback")), bool(model.get("ignore_merges"))

  def segment(text: str) -> tuple[int, ...]:
    if whole and text in ids:
      return (ids[text],)
    letters = ((ids[c],) if c in ids else _bytes_of(ids, c, by_bytes) for c in text)
    return _merged(list(itertools.chain.from_iterable(letters)), merges)

  if whole or any(WORD_START in piece[1:] for piece in ids):
    return segment
  # No piece goes on over the start of a word, so words are merged, and kept, on their own.
  of_word = functools.lru_cache(maxsize=100_000)(segment)
  words = re.compile(f"{WORD_START}?[^{WORD_START}]+|{WORD_START}")
  return lambda text: tuple(i for word in words.findall(text) for i in of_word(word))


def _merged(pieces: list[int | None], merges: dict) -> tuple[int, ...]:
  """Ids after all merges; `merges` is (id, id) → (rank, id of both)."""
  following = list(range(1, len(pieces) + 1))
  before = list(range(-1, len(pieces) - 1))
  queue: list[tuple[int, int, int, int]] = []

  def offer(left: int, right: int) -> None:
    if left >= 0 and right < len(pieces) and (pieces[left], pieces[right]) in merges:
      rank, both = merges[pieces[left], pieces[right]]
      heapq.heappush(queue, (rank, left, right, both))

  for left in range(len(pieces) - 1):
    offer(left, left + 1)
  while queue:
    rank, left, right, both = heapq.heappop(queue)
    # One that was merged since is another pair now, or none.
    if right != following[left] or pieces[left] is None:
      continue
    if merges.get((pieces[left], pieces[right])) != (rank, both):
      continue
    pieces[left], pieces[right] = both, None
    following[left] = following[right]
    if following[right] < len(pieces):
      before[following[right]] = left
    offer(before[left], left)
    offer(left, following[left])
  return tuple(piece for piece in pieces if piece is not None)


def _unigram(model: dict) -> Segment:
  """The pieces whose scores add up to the most; of equal ones, those found first from the left."""
  ids = ids_of(model)
  scores = {piece: float(model["vocab"][i][1]) for piece, i in ids.items()}
  unknown = min(float(score) for _, score in model["vocab"]) - _UNKNOWN_PENALTY
  beginnings = {piece[:n] for piece in ids for n in range(1, len(piece) + 1)}
  by_bytes = bool(model.get("byte_fallback"))

  def found_at(text: str, start: int):
    """(end, score) of every piece there, and of the character where it is none."""
    for end in range(start + 1, len(text) + 1):
      piece = text[start:end]
      if piece not in beginnings:
        break
      if piece in scores:
        yield end, scores[piece]
    if text[start] not in scores:
      yield start + 1, unknown

  def segment(text: str) -> tuple[int, ...]:
    best: list[tuple[float, int] | None] = [(0.0, -1), *(None for _ in text)]
    for start in range(len(text)):
      for end, score in found_at(text, start):
        total = score + best[start][0]
        if best[end] is None or total > best[end][0]:
          best[end] = total, start
    ends, pieces = len(text), []
    while ends > 0:
      start = best[ends][1]
      pieces.append(text[start:ends])
      ends = start
    of = lambda piece: (ids[piece],) if piece in ids else _bytes_of(ids, piece, by_bytes)
    return tuple(i for piece in reversed(pieces) for i in of(piece))

  return segment


_MODELS = {"BPE": _bpe, "Unigram": _unigram, "WordLevel": _word_level}
