"""Pieces of words as classes, as Hugging Face's tokenizer.json spells with them."""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from jaxkd import files
from jaxkd.labels import segmentation, steps
from jaxkd.labels.segmentation import WORD_START, NotHere
from jaxkd.labels.text import normalise
from jaxkd.labels.vocabulary import CannotSpell, UnknownSymbol, Vocabulary

FILE = "tokenizer.json"
# What transformers takes out of a text where a tokenizer's clean_up_tokenization_spaces says so.
_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


@dataclasses.dataclass(frozen=True)
class SubwordVocabulary(Vocabulary):
  """Pieces of words that texts are cut into as the tokenizers library cuts them.

  Texts have single spaces first. Where a tokenizer has a step that is not here, no text is encoded,
  and the line says which step it is; decoding has all of its steps, or there is no vocabulary.

  Attributes:
    tokenizer: a tokenizer.json, whose ids are the classes.
  """

  tokenizer: str = ""

  kind: ClassVar[str] = "subwords"

  def __post_init__(self):
    found = json.loads(self.tokenizer)
    added = {token["id"]: token for token in found.get("added_tokens") or ()}
    pieces = {i: piece for piece, i in segmentation.ids_of(found["model"]).items()}
    pieces |= {i: token["content"] for i, token in added.items()}
    special = {token["content"] for token in added.values() if token.get("special")}
    silent = {self.blank_id} | {i for i, piece in pieces.items() if piece in special}
    # Without a decoder every piece is a word.
    marks = ("",) if found.get("decoder") is None else (WORD_START, " ")
    object.__setattr__(self, "_found", found)
    object.__setattr__(self, "_texts", {i: p for i, p in pieces.items() if i not in silent})
    object.__setattr__(self, "_marks", marks)
    object.__setattr__(self, "_joined", steps.decoder(found.get("decoder")))

  @functools.cached_property
  def _cut(self) -> Callable[[str], list[int]]:
    """Text → ids of pieces.

    Raises:
      CannotSpell: a step of the tokenizer is not here.
    """
    try:
      return _Cutter(self._found)
    except NotHere as error:
      raise CannotSpell(
        f"transcripts cannot be written exactly as the model's {FILE} would: {error}; without "
        "transcripts (config.kd.scale=1) it can be used",
        str(error),
      ) from error

  def encode(self, text: str) -> np.ndarray:
    """i32[U] of a text as it is, or else with the words normalised that cannot be written so.

    Where only capitals have pieces, words are written in capitals.

    Raises:
      UnknownSymbol: a character that no piece has.
      CannotSpell: the tokenizer has a step that is not here.
    """
    text = " ".join(text.split())
    try:
      return self._ids(text)
    except UnknownSymbol:
      return self._ids(" ".join(map(self._writable, text.split())))

  def _writable(self, word: str) -> str:
    """A word in the first of its forms that can be written, or else normalised."""
    for form in (word, normalise(word), normalise(word).upper()):
      with contextlib.suppress(UnknownSymbol):
        self._ids(form)
        return form
    return normalise(word)

  def _ids(self, text: str) -> np.ndarray:
    ids = self._cut(text)
    for i in ids:
      if i not in self._texts or i >= len(self.symbols):
        raise UnknownSymbol(text)
    return np.array(ids, np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    """Normalised text of labels (blanks and repeats already gone)."""
    text = "".join(self._joined([self._texts[i] for i in map(int, ids) if i in self._texts]))
    if self._found.get("clean_up_tokenization_spaces"):
      for unwanted in _CLEANED:
        text = text.replace(unwanted, unwanted.strip())
    return normalise(text)

  def starts_word(self, label: int) -> bool:
    """Whether a word begins at a label."""
    return label in self._texts and self._texts[label].startswith(self._marks)

  def _spans(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """See `Vocabulary._spans`."""
    starts = [i for i, label in enumerate(ids) if self.starts_word(int(label))]
    return itertools.pairwise([0, *starts, len(ids)])

  def spellings(self, word: str) -> list[tuple[int, ...]]:
    """See `Vocabulary.spellings`: at the beginning of a text, and inside where that differs."""
    first, twice = self.encode(word).tolist(), self.encode(f"{word} {word}").tolist()
    inside = twice[len(first) :] if twice[: len(first)] == first else first
    return sorted({tuple(first), tuple(inside)})

  def _save_beside(self, folder: pathlib.Path) -> list[pathlib.Path]:
    files.write_text(folder / FILE, self.tokenizer)
    return [folder / FILE]

  @classmethod
  def _load_beside(cls, folder: pathlib.Path) -> tuple:
    return ((folder / FILE).read_text(encoding="utf-8"),)

  def _verify(self) -> None:
    wrong = [i for i, p in self._texts.items() if i < len(self.symbols) and self.symbols[i] != p]
    if wrong:
      raise ValueError(f"class {wrong[0]} is another piece in {FILE} beside it")


class _Cutter:
  """Text → ids: added tokens, then the normalizer, the pre-tokenizer and the model."""

  def __init__(self, found: dict):
    """Raises NotHere."""
    self._normalise = steps.normalizer(found.get("normalizer"))
    self._split = steps.pre_tokenizer(found.get("pre_tokenizer"))
    self._segment = segmentation.segmenter(found["model"])
    added = found.get("added_tokens") or ()
    plain = [token for token in added if _is_plain(token)]
    self._whole = {token["content"]: token["id"] for token in plain}
    self._others = [t["content"] for t in added if t["content"] and not _is_plain(t)]
    longest = sorted(self._whole, key=len, reverse=True)
    self._added = re.compile("|".join(map(re.escape, longest)) or "(?!)")

  def __call__(self, text: str) -> list[int]:
    ids, last = [], 0
    for found in self._added.finditer(text):
      ids += self._between(text[last : found.start()], last == 0)
      ids.append(self._whole[found[0]])
      last = found.end()
    return ids + self._between(text[last:], last == 0)

  def _between(self, text: str, first: bool) -> list[int]:
    """Ids of a stretch of text without added tokens, however these are matched."""
    text = self._refuse_others(self._normalise(self._refuse_others(text)))
    parts = self._split([steps.Part(text, first)]) if text else []
    return [i for part in parts for i in self._segment(part.text)]

  def _refuse_others(self, text: str) -> str:
    for other in self._others:
      if other in text:
        raise UnknownSymbol(other)
    return text


def _is_plain(token: dict) -> bool:
  """Whether an added token is a piece of text, found as it is wherever it stands."""
  return bool(token["content"]) and not any(
    token.get(field) for field in ("special", "normalized", "single_word", "lstrip", "rstrip")
  )
