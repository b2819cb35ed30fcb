"""Tokens between spaces as classes, such as phonemes that a Hugging Face model hears."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from jaxkd.labels.text import normalise
from jaxkd.labels.vocabulary import UnknownSymbol, Vocabulary, folded


@dataclasses.dataclass(frozen=True)
class TokenVocabulary(Vocabulary):
  """Texts are tokens between spaces, `n oʊ`, as in transformers' Wav2Vec2PhonemeCTCTokenizer.

  No class stands for a space: every token counts as a word. The mark between words (`space`, ""
  where there is none) is a token that texts may have and that is not shown.
  """

  kind: ClassVar[str] = "tokens"

  def __post_init__(self):
    texts = [self._text(i) for i in range(len(self.symbols))]
    written = {text: i for i, text in enumerate(texts) if text}
    shown = tuple("" if text == self.space else text for text in texts)
    object.__setattr__(self, "_texts", shown)
    object.__setattr__(self, "_written", written)
    object.__setattr__(self, "_folded", folded(written))

  def encode(self, text: str) -> np.ndarray:
    """i32[U] of a text: each token as it is, where it is a class, or else normalised.

    Raises:
      UnknownSymbol: a token is no class.
    """
    return np.array([self._class(token) for token in text.split()], np.int32)

  def _class(self, token: str) -> int:
    index = self._written.get(token, self._folded.get(normalise(token)))
    if index is None:
      raise UnknownSymbol(token)
    return index

  def decode(self, ids: Iterable[int]) -> str:
    """Normalised tokens of labels (blanks and repeats already gone), spaces between them."""
    return normalise(" ".join(self._texts[i] for i in ids))

  def _spans(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """See `Vocabulary._spans`."""
    return ((i, i + 1) for i in range(len(ids)))

  def spellings(self, word: str) -> list[tuple[int, ...]]:
    """See `Vocabulary.spellings`."""
    return [tuple(self.encode(word).tolist())]
