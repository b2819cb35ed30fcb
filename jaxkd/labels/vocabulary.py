"""The classes of a model: text ↔ labels, by characters or by a Hugging Face vocabulary."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from jaxkd import files
from jaxkd.errors import UserError
from jaxkd.labels.text import fold, normalise

BLANK = "<blank>"
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


class CannotSpell(UserError):
  """Texts cannot be spelled exactly as the model's tokenizer would.

  Attributes:
    reason: what is not here of it.
  """

  def __init__(self, message: str, reason: str):
    super().__init__(message)
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The classes of a model; here characters, and vocabularies of Hugging Face's models.

  Attributes:
    symbols: one for each class, the blank included.
    blank_id: its index.
    space: the symbol that stands for the space between words; "|" in Hugging Face's vocabularies,
      "" where no class does.

  Symbols of several characters in <> or [], such as <unk>, stand for no text; other symbols may
  have several characters, too, and where several fit, the longest is meant.
  """

  symbols: tuple[str, ...]
  blank_id: int
  space: str = " "

  kind: ClassVar[str] = "characters"

  def __post_init__(self):
    marks = {self.symbols[i] for i in self.space_ids()}
    texts = [" " if symbol in marks else self._text(i) for i, symbol in enumerate(self.symbols)]
    written = {text: i for i, text in enumerate(texts) if text and text != " "}
    object.__setattr__(self, "_texts", tuple(texts))
    object.__setattr__(self, "_written", _Spelling(written))
    normal = folded(written)
    object.__setattr__(self, "_folded", _Spelling(normal))
    decomposed = {unicodedata.normalize("NFD", text): i for text, i in normal.items()}
    object.__setattr__(self, "_decomposed", _Spelling(decomposed))

  def _text(self, index: int) -> str:
    """What a class stands for, "" for the blank and its like."""
    symbol = self.symbols[index]
    return "" if index == self.blank_id or _SPECIAL.fullmatch(symbol) else symbol

  def __reduce__(self):
    """What follows from the fields is made again where a pickle is opened."""
    return type(self), tuple(getattr(self, f.name) for f in dataclasses.fields(self))

  def encode(self, text: str) -> np.ndarray:
    """i32[U] of a text: each word as it is, where the classes can write it, or else normalised.

    So a vocabulary with one case takes both, and one of composed or of decomposed letters, too.

    Raises:
      UnknownSymbol: a character is no class.
    """
    ids, between = [], self.space_ids()
    for word in text.split():
      if ids and not between:
        raise UnknownSymbol(" ")
      ids += [*(between if ids else ()), *self._spelled(word)]
    return np.array(ids, np.int32)

  def _spelled(self, word: str) -> list[int]:
    """Classes of a text without spaces."""
    with contextlib.suppress(UnknownSymbol):
      return self._written(word)
    word = normalise(word)
    try:
      return self._folded(word)
    except UnknownSymbol as error:
      with contextlib.suppress(UnknownSymbol):
        return self._decomposed(unicodedata.normalize("NFD", word))
      raise error

  def decode(self, ids: Iterable[int]) -> str:
    """Normalised text of labels (blanks and repeats already gone)."""
    return normalise("".join(self._texts[i] for i in ids))

  def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
    """The words of `decode`, each with the half-open range of the labels that spell it."""
    found = [(self.decode(ids[start:end]), start, end) for start, end in self._spans(ids)]
    return [span for span in found if span[0]]

  def _spans(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of labels, of which each is a word or nothing; here between spaces."""
    start = 0
    for index, label in enumerate(ids):
      if self._texts[label] == " ":
        yield start, index
        start = index + 1
    yield start, len(ids)

  def space_ids(self) -> tuple[int, ...]:
    """The class of the space between words; nothing where there is none."""
    for mark in (self.space, " "):
      if mark in self.symbols and (index := self.symbols.index(mark)) != self.blank_id:
        return (index,)
    return ()

  def spellings(self, word: str) -> list[tuple[int, ...]]:
    """Every class sequence that stands for a word inside a sentence, with what marks its end.

    Here one: the word's letters, then the space where the classes have one. Phonemes: every
    pronunciation, its last phoneme in the end-of-word variant. Sentencepiece: the word's pieces.

    Raises:
      UnknownSymbol: the classes cannot spell it.
    """
    return [(*self.encode(word).tolist(), *self.space_ids())]

  def save(self, path: pathlib.Path) -> list[pathlib.Path]:
    """Writes the classes as JSON; a lexicon or a sentencepiece model goes to a file beside it.

    Returns:
      The files that were written, `path` first.
    """
    beside = self._save_beside(path.parent)
    fields = {name: getattr(self, name) for name in ("kind", "symbols", "blank_id", "space")}
    files.write_text(path, json.dumps(fields, ensure_ascii=False) + "\n")
    return [path, *beside]

  @classmethod
  def load(cls, path: pathlib.Path) -> "Vocabulary":
    """Reads what `save` of any kind wrote.

    Raises:
      UserError: absent or damaged, or files that do not belong together.
    """
    try:
      found = json.loads(path.read_text(encoding="utf-8"))
      symbols, blank_id, space = tuple(found["symbols"]), int(found["blank_id"]), found["space"]
      if not 0 <= blank_id < len(symbols):
        raise ValueError(f"blank_id is {blank_id} of {len(symbols)} classes")
      kinds = {kind.kind: kind for kind in (Vocabulary, *Vocabulary.__subclasses__())}
      kind = kinds[found.get("kind", cls.kind)]
      labels = kind(symbols, blank_id, space, *kind._load_beside(path.parent))
      labels._verify()
      return labels
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path} does not hold the classes of a model: {error}") from error

  def fingerprint(self) -> str:
    """Another one where anything is different."""
    return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

  def _save_beside(self, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the subclass's own field to a file, which is returned."""
    return []

  @classmethod
  def _load_beside(cls, folder: pathlib.Path) -> tuple:
    """What `_save_beside` wrote."""
    return ()

  def _verify(self) -> None:
    """ValueError where the symbols are not those of the file beside."""


class _Spelling:
  """Spells texts with symbols: from the left, the longest that fits."""

  def __init__(self, ids: dict[str, int]):
    longest_first = sorted(ids, key=len, reverse=True)
    self._ids = ids
    # What is no symbol is found as a character, for the error.
    self._pattern = re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)

  def __call__(self, text: str) -> list[int]:
    try:
      return [self._ids[symbol] for symbol in self._pattern.findall(text)]
    except KeyError as error:
      raise UnknownSymbol(error.args[0]) from None


def folded(written: dict[str, int]) -> dict[str, int]:
  """The same classes by their normal forms; where several share one, its own class is meant."""
  found: dict[str, int] = {}
  for text, index in written.items():
    found.setdefault(fold(text), index)
  found |= {text: index for text, index in written.items() if fold(text) == text}
  # A sigma that has no form of its own at the ends of words.
  ends = {text[:-1] + "ς": index for text, index in found.items() if text.endswith("σ")}
  return ends | found


def characters(alphabet: str) -> Vocabulary:
  """One class for each normalised character, and the blank as the last class (as in the paper)."""
  symbols = tuple(dict.fromkeys(fold(alphabet)))
  return Vocabulary((*symbols, BLANK), len(symbols))


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
