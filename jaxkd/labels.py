"""Text ↔ class ids."""

import dataclasses
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from jaxkd.errors import UserError

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


@dataclasses.dataclass(frozen=True)
class Labels:
  """The classes of a model.

  Attributes:
    symbols: one for each class, the blank included.
    blank_id: its index.
    space: the symbol that stands for the space between words; "|" in Hugging Face's vocabularies.

  Symbols of several characters in <> or [], such as <unk>, stand for no text. Where a vocabulary
  has one case only, both cases are that one.
  """

  symbols: tuple[str, ...]
  blank_id: int
  space: str = " "

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

  def save(self, path: pathlib.Path) -> None:
    """Writes the classes as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(self), ensure_ascii=False) + "\n")

  @classmethod
  def load(cls, path: pathlib.Path) -> "Labels":
    """Reads what `save` wrote.

    Raises:
      UserError: absent or damaged.
    """
    try:
      found = json.loads(path.read_text())
      labels = cls(tuple(found["symbols"]), int(found["blank_id"]), found["space"])
      if not 0 <= labels.blank_id < len(labels.symbols):
        raise ValueError(f"blank_id is {labels.blank_id} of {len(labels.symbols)} classes")
      return labels
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path} does not hold the classes of a model: {error}") from error


def characters(alphabet: str) -> Labels:
  """One class for each character, and the blank as the last class (as in the paper)."""
  return Labels((*alphabet, BLANK), len(alphabet))


def normalise(text: str) -> str:
  """Lower case, composed characters (NFC), straight apostrophes, single spaces."""
  text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
  return " ".join(text.split())
