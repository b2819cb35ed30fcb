"""Debian's recorded English telephone prompts: one professional speaker, 25 minutes, 8 kHz.

Packages asterisk-core-sounds-en-wav (recordings) and asterisk-core-sounds-en (transcripts),
CC BY-SA 3.0.
"""

import gzip
import hashlib
import pathlib
import re
from collections.abc import Iterator

import soundfile

from jaxkd import files
from jaxkd.data.demo import DIGITS
from jaxkd.data.rows import Row
from jaxkd.errors import UserError

_VERSION = "1"
_ROOT = "/usr/share"
_TEXTS = "doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
_SOUNDS = ("asterisk/sounds/en", "asterisk/sounds/en_US_f_Allison")
# Shares of the prompts, by a hash of the name.
_SHARES = {"test": 0.12, "dev": 0.08, "train": 0.5, "unlabelled": 0.3}


def _folders(root: str) -> tuple[pathlib.Path, pathlib.Path]:
  """Transcript file and folder of recordings."""
  base = files.expanded(root or _ROOT)
  sounds = next((base / s for s in _SOUNDS if any((base / s).glob("*.wav"))), None)
  if sounds is None or not (base / _TEXTS).is_file():
    raise UserError(
      f"the recorded prompts are not in {base}: "
      "apt-get install asterisk-core-sounds-en-wav asterisk-core-sounds-en "
      "(or set config.data.root to the folder that has their asterisk/ and doc/)"
    )
  return base / _TEXTS, sounds


def key(root: str) -> str:
  """Tells apart what would be made differently.

  Raises:
    UserError: the packages are not there.
  """
  texts, sounds = _folders(root)
  digest = hashlib.sha256(texts.read_bytes())
  for path in sorted(sounds.rglob("*.wav")):
    digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update(str(path.relative_to(sounds)).encode())
  return f"{_VERSION}-{digest.hexdigest()[:8]}"


def splits(root: str) -> dict[str, Iterator[Row]]:
  """Split → its prompts, by a hash of each prompt's name."""
  texts, sounds = _folders(root)
  transcripts = {}
  with gzip.open(texts, "rt", encoding="utf-8") as lines:
    for line in lines:
      name, colon, text = line.partition(":")
      if colon and not line.startswith(";") and (clean := spoken(text)):
        transcripts[name.strip()] = clean
  chosen: dict[str, list] = {split: [] for split in _SHARES}
  for name, text in sorted(transcripts.items()):
    if (path := sounds / f"{name}.wav").is_file():
      chosen[_split_of(name)].append((path, text))
  return {split: _rows(found) for split, found in chosen.items()}


def spoken(text: str) -> str | None:
  """Lower-case words as they are spoken; None where there are none or it is not certain.

  Single digits are words; text in square brackets is not speech.
  """
  text = re.sub(r"\[[^\]]*\]|\([^)]*\)", " ", text).lower()
  text = re.sub(r"\b\d\b", lambda m: DIGITS[int(m.group())], text)
  text = re.sub(r'[-.,;:!?"<>]', " ", text)
  words = " ".join(word.strip("'") for word in text.split()).strip()
  return words if words and re.fullmatch(r"[a-z' ]+", words) else None


def _split_of(name: str) -> str:
  position = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8
  for split, share in _SHARES.items():
    if position < share:
      return split
    position -= share
  return split


def _rows(found) -> Iterator[Row]:
  for path, text in found:
    samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    yield Row(samples.mean(1), rate, text, {"prompt": path.stem})
