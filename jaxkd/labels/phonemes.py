"""Phonemes of a lexicon as classes, with end-of-word variants as in the paper."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from jaxkd.labels import lexicon as lexicon_lib
from jaxkd.labels.lexicon import WORD_END, Lexicon, Pronunciation
from jaxkd.labels.text import normalise
from jaxkd.labels.vocabulary import BLANK, UnknownWords, Vocabulary


@dataclasses.dataclass(frozen=True)
class PhonemeVocabulary(Vocabulary):
  """Phonemes, each once inside words and once (`AE#`) at their ends, as in the paper.

  Attributes:
    lexicon: how words are pronounced.
  """

  lexicon: Lexicon = Lexicon(())

  kind: ClassVar[str] = "phonemes"

  def __post_init__(self):
    words: dict[Pronunciation, str] = {}
    for word, spoken in self.lexicon.entries:
      for sounds in spoken:
        words.setdefault(sounds, word)
    object.__setattr__(self, "_words", words)
    object.__setattr__(self, "_ids", {s: i for i, s in enumerate(self.symbols)})

  def encode(self, text: str) -> np.ndarray:
    """i32[U] of a text, normalised first: every word's first pronunciation.

    Raises:
      UnknownWords: words that the lexicon lacks.
    """
    words = normalise(text).split()
    if absent := [word for word in words if word not in self.lexicon]:
      raise UnknownWords(absent)
    spelled = (self._spelled(self.lexicon[word][0]) for word in words)
    return np.array([i for ids in spelled for i in ids], np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    """Words of labels (blanks and repeats already gone).

    Of words that sound alike it is the first of the lexicon. What is no word of it, or is not
    ended, is shown as one that no transcript has: `<AE-B>`.
    """
    words, sounds = [], []
    for symbol in (self.symbols[i] for i in ids if i != self.blank_id):
      sounds.append(symbol.removesuffix(WORD_END))
      if symbol.endswith(WORD_END):
        words.append(self._words.get(tuple(sounds)) or _no_word(sounds))
        sounds = []
    return " ".join([*words, _no_word(sounds)] if sounds else words)

  def _spans(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """See `Vocabulary._spans`."""
    ends = [i + 1 for i, label in enumerate(ids) if self.symbols[label].endswith(WORD_END)]
    return itertools.pairwise([0, *ends, len(ids)])

  def spellings(self, word: str) -> list[tuple[int, ...]]:
    """See `Vocabulary.spellings`."""
    word = normalise(word)
    if word not in self.lexicon:
      raise UnknownWords([word])
    return [self._spelled(sounds) for sounds in self.lexicon[word]]

  def _spelled(self, sounds: Pronunciation) -> tuple[int, ...]:
    *inner, last = sounds
    return (*(self._ids[p] for p in inner), self._ids[last + WORD_END])

  def _save_beside(self, folder: pathlib.Path) -> list[pathlib.Path]:
    path = folder / "lexicon.txt"
    self.lexicon.write(path)
    return [path]

  @classmethod
  def _load_beside(cls, folder: pathlib.Path) -> tuple:
    return (lexicon_lib.read(folder / "lexicon.txt", columns=False),)

  def _verify(self) -> None:
    if phonemes(self.lexicon).symbols != self.symbols:
      raise ValueError("its phonemes are not those of lexicon.txt beside it")


def phonemes(lexicon: Lexicon) -> PhonemeVocabulary:
  """Classes of a lexicon's phonemes, then of their end-of-word variants, and the blank last."""
  found = lexicon.phonemes()
  symbols = (*found, *(p + WORD_END for p in found), BLANK)
  return PhonemeVocabulary(symbols, len(symbols) - 1, "", lexicon)


def _no_word(sounds: list[str]) -> str:
  return f"<{'-'.join(sounds)}>"
