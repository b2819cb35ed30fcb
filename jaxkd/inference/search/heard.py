"""What a search hears: labels, and the words that they spell."""

from collections.abc import Iterable
from typing import NamedTuple

from jaxkd.labels import CannotSpell, UnknownSymbol, Vocabulary


class Heard(NamedTuple):
  """What a search hears in some frames.

  Attributes:
    labels: classes in their order, without blanks; repeats are there twice.
    words: texts with half-open ranges of labels; an empty range where no labels are known.
  """

  labels: tuple[int, ...] = ()
  words: tuple[tuple[str, int, int], ...] = ()

  @property
  def text(self) -> str:
    """The words with spaces between."""
    return " ".join(word for word, _, _ in self.words)


def of_labels(labels: Iterable[int], vocabulary: Vocabulary) -> Heard:
  """The words of a label sequence."""
  labels = tuple(map(int, labels))
  return Heard(labels, tuple(vocabulary.words(labels)))


def of_text(text: str, vocabulary: Vocabulary) -> Heard:
  """A text, each word in its first spelling; those that cannot be spelled have no labels."""
  spaces, labels, words = vocabulary.space_ids(), [], []
  for word in text.split():
    try:
      ids = list(vocabulary.spellings(word)[0])
    except (UnknownSymbol, CannotSpell):
      ids = []
    if ids and tuple(ids[-1:]) == spaces:
      ids.pop()
    if ids and labels:
      labels += spaces
    words.append((word, len(labels), len(labels) + len(ids)))
    labels += ids
  return Heard(tuple(labels), tuple(words))
