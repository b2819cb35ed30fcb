"""A file of sentencepiece's as the tokenizer.json that transformers makes of it."""

import base64
import re
import struct
from collections.abc import Iterator

from jaxkd.labels.segmentation import WORD_START, NotHere

# Kinds of pieces and of models, by their numbers in sentencepiece_model.proto.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_UNIGRAM, _BPE = 1, 2


def tokenizer_of(model: bytes) -> dict:
  """The tokenizer.json of a sentencepiece model, whose ids are those of its pieces.

  Raises:
    NotHere: it is of a kind that is not here.
    ValueError: it is damaged.
  """
  try:
    fields = list(_fields(model))
    pieces = [_piece(value) for number, value in fields if number == 1]
    trainer, rules = ({k: v for n, m in fields if n == at for k, v in _fields(m)} for at in (2, 3))
  except (IndexError, struct.error, TypeError, UnicodeDecodeError) as error:
    raise ValueError("it is no model of sentencepiece") from error
  if not pieces:
    raise ValueError("it is no model of sentencepiece")
  kind = trainer.get(3, _UNIGRAM)
  if kind not in (_UNIGRAM, _BPE):
    raise NotHere("its model is neither of unigrams nor of byte pairs")
  if trainer.get(24):
    raise NotHere("its pieces end, instead of begin, in a space")
  names = [piece for piece, _, _ in pieces]
  of_user = [piece for piece, _, what in pieces if what == _USER_DEFINED]
  by_bytes = bool(trainer.get(35, 0))
  if kind == _UNIGRAM:
    scored = [[piece, score] for piece, score, _ in pieces]
    made = {"type": "Unigram", "unk_id": trainer.get(40, 0), "vocab": scored}
  else:
    ids = {piece: i for i, piece in enumerate(names)}
    made = {"type": "BPE", "vocab": ids, "merges": _merges(pieces), "ignore_merges": bool(of_user)}
  return {
    "added_tokens": [
      {"id": i, "content": piece, "special": True}
      for i, (piece, _, what) in enumerate(pieces)
      if what in (_UNKNOWN, _CONTROL)
    ],
    "normalizer": _normalizer(rules),
    "pre_tokenizer": _pre_tokenizer(rules, of_user),
    "decoder": _decoder(rules, by_bytes),
    "model": made | {"byte_fallback": by_bytes},
  }


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
  """(number, value) of the fields of a protocol buffer."""
  at = 0

  def number() -> int:
    nonlocal at
    value = shift = 0
    while True:
      byte = message[at]
      at += 1
      value |= (byte & 0x7F) << shift
      shift += 7
      if byte < 0x80:
        return value

  while at < len(message):
    key = number()
    if key & 7 == 0:
      yield key >> 3, number()
      continue
    size = {1: 8, 5: 4}.get(key & 7) or (number() if key & 7 == 2 else -1)
    if not 0 <= size <= len(message) - at:
      raise IndexError("a field is longer than what holds it")
    at += size
    yield key >> 3, message[at - size : at]


def _piece(message: bytes) -> tuple[str, float, int]:
  """A piece, its score and its kind."""
  found = dict(_fields(message))
  return found[1].decode(), *struct.unpack("<f", found.get(2, bytes(4))), found.get(3, _NORMAL)


def _merges(pieces: list[tuple[str, float, int]]) -> list[list[str]]:
  """Pairs of normal pieces that make another, by its score, then its id."""
  normal = {piece: (-score, i) for i, (piece, score, what) in enumerate(pieces) if what == _NORMAL}
  found = [
    (*rank, piece[:n], piece[n:])
    for piece, rank in normal.items()
    for n in range(1, len(piece))
    if piece[:n] in normal and piece[n:] in normal
  ]
  return [[left, right] for *_, left, right in sorted(found)]


def _normalizer(rules: dict) -> dict:
  replace = lambda pattern, content: {"type": "Replace", "pattern": pattern, "content": content}
  found = []
  if rules.get(2):
    table = base64.b64encode(rules[2]).decode()
    found.append({"type": "Precompiled", "precompiled_charsmap": table})
  if rules.get(4, 1):
    found.append(replace({"Regex": r"\A +| +\z"}, ""))
    found.append(replace({"Regex": " {2,}"}, " "))
  if rules.get(5, 1):
    found.append(replace({"String": " "}, WORD_START))
  if rules.get(3, 1):
    found.append(replace({"Regex": rf"\A{WORD_START}"}, 2 * WORD_START))
  return {"type": "Sequence", "normalizers": found}


def _pre_tokenizer(rules: dict, of_user: list[str]) -> dict:
  found = []
  if rules.get(3, 1):
    marks = {"replacement": WORD_START, "prepend_scheme": "always", "split": False}
    found.append({"type": "Metaspace"} | marks)
  if of_user:
    pattern = "|".join(map(re.escape, sorted(of_user, key=len, reverse=True)))
    found.append(
      {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    )
  return {"type": "Sequence", "pretokenizers": found}


def _decoder(rules: dict, by_bytes: bool) -> dict:
  found = [{"type": "Replace", "pattern": {"String": WORD_START}, "content": " "}]
  if by_bytes:
    found.append({"type": "ByteFallback"})
  found.append({"type": "Fuse"})
  if rules.get(3, 1):
    found.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
  return {"type": "Sequence", "decoders": found}
