"""What stands around a model in Hugging Face's tokenizer.json: normalizer, pre-tokenizer, decoder.

Each step is what the tokenizers library does, for texts with single spaces and none at the ends.
"""

import base64
import functools
import re
import struct
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

from jaxkd.labels.segmentation import NotHere

# Unicode's White_Space, which Python's `str.isspace` has more of.
_WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORD = re.compile(f"[^{_WHITE}]+")
_ENDS = (re.compile(f"^[{_WHITE}]+"), re.compile(rf"[{_WHITE}]+\Z"))
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
# Regular expressions that mean the same in Oniguruma and here.
_PLAIN = re.compile(r"(?:[^\\\[\](){}.*?+|^$]|\{\d+,?\d*\}|[+|]|\\[Azs]|\\[^\w\s])*")


class Part(NamedTuple):
  """A stretch of a text.

  Attributes:
    text: what it is.
    first: whether it is at the text's beginning.
  """

  text: str
  first: bool


def pattern_of(step: dict) -> re.Pattern:
  """What a step looks for.

  Raises:
    NotHere: a regular expression that may mean something else here.
  """
  given = step["pattern"]
  if "String" in given:
    return re.compile(re.escape(given["String"]))
  regex = given["Regex"]
  if not _PLAIN.fullmatch(regex):
    raise NotHere(f"its {step['type']} has the pattern {regex!r}")
  return re.compile(regex.replace(r"\z", r"\Z").replace(r"\s", f"[{_WHITE}]"))


def _several(make: Callable, steps: list[dict]) -> Callable:
  """One function after another."""
  made = [make(step) for step in steps]
  return lambda value: functools.reduce(lambda found, step: step(found), made, value)


def _kind(step: dict, here: dict, what: str):
  """The maker of a step.

  Raises:
    NotHere: there is none.
  """
  if step["type"] not in here:
    raise NotHere(f"its {what} has a {step['type']!r}: known are {', '.join(here)}")
  return here[step["type"]]


# Normalizers: text → text.


def normalizer(step: dict | None) -> Callable[[str], str]:
  """What a tokenizer.json's `normalizer` does; raises NotHere."""
  if step is None:
    return lambda text: text
  return _kind(step, _NORMALIZERS, "normalizer")(step)


def _strip(step: dict) -> Callable[[str], str]:
  sides = zip(("strip_left", "strip_right"), _ENDS, strict=True)
  wanted = [end for side, end in sides if step.get(side)]
  return lambda text: functools.reduce(lambda found, end: end.sub("", found), wanted, text)


def _replace(step: dict) -> Callable[[str], str]:
  pattern, content = pattern_of(step), step["content"]
  return lambda text: pattern.sub(lambda _: content, text)


def _unicode(form: str) -> Callable:
  return lambda step: functools.partial(unicodedata.normalize, form)


def _prepend(step: dict) -> Callable[[str], str]:
  return lambda text: step["prepend"] + text if text else text


def _lowercase(step: dict) -> Callable[[str], str]:
  return lambda text: "".join(character.lower() for character in text)  # each on its own


def _precompiled(step: dict) -> Callable[[str], str]:
  """Sentencepiece's own table of characters: a double-array trie, and what stands for them."""
  blob = base64.b64decode(step.get("precompiled_charsmap") or "")
  if not blob:
    return lambda text: text
  (size,) = struct.unpack_from("<I", blob)
  units = struct.unpack_from(f"<{size // 4}I", blob, 4)
  table = blob[4 + size :]

  def found(text: str) -> str | None:
    """What stands for the shortest beginning of a text that the table has; None for none."""
    node = _offset(units[0])
    for byte in text.encode(errors="replace"):
      node ^= byte
      unit = units[node]
      if unit & 0x800000FF != byte:
        return None
      node ^= _offset(unit)
      if unit >> 8 & 1:
        start = units[node] & 0x7FFFFFFF
        return table[start:].partition(b"\0")[0].decode()
    return None

  def of_cluster(cluster: str) -> str:
    if len(cluster.encode(errors="replace")) < 6 and (whole := found(cluster)) is not None:
      return whole
    return "".join(c if (new := found(c)) is None else new for c in cluster)

  return lambda text: "".join(map(of_cluster, _clusters(text)))


def _offset(unit: int) -> int:
  return (unit >> 10) << ((unit & 0x200) >> 6)


def _clusters(text: str) -> list[str]:
  """Characters with the marks that follow them, as far as tables of short ones ask."""
  found: list[str] = []
  for character in text:
    joins = unicodedata.category(character) in ("Mn", "Me", "Mc") or character in "\u200c\u200d"
    if joins and found and unicodedata.category(found[-1][0]) not in ("Cc", "Cf", "Zl", "Zp"):
      found[-1] += character
    else:
      found.append(character)
  return found


_NORMALIZERS = {
  "Sequence": lambda step: _several(normalizer, step["normalizers"]),
  "Precompiled": _precompiled,
  "Replace": _replace,
  "Strip": _strip,
  "Prepend": _prepend,
  "Lowercase": _lowercase,
  **{form: _unicode(form) for form in ("NFC", "NFD", "NFKC", "NFKD")},
}

# Pre-tokenizers: parts → smaller parts.


