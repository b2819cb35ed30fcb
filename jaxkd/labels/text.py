"""The one form that every text is brought to before it is encoded, looked up or scored."""

import re
import unicodedata

from jaxkd import files

# Typographic, opening (as in o‘zbek), reversed, of Breton and Ukrainian letters, full-width.
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼ＇", "'"))
_DOTTED = re.compile("i\u0307+")  # what İ is in lower case: the i has its dot already


def normalise(text: str) -> str:
  """Lower case, composed characters (NFC), straight apostrophes, single spaces.

  Both cases of a word are one, so İ is i, and a Greek sigma has the form that its place asks for.
  Halves of surrogate pairs, which no file can hold, become U+FFFD. Twice is as once.
  """
  text = fold(text)
  if "σ" in text or "ς" in text:
    text = text.replace("σ", "Σ").replace("ς", "Σ").lower()
  return " ".join(text.split())


def fold(text: str) -> str:
  """What `normalise` does to each character, wherever it stands; spaces stay as they are."""
  text = unicodedata.normalize("NFD", files.SURROGATE.sub("\ufffd", text)).replace("Σ", "σ")
  text = _DOTTED.sub("i", text.lower()).translate(_APOSTROPHES)
  return unicodedata.normalize("NFC", text)
