"""Pieces of words as classes, by sentencepiece."""

import dataclasses
import functools
import io
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from jaxkd import files
from jaxkd.errors import UserError
from jaxkd.labels.segmentation import WORD_START
from jaxkd.labels.text import normalise
from jaxkd.labels.vocabulary import BLANK, UnknownSymbol, Vocabulary


@dataclasses.dataclass(frozen=True)
class PieceVocabulary(Vocabulary):
  """Pieces of words, of a unigram model by sentencepiece.

  Class i is the model's piece i + 1; its piece 0, the unknown, is no class, and the blank is last.

  Attributes:
    model: sentencepiece's own file.
  """

  model: bytes = b""

  kind: ClassVar[str] = "sentencepiece"

  def __post_init__(self):
    object.__setattr__(self, "_characters", {s for s in self.symbols if len(s) == 1})

  @functools.cached_property
  def _processor(self):
    return _sentencepiece().SentencePieceProcessor(model_proto=self.model)

  def encode(self, text: str) -> np.ndarray:
    """i32[U] of a text, normalised first.

    Raises:
      UnknownSymbol: a character that the transcripts of the model's training have not.
    """
    text = normalise(text)
    for character in text:
      if character == WORD_START or character not in self._characters and character != " ":
        raise UnknownSymbol(character)
    return np.array(self._processor.encode(text), np.int32) - 1

  def decode(self, ids: Iterable[int]) -> str:
    """Normalised text of labels (blanks and repeats already gone)."""
    pieces = (self.symbols[i] for i in ids if i != self.blank_id)
    return normalise("".join(pieces).replace(WORD_START, " "))

  def _spans(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """See `Vocabulary._spans`."""
    starts = [i for i, label in enumerate(ids) if self.symbols[label].startswith(WORD_START)]
    return itertools.pairwise([0, *starts, len(ids)])

  def spellings(self, word: str) -> list[tuple[int, ...]]:
    """See `Vocabulary.spellings`."""
    return [tuple(self.encode(word).tolist())]

  def _save_beside(self, folder: pathlib.Path) -> list[pathlib.Path]:
    path = folder / "sentencepiece.model"
    files.write_bytes(path, self.model)
    return [path]

  @classmethod
  def _load_beside(cls, folder: pathlib.Path) -> tuple:
    return ((folder / "sentencepiece.model").read_bytes(),)

  def _verify(self) -> None:
    if not self.model or _of_model(self.model).symbols != self.symbols:
      raise ValueError("its pieces are not those of sentencepiece.model beside it")


def sentencepiece(texts: Iterable[str], size: int) -> PieceVocabulary:
  """Classes of a unigram model that is trained on transcripts; the same each time.

  Args:
    texts: transcripts.
    size: of the classes, the blank included.

  Raises:
    UserError: the package is not installed, or the texts do not give so many classes.
  """
  package, model = _sentencepiece(), io.BytesIO()
  lines = [text for text in map(normalise, texts) if text]
  try:
    package.SentencePieceTrainer.train(
      sentence_iterator=iter(lines),
      model_writer=model,
      model_type="unigram",
      vocab_size=size,
      character_coverage=1.0,
      normalization_rule_name="identity",
      max_sentence_length=1 << 30,  # bytes; longer ones would be left out
      unk_id=0,
      bos_id=-1,
      eos_id=-1,
      pad_id=-1,
      num_threads=1,  # the sums, and so the pieces, depend on it
      minloglevel=3,
    )
  except RuntimeError as error:
    raise UserError(f"config.labels.size is {size}: {_size_limit(str(error))}") from error
  return _of_model(model.getvalue())


def _size_limit(reason: str) -> str:
  """What sentencepiece says about a size that does not fit."""
  if found := re.search(r"value <= (\d+)", reason):
    return f"these transcripts give at most {found[1]} classes"
  if found := re.search(r"\d+ vs (\d+)", reason):
    return f"it must be at least {found[1]}: each character of these transcripts needs a class"
  return f"sentencepiece cannot be trained on these transcripts: {' '.join(reason.split())[-200:]}"


def _of_model(model: bytes) -> PieceVocabulary:
  """The classes of a model's file; ValueError where it is damaged."""
  try:
    processor = _sentencepiece().SentencePieceProcessor(model_proto=model)
  except RuntimeError as error:
    raise ValueError("sentencepiece.model beside it is damaged") from error
  pieces = [processor.id_to_piece(i) for i in range(1, processor.get_piece_size())]
  return PieceVocabulary((*pieces, BLANK), len(pieces), "", model)


def _sentencepiece():
  try:
    import sentencepiece as package
  except ImportError as error:
    raise UserError(
      f"sentencepiece needs a package that is not there ({error}): pip install 'jaxkd[labels]'"
    ) from error
  return package
