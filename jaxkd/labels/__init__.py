"""Text ↔ class ids: characters, a teacher's vocabulary, phonemes, sentencepiece."""

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from jaxkd.errors import UserError
from jaxkd.labels import lexicon as lexicon_lib
from jaxkd.labels.lexicon import WORD_END, Lexicon, Pronunciation
from jaxkd.labels.text import normalise

BLANK = "<blank>"
WORD_START = "▁"  # sentencepiece's mark of a space, at the head of pieces that begin a word
_SPECIAL = re.compile(r"<.+>|\[.+\]")


class UnknownSymbol(ValueError):
  """A character that no class stands for.

  Attributes:
    symbol: the character.
  """

  def __init__(self, symbol: str):
    super().__init__(f"no class for {symbol!r}")
    self.symbol = symbol


class UnknownWords(UnknownSymbol):
  """Words that have no pronunciation.

  Attributes:
    words: all of the text, each once.
  """

  def __init__(self, words: Iterable[str]):
    self.words = tuple(dict.fromkeys(words))
    super().__init__(self.words[0])


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The classes of a model; here characters, and vocabularies of Hugging Face's models.

  Attributes:
    symbols: one for each class, the blank included.
    blank_id: its index.
    space: the symbol that stands for the space between words; "|" in Hugging Face's vocabularies,
      "" where no class does.

  Symbols of several characters in <> or [], such as <unk>, stand for no text. Where a vocabulary
  has one case only, both cases are that one.
  """

  symbols: tuple[str, ...]
  blank_id: int
  space: str = " "

  kind: ClassVar[str] = "characters"

  def __post_init__(self):
    texts, ids = [], {}
    for index, symbol in enumerate(self.symbols):
      special = index == self.blank_id or _SPECIAL.fullmatch(symbol)
      texts.append("" if special else " " if symbol == self.space else symbol)
      if texts[-1]:
        ids.setdefault(texts[-1].lower(), index)
    ids |= {text: i for i, text in enumerate(texts) if text and text == text.lower()}
    object.__setattr__(self, "_texts", tuple(texts))
    object.__setattr__(self, "_ids", ids)

  def __reduce__(self):
    """What follows from the fields is made again where a pickle is opened."""
    return type(self), tuple(getattr(self, f.name) for f in dataclasses.fields(self))

  def encode(self, text: str) -> np.ndarray:
    """i32[U] of a text, normalised first.

    Raises:
      UnknownSymbol: a character is no class.
    """
    try:
      return np.array([self._ids[c] for c in normalise(text)], np.int32)
    except KeyError as error:
      raise UnknownSymbol(error.args[0]) from None

  def decode(self, ids: Iterable[int]) -> str:
    """Normalised text of labels (blanks and repeats already gone)."""
    return normalise("".join(self._texts[i] for i in ids))

  def spellings(self, word: str) -> list[tuple[int, ...]]:
    """Every class sequence that stands for a word inside a sentence, with what marks its end.

    Here one: the word's letters, then the space where the classes have one. Phonemes: every
    pronunciation, its last phoneme in the end-of-word variant. Sentencepiece: the word's pieces.

    Raises:
      UnknownSymbol: the classes cannot spell it.
    """
    end = (self._ids[" "],) if " " in self._ids else ()
    return [(*self.encode(word).tolist(), *end)]

  def save(self, path: pathlib.Path) -> None:
    """Writes the classes as JSON; a lexicon or a sentencepiece model goes to a file beside it."""
    self._save_beside(path.parent)
    fields = {name: getattr(self, name) for name in ("kind", "symbols", "blank_id", "space")}
    path.write_text(json.dumps(fields, ensure_ascii=False) + "\n")

  @classmethod
  def load(cls, path: pathlib.Path) -> "Vocabulary":
    """Reads what `save` of any kind wrote.

    Raises:
      UserError: absent or damaged, or files that do not belong together.
    """
    try:
      found = json.loads(path.read_text())
      symbols, blank_id, space = tuple(found["symbols"]), int(found["blank_id"]), found["space"]
      if not 0 <= blank_id < len(symbols):
        raise ValueError(f"blank_id is {blank_id} of {len(symbols)} classes")
      kinds = {kind.kind: kind for kind in (Vocabulary, PhonemeVocabulary, PieceVocabulary)}
      kind = kinds[found.get("kind", cls.kind)]
      labels = kind(symbols, blank_id, space, *kind._load_beside(path.parent))
      labels._verify()
      return labels
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path} does not hold the classes of a model: {error}") from error

  def fingerprint(self) -> str:
    """Another one where anything is different."""
    return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

  def _save_beside(self, folder: pathlib.Path) -> None:
    """Writes the subclass's own field to a file."""

  @classmethod
  def _load_beside(cls, folder: pathlib.Path) -> tuple:
    """What `_save_beside` wrote."""
    return ()

  def _verify(self) -> None:
    """ValueError where the symbols are not those of the file beside."""


