"""Pieces of words by their symbols alone, as teachers of other toolkits have them."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from jaxkd.labels.segmentation import WORD_START
from jaxkd.labels.text import normalise
from jaxkd.labels.vocabulary import UnknownSymbol, Vocabulary


@dataclasses.dataclass(frozen=True)
class MarkedVocabulary(Vocabulary):
  """Pieces of words of which those that begin one have ▁ at their head.

  Nothing is known of how a tokenizer would cut texts: transcripts are spelled from the left by the
  longest piece that fits, in which a CTC model has no less to learn.
  """

  kind: ClassVar[str] = "pieces"

  def encode(self, text: str) -> np.ndarray:
    """i32[U] of a text: its words as they are, normalised, or in capitals, as the pieces have them.

    Raises:
      UnknownSymbol: a character is in no piece.
    """
    return np.array([i for word in text.split() for i in self._word(word)], np.int32)

  def _word(self, word: str) -> list[int]:
    normal = normalise(word)
    if not normal:
      return []
    for form in (word, normal):
      try:
        return self._written(WORD_START + form)
      except UnknownSymbol:
        continue
    return self._written(WORD_START + normal.upper())

  def decode(self, ids: Iterable[int]) -> str:
    """Normalised text of labels (blanks and repeats already gone)."""
    return normalise("".join(self._texts[i] for i in ids).replace(WORD_START, " "))

  def _spans(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """See `Vocabulary._spans`."""
    starts = [i for i, label in enumerate(ids) if self._texts[label].startswith(WORD_START)]
    return itertools.pairwise([0, *starts, len(ids)])

  def space_ids(self) -> tuple[int, ...]:
    """None: the next word's first piece has its mark."""
    return ()

  def spellings(self, word: str) -> list[tuple[int, ...]]:
    """See `Vocabulary.spellings`."""
    return [tuple(self.encode(word).tolist())]