def pre_tokenizer(step: dict | None) -> Callable[[list[Part]], list[Part]]:
  """What a tokenizer.json's `pre_tokenizer` does; raises NotHere."""
  if step is None:
    return lambda parts: parts
  return _kind(step, _PRE_TOKENIZERS, "pre_tokenizer")(step)


def _each(split: Callable[[Part], Iterable[tuple[int, str]]]) -> Callable[[list[Part]], list[Part]]:
  """Splits every part, by a function that says where in it each smaller one begins."""

  def apply(parts: list[Part]) -> list[Part]:
    return [
      Part(text, part.first and start == 0) for part in parts for start, text in split(part) if text
    ]

  return apply


def _metaspace(step: dict) -> Callable[[list[Part]], list[Part]]:
  """Spaces become marks, one more of which stands before the text."""
  mark, scheme = step["replacement"], _scheme(step)
  cut = re.compile(f"{re.escape(mark)}?[^{re.escape(mark)}]*", re.DOTALL)

  def split(part: Part) -> list[tuple[int, str]]:
    text = part.text.replace(" ", mark)
    if not text.startswith(mark) and (scheme == "always" or scheme == "first" and part.first):
      text = mark + text
    if not step.get("split", True):
      return [(0, text)]
    return [(found.start(), found[0]) for found in cut.finditer(text)]

  return _each(split)


def _scheme(step: dict) -> str:
  """Where a mark is put before a text, "always", "first" or "never", also in older files."""
  before = step.get("add_prefix_space", True)
  return step.get("prepend_scheme") or ("always" if before else "never")


def _split(step: dict) -> Callable[[list[Part]], list[Part]]:
  """Cut at what is looked for, which is dropped, on its own, or of the part that follows."""
  pattern, behaviour = pattern_of(step), step["behavior"]
  if step.get("invert") or behaviour not in ("Removed", "Isolated", "MergedWithNext"):
    raise NotHere(f"its pre_tokenizer splits with {behaviour!r}, invert={step.get('invert')}")

  def split(part: Part) -> list[tuple[int, str]]:
    starts = [0]
    for found in pattern.finditer(part.text):
      starts += [found.start()] if behaviour == "MergedWithNext" else list(found.span())
    ends = [*starts[1:], len(part.text)]
    texts = [(start, part.text[start:end]) for start, end in zip(starts, ends, strict=True)]
    return texts[::2] if behaviour == "Removed" else texts

  return _each(split)


def _words(part: Part) -> list[tuple[int, str]]:
  return [(found.start(), found[0]) for found in _WORD.finditer(part.text)]


_PRE_TOKENIZERS = {
  "Sequence": lambda step: _several(pre_tokenizer, step["pretokenizers"]),
  "Metaspace": _metaspace,
  "WhitespaceSplit": lambda step: _each(_words),
  "Split": _split,
}

# Decoders: pieces → pieces that are written one after another.


def decoder(step: dict | None) -> Callable[[list[str]], list[str]]:
  """What a tokenizer.json's `decoder` does; raises NotHere."""
  if step is None:
    return lambda pieces: [" ".join(pieces)]
  return _kind(step, _DECODERS, "decoder")(step)


def _of_marks(step: dict) -> Callable[[list[str]], list[str]]:
  """Marks become spaces, but those of the first piece, which are nothing."""
  mark = step["replacement"]
  of_first = " " if _scheme(step) == "never" else ""

  def apply(pieces: list[str]) -> list[str]:
    return [p.replace(mark, " " if i else of_first) for i, p in enumerate(pieces)]

  return apply


def _of_bytes(step: dict) -> Callable[[list[str]], list[str]]:
  """Pieces of bytes become the characters that they spell."""

  def apply(pieces: list[str]) -> list[str]:
    found, spelled = [], b""
    for piece in [*pieces, ""]:
      if byte := _BYTE.fullmatch(piece):
        spelled += bytes.fromhex(byte[1])
        continue
      if spelled:
        found.append(_characters(spelled))
        spelled = b""
      found.append(piece)
    return found[:-1]

  return apply


def _characters(spelled: bytes) -> str:
  try:
    return spelled.decode()
  except UnicodeDecodeError:
    return "\ufffd" * len(spelled)


def _stripped(step: dict) -> Callable[[list[str]], list[str]]:
  """So many of a character less at the ends of every piece."""
  content = re.escape(step["content"])
  start, stop = (int(step[side]) for side in ("start", "stop"))
  ends = re.compile(f"^(?:{content}){{0,{start}}}"), re.compile(rf"(?:{content}){{0,{stop}}}\Z")
  return lambda pieces: [ends[1].sub("", ends[0].sub("", piece), count=1) for piece in pieces]


def _replaced(step: dict) -> Callable[[list[str]], list[str]]:
  of_piece = _replace(step)
  return lambda pieces: [of_piece(piece) for piece in pieces]


_DECODERS = {
  "Sequence": lambda step: _several(decoder, step["decoders"]),
  "Metaspace": _of_marks,
  "Fuse": lambda step: lambda pieces: ["".join(pieces)],
  "Replace": _replaced,
  "ByteFallback": _of_bytes,
  "Strip": _stripped,
}
