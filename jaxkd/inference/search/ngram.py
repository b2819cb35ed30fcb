"""Word n-gram language models: estimated from transcripts, written and read as ARPA files."""

import bz2
import collections
import dataclasses
import gzip
import io
import lzma
import math
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jaxkd import files
from jaxkd.errors import UserError

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
_ZERO = -99.0  # log10 of no probability, as written for <s>
# Discounts of counts 1, 2, and 3 or more where the counts of counts give none, as in KenLM's lmplz.
_FALLBACK = (0.5, 1.0, 1.5)
_BINARY = b"mmap lm http://kheafield.com/code"
_PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_SPACES = " \t\r\n"  # others, such as no-break ones, are parts of words, as in KenLM

Gram = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NGrams:
  """A back-off model.

  Attributes:
    tables: for each order from 1 on, words → (log10 p of the last word after the others, log10 of
      the back-off weight of all of them as a context).
  """

  tables: tuple[dict[Gram, tuple[float, float]], ...]

  @property
  def order(self) -> int:
    return len(self.tables)

  @property
  def words(self) -> list[str]:
    """The vocabulary without <s>, </s> and <unk>."""
    return [word for (word,) in self.tables[0] if word not in (START, END, UNKNOWN)]

  def score(self, context: Iterable[str], word: str) -> float:
    """log10 p of a word after others, of which as many as the order has room for are read.

    Words outside the vocabulary are <unk>; where the model has none, they have log10 p of -99.

    Args:
      context: the words before, <s> first where the sentence starts.
      word: may be </s>.
    """
    known = lambda w: w if (w,) in self.tables[0] else UNKNOWN
    history = tuple(known(w) for w in context)[-(self.order - 1) :] if self.order > 1 else ()
    weight = 0.0
    for start in range(len(history) + 1):
      rest = history[start:]
      if entry := self.tables[len(rest)].get((*rest, known(word))):
        return weight + entry[0]
      if rest and (entry := self.tables[len(rest) - 1].get(rest)):
        weight += entry[1]
    return weight + _ZERO

  def sentence(self, text: str) -> float:
    """log10 p of a whole sentence, its end included."""
    words = [START, *text.split(), END]
    return sum(self.score(words[:i], words[i]) for i in range(1, len(words)))


def estimate(texts: Iterable[str], order: int) -> NGrams:
  """Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998; Heafield et al. 2013).

  Highest order: counts; lower orders: of how many words an n-gram is the continuation, or its
  count where it starts with <s>. Three discounts an order come from the counts of counts; where
  those give none between 0 and the count, as in tiny or closed corpora, they are 0.5, 1 and 1.5.
  Words are interpolated with the uniform distribution over the vocabulary, </s> and <unk>, so that
  <unk> has its share of what is left.

  Args:
    texts: transcripts, words between spaces; empty ones are left out.
    order: 1 or more.

  Raises:
    UserError: no words at all.
  """
  counts = _counts(texts, order)
  if not counts[0]:
    raise UserError("a language model needs transcripts with words in them: there are none")
  adjusted = [_continuations(counts, n) for n in range(1, order)] + [counts[-1]]
  adjusted[0].pop((START,), None)
  lower: dict[Gram, float] = {}
  probabilities, weights = [], []
  for table in adjusted:
    found, left = _interpolated(table, lower)
    probabilities.append(found)
    weights.append(left)
    lower = found
  probabilities[0][(START,)] = 0.0
  weights.append({})
  return NGrams(
    tuple(
      {gram: (_log10(p), _log10(weights[n + 1].get(gram, 1.0))) for gram, p in found.items()}
      for n, found in enumerate(probabilities)
    )
  )


def _counts(texts: Iterable[str], order: int) -> list[collections.Counter]:
  """For each order, how often each n-gram occurs; <s> once before each sentence."""
  counts = [collections.Counter() for _ in range(order)]
  for text in texts:
    words = (START, *(w for w in text.split() if w not in (START, END)), END)
    if len(words) == 2:
      continue
    for n, table in enumerate(counts, 1):
      table.update(words[i : i + n] for i in range(len(words) - n + 1))
  return counts


