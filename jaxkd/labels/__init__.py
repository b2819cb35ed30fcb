"""Vocabularies: which classes a model has, and how text is spelled with them."""

from jaxkd.labels.choice import Choice, choose
from jaxkd.labels.marked import MarkedVocabulary
from jaxkd.labels.phonemes import PhonemeVocabulary, phonemes
from jaxkd.labels.pieces import PieceVocabulary, sentencepiece
from jaxkd.labels.segmentation import WORD_START
from jaxkd.labels.subwords import SubwordVocabulary
from jaxkd.labels.text import normalise
from jaxkd.labels.tokens import TokenVocabulary
from jaxkd.labels.vocabulary import (
  BLANK,
  CannotSpell,
  UnknownSymbol,
  UnknownWords,
  Vocabulary,
  characters,
  check_same,
)

__all__ = [
  "BLANK",
  "CannotSpell",
  "Choice",
  "MarkedVocabulary",
  "WORD_START",
  "PhonemeVocabulary",
  "PieceVocabulary",
  "SubwordVocabulary",
  "TokenVocabulary",
  "UnknownSymbol",
  "UnknownWords",
  "Vocabulary",
  "characters",
  "check_same",
  "choose",
  "normalise",
  "phonemes",
  "sentencepiece",
]
