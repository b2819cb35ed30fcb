"""Classes of a model folder without vocab.json: tokenizer.json, or a file of sentencepiece's."""

import json
import pathlib
import re

from jaxkd import files
from jaxkd.errors import UserError
from jaxkd.labels import SubwordVocabulary, Vocabulary, segmentation, spm
from jaxkd.models.huggingface.family import Family

TOKENIZER = "tokenizer.json"
# As transformers, sentencepiece's own examples and jaxkd call them.
SENTENCEPIECE = ("tokenizer.model", "sentencepiece.model", "spiece.model")
_NAMED = ("pad", "unk", "bos", "eos", "sep", "cls", "mask")
_BRACKETS = re.compile(r"<.+>|\[.+\]")
_SPACES = {"pattern": {"Regex": " {2,}"}, "content": " "}


def is_there(folder: pathlib.Path) -> bool:
  """Whether a folder has one of these files."""
  return any((folder / name).exists() for name in (TOKENIZER, *SENTENCEPIECE))


def read(folder: pathlib.Path, config: dict, family: Family, classes: int) -> Vocabulary:
  """The classes of a folder; where all are letters, a vocabulary of characters.

  Args:
    folder: of the model.
    config: of its config.json.
    family: of the model, which says what the blank is.
    classes: of its head.

  Raises:
    UserError: no such file, or one that is damaged, is not here, or does not fit the head.
  """
  path, found = _file(folder)
  try:
    settings = _settings(folder)
    found = _with_settings(found, settings)
    pieces = segmentation.ids_of(found["model"])
    symbols = {i: piece for piece, i in pieces.items()}
    symbols |= {int(token["id"]): str(token["content"]) for token in found["added_tokens"]}
    special = {token["content"] for token in found["added_tokens"] if token.get("special")}
    last = max((i for i, symbol in symbols.items() if symbol not in special), default=0)
    blank = _blank(path, config, family, classes, last)
    pad = _content(settings.get("pad_token"))
    symbols.setdefault(blank, "<blank>" if pad in (None, *symbols.values()) else pad)
    # Classes without a symbol exist where a head was rounded up; they stand for nothing.
    listed = tuple(symbols.get(i, f"<unused {i}>") for i in range(classes))
    if _is_of_characters(found, pieces, special):
      return Vocabulary(listed, blank, " ")
    return SubwordVocabulary(listed, blank, "", json.dumps(found, ensure_ascii=False))
  except segmentation.NotHere as error:
    raise UserError(f"{path} cannot be used: {error}") from error
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(f"{path} has no vocabulary that can be read: {error!r}") from error


def _file(folder: pathlib.Path) -> tuple[pathlib.Path, dict]:
  """What a folder has, as a tokenizer.json."""
  path = folder / TOKENIZER
  beside = [folder / name for name in SENTENCEPIECE if (folder / name).exists()]
  if path.exists() or not beside:
    return path, files.read_json(path, kind=dict)
  try:
    return beside[0], spm.tokenizer_of(beside[0].read_bytes())
  except (ValueError, OSError) as error:
    raise UserError(f"{beside[0]} cannot be used: {error}") from error


def _settings(folder: pathlib.Path) -> dict:
  """What else says which tokens are special."""
  found = {}
  for name in ("tokenizer_config.json", "special_tokens_map.json"):
    if (folder / name).exists():
      found |= files.read_json(folder / name, kind=dict)
  return found


def _with_settings(found: dict, settings: dict) -> dict:
  """A tokenizer.json with the tokens that transformers adds to it, and what it does to texts."""
  added = {token["content"]: dict(token) for token in found.get("added_tokens") or ()}
  for i, token in (settings.get("added_tokens_decoder") or {}).items():
    added.setdefault(token["content"], {"id": int(i)} | token)
  pieces = segmentation.ids_of(found["model"])
  for content in _special(settings):
    if content in added or content in pieces:
      added.setdefault(content, {"id": pieces.get(content), "content": content})["special"] = True
  cleaned = settings.get("clean_up_tokenization_spaces", False)
  cleaned = bool(cleaned) and segmentation.kind_of(found["model"]) != "BPE"
  return found | {"added_tokens": list(added.values()), "clean_up_tokenization_spaces": cleaned}


def _special(settings: dict) -> list[str]:
  """Tokens that stand for no text."""
  named = [settings.get(f"{name}_token") for name in _NAMED]
  for more in ("additional_special_tokens", "extra_special_tokens"):
    given = settings.get(more) or ()
    named += given.values() if isinstance(given, dict) else given
  return [_content(token) for token in named if token]


def _content(token: dict | str | None) -> str | None:
  """A token of tokenizer_config.json, which is written in two ways."""
  return token["content"] if isinstance(token, dict) else token


def _blank(path, config: dict, family: Family, classes: int, last: int) -> int:
  """The blank's class.

  Raises:
    UserError: it or the last piece is none of the head's.
  """
  field, default = family.blank or ("pad_token_id", 0)
  blank = config.get(field, default)
  if blank not in range(classes) or last >= classes:
    raise UserError(
      f"{path}: pieces with classes up to {last} and the blank, config.json's {field}, {blank!r}, "
      f"do not fit its vocab_size, {classes}"
    )
  return blank


def _is_of_characters(found: dict, pieces: dict[str, int], special: set[str]) -> bool:
  """Whether every class is a letter, or a special token, and nothing is done to texts."""
  # Sentencepiece's unknown and its like have brackets, too, whether or not they are told special.
  others = [p for p in pieces.keys() | special if len(p) != 1 or p == segmentation.WORD_START]
  normalizer, splits = (found.get(name) or {} for name in ("normalizer", "pre_tokenizer"))
  steps = normalizer.get("normalizers") or ([normalizer] if normalizer else [])
  return (
    all(_BRACKETS.fullmatch(piece) for piece in others)
    and not any(len(piece) == 1 for piece in special)
    and (found.get("decoder") or {}).get("type") == "Fuse"
    and all(s["type"] == "Strip" or s | _SPACES == s for s in steps)
    and (not splits or splits["type"] == "Split" and splits["behavior"] != "Removed")
  )