def _continuations(counts: list[collections.Counter], n: int) -> collections.Counter:
  """How many different words come before each n-gram; the count of those that start with <s>."""
  table = collections.Counter(gram[1:] for gram in counts[n])
  table.update({gram: c for gram, c in counts[n - 1].items() if gram[0] == START})
  return table


def _interpolated(table: collections.Counter, lower: dict[Gram, float]):
  """n-gram → p, and context → weight of the lower order.

  Args:
    table: n-gram → adjusted count.
    lower: p of the order below; {} for the uniform distribution.
  """
  discounts = _discounts(table.values())
  discount = lambda count: discounts[min(count, 3) - 1]
  total, taken = collections.Counter(), collections.defaultdict(float)
  for gram, count in table.items():
    total[gram[:-1]] += count
    taken[gram[:-1]] += discount(count)
  weights = {context: taken[context] / total[context] for context in total}
  uniform = 1 / len(table.keys() | {(UNKNOWN,)})
  found = {
    gram: (count - discount(count)) / total[gram[:-1]]
    + weights[gram[:-1]] * (lower[gram[1:]] if lower else uniform)
    for gram, count in table.items()
  }
  if not lower:
    found.setdefault((UNKNOWN,), weights[()] * uniform)
  return found, weights


def _discounts(counts: Iterable[int]) -> tuple[float, float, float]:
  """What is taken from counts of 1, 2, and 3 or more (Chen and Goodman 1998)."""
  n1, n2, n3, n4 = map(collections.Counter(counts).__getitem__, (1, 2, 3, 4))
  if not (n1 and n2 and n3):
    return _FALLBACK
  y = n1 / (n1 + 2 * n2)
  found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
  return found if all(0 < d <= k for k, d in enumerate(found, 1)) else _FALLBACK


def _log10(p: float) -> float:
  return math.log10(p) if p > 0 else _ZERO


def write_arpa(model: NGrams, path: pathlib.Path) -> None:
  """Writes a model; scores survive the round trip to 1e-7."""
  text = io.StringIO()
  text.write("\\data\\\n")
  for n, table in enumerate(model.tables, 1):
    text.write(f"ngram {n}={len(table)}\n")
  for n, table in enumerate(model.tables, 1):
    text.write(f"\n\\{n}-grams:\n")
    for gram, (p, weight) in table.items():
      # No back-off is 0, and those of the highest order have no field for it.
      after = f"\t{weight:.7f}" if n < model.order else ""
      text.write(f"{p:.7f}\t{' '.join(gram)}{after}\n")
  text.write("\n\\end\\\n")
  files.write_text(path, text.getvalue())


def read_arpa(path: pathlib.Path) -> NGrams:
  """A whole model, in memory.

  Raises:
    UserError: as `scan_arpa` says.
  """
  tables: list[dict[Gram, tuple[float, float]]] = []
  for gram, p, weight in scan_arpa(path):
    if len(gram) > len(tables):
      tables.append({})
    tables[-1][gram] = p, weight
  return NGrams(tuple(tables))


class Contents(NamedTuple):
  """What is in an ARPA file.

  Attributes:
    sizes: n-grams of each order.
    words: word → log10 p of it alone; without <s>, </s> and <unk>.
    finite: no probability and no back-off weight is 0, whose logarithm is -inf.
  """

  sizes: tuple[int, ...]
  words: dict[str, float]
  finite: bool


def read_contents(path: pathlib.Path) -> Contents:
  """What is in an ARPA file, which is checked from end to end but not kept.

  Raises:
    UserError: as `scan_arpa` says.
  """
  sizes, words, finite = collections.Counter(), {}, True
  for gram, p, weight in scan_arpa(path):
    sizes[len(gram)] += 1
    finite = finite and math.isfinite(p + weight)
    if len(gram) == 1 and gram[0].lower() not in (START, END, UNKNOWN):
      words[gram[0]] = p
  return Contents(tuple(sizes[order] for order in sorted(sizes)), words, finite)