def characters(alphabet: str) -> Vocabulary:
  """One class for each character, and the blank as the last class (as in the paper)."""
  return Vocabulary((*alphabet, BLANK), len(alphabet))


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

  def spellings(self, word: str) -> list[tuple[int, ...]]:
    """See `Vocabulary.spellings`."""
    word = normalise(word)
    if word not in self.lexicon:
      raise UnknownWords([word])
    return [self._spelled(sounds) for sounds in self.lexicon[word]]

  def _spelled(self, sounds: Pronunciation) -> tuple[int, ...]:
    *inner, last = sounds
    return (*(self._ids[p] for p in inner), self._ids[last + WORD_END])

  def _save_beside(self, folder: pathlib.Path) -> None:
    self.lexicon.write(folder / "lexicon.txt")

  @classmethod
  def _load_beside(cls, folder: pathlib.Path) -> tuple:
    return (lexicon_lib.read(folder / "lexicon.txt"),)

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

  def spellings(self, word: str) -> list[tuple[int, ...]]:
    """See `Vocabulary.spellings`."""
    return [tuple(self.encode(word).tolist())]

  def _save_beside(self, folder: pathlib.Path) -> None:
    (folder / "sentencepiece.model").write_bytes(self.model)

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


def check_same(
  one: Vocabulary, other: Vocabulary, name: str, other_name: str, fix: str = ""
) -> None:
  """Two models have the same classes, so that their outputs can be compared class by class.

  Args:
    one, other: the classes.
    name, other_name: of what has them, for the error.
    fix: what to do about it, for the error.

  Raises:
    UserError: they differ; says which symbols only one of them has.
  """
  if (one.symbols, one.blank_id) == (other.symbols, other.blank_id):
    return
  only = [
    f"only {who} has {_few(mine)}"
    for who, mine in (
      (name, [s for s in one.symbols if s not in other.symbols]),
      (other_name, [s for s in other.symbols if s not in one.symbols]),
    )
    if mine
  ]
  raise UserError(
    f"{name} and {other_name} have other classes ({len(one.symbols)} and {len(other.symbols)}): "
    + "; ".join([*(only or [_first_moved(one, other)]), *([fix] if fix else [])])
  )


def _few(symbols: list[str], count: int = 5) -> str:
  rest = f" and {len(symbols) - count} more" if len(symbols) > count else ""
  return ", ".join(map(repr, symbols[:count])) + rest


def _first_moved(one: Vocabulary, other: Vocabulary) -> str:
  """Where two vocabularies of the same symbols differ."""
  pairs = zip(one.symbols, other.symbols, strict=False)
  index = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
  if index is None:
    return f"the blank is class {one.blank_id} and {other.blank_id}"
  return (
    f"the same symbols in another order: class {index} is {one.symbols[index]!r} and "
    f"{other.symbols[index]!r}"
  )
