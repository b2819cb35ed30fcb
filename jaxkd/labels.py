"""Text ↔ class ids."""

import dataclasses
import json
import pathlib
import unicodedata
from collections.abc import Iterable

import numpy as np

from jaxkd.errors import UserError

BLANK = "<blank>"


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
  """

  symbols: tuple[str, ...]
  blank_id: int

  def __post_init__(self):
    ids = {s: i for i, s in enumerate(self.symbols) if i != self.blank_id}
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
    """Text of labels (blanks and repeats already gone), with single spaces between words."""
    return " ".join("".join(self.symbols[i] for i in ids).split())

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
      return cls(tuple(found["symbols"]), int(found["blank_id"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path} does not hold the classes of a model: {error}") from error


def characters(alphabet: str) -> Labels:
  """One class for each character, and the blank as the last class (as in the paper)."""
  return Labels((*alphabet, BLANK), len(alphabet))


def normalise(text: str) -> str:
  """Lower case, composed characters (NFC), straight apostrophes, single spaces."""
  text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
  return " ".join(text.split())