def write_plain(path: pathlib.Path, contents: Contents, target: pathlib.Path) -> None:
  """Writes an ARPA file in the form that every reader takes: no compression, marks, or -inf.

  Raises:
    UserError: as `scan_arpa` says.
  """
  order = 0
  with target.open("w", encoding="utf-8", newline="\n") as file:
    file.write("\\data\\\n")
    file.writelines(f"ngram {n}={size}\n" for n, size in enumerate(contents.sizes, 1))
    for gram, p, weight in scan_arpa(path):
      if len(gram) > order:
        order = len(gram)
        file.write(f"\n\\{order}-grams:\n")
      after = f"\t{max(weight, _ZERO):.9g}" if order < len(contents.sizes) else ""
      file.write(f"{max(p, _ZERO):.9g}\t{' '.join(gram)}{after}\n")
    file.write("\n\\end\\\n")


def scan_arpa(path: pathlib.Path) -> Iterator[tuple[Gram, float, float]]:
  """Every n-gram of an ARPA file: words, log10 p, log10 of the back-off weight; -inf for 0.

  The file may be compressed (gzip, bzip2, xz), whatever its name is.

  Raises:
    UserError: absent, not UTF-8, or not ARPA: with the line's number.
  """
  try:
    with _open(path) as file:
      yield from _Arpa(path, file).entries()
  except (OSError, EOFError, UnicodeDecodeError, zlib.error, lzma.LZMAError) as error:
    raise UserError(f"{path} cannot be read as a language model (ARPA): {error}") from error


def _open(path: pathlib.Path):
  """The lines of a file, by what it begins with."""
  with path.open("rb") as file:
    head = file.read(len(_BINARY))
  if head == _BINARY:
    raise UserError(
      f"{path} is a binary file of KenLM, which does not say how its words are written: give the "
      "ARPA file that it was made from"
    )
  opened = next((open_ for magic, open_ in _PACKED.items() if head.startswith(magic)), open)
  return opened(path, "rt", encoding="utf-8-sig")


class _Arpa:
  """One pass over the lines of an ARPA file."""

  def __init__(self, path: pathlib.Path, lines: Iterable[str]):
    self._path, self._lines = path, enumerate(lines, 1)
    self._number = 0

  def _fail(self, what: str):
    raise UserError(f"{self._path}:{self._number}: {what}: this is no ARPA file")

  def _next(self, wanted: str) -> str:
    """The next line that is not empty."""
    for number, line in self._lines:
      self._number = number
      if line := line.strip(_SPACES):
        return line
    self._number += 1
    return self._fail(f"the file ends where {wanted} should be")

  def entries(self) -> Iterator[tuple[Gram, float, float]]:
    while self._next("\\data\\") != "\\data\\":
      pass
    sizes: list[int] = []
    while (line := self._next("\\1-grams:")).startswith("ngram"):
      sizes.append(self._size(line, len(sizes) + 1))
    if not sizes:
      self._fail(f"{line[:40]!r} instead of ngram 1=COUNT")
    for order, size in enumerate(sizes, 1):
      if line != f"\\{order}-grams:":
        self._fail(f"{line[:40]!r} instead of \\{order}-grams:")
      after = f"\\{order + 1}-grams:" if order < len(sizes) else "\\end\\"
      found = 0
      while not (line := self._next(after)).startswith("\\"):
        found += 1
        yield self._entry(line, order)
      if found != size:
        self._fail(f"{found} {order}-grams, and \\data\\ says {size}")
    if line != "\\end\\":
      self._fail(f"{line[:40]!r} instead of \\end\\")

  def _size(self, line: str, order: int) -> int:
    name, _, count = line.removeprefix("ngram").partition("=")
    if name.strip() != str(order) or not count.strip().isdecimal():
      self._fail(f"{line[:40]!r} instead of ngram {order}=COUNT")
    return int(count)

  def _entry(self, line: str, order: int) -> tuple[Gram, float, float]:
    fields = re.split(f"[{_SPACES}]+", line)
    if len(fields) not in (order + 1, order + 2):
      self._fail(f"{line[:60]!r} is no probability, {order} words and perhaps a back-off weight")
    try:
      p, weight = float(fields[0]), float(fields[order + 1]) if len(fields) > order + 1 else 0.0
    except ValueError:
      self._fail(f"{line[:60]!r} has something else than a number")
    if not (p <= 0 and weight < math.inf):  # nor is nan
      self._fail(f"{line[:60]!r} has no log10 probability (0 or below)")
    return tuple(fields[1 : order + 1]), p, weight
