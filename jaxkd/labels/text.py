"""The one form that every text is brought to before it is encoded, looked up or scored."""

import unicodedata


def normalise(text: str) -> str:
  """Lower case, composed characters (NFC), straight apostrophes, single spaces."""
  text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
  return " ".join(text.split())
