"""A model folder in Hugging Face's layout: config.json, weights, vocabulary, front-end."""

import itertools
import json
import os
import pathlib

from jaxkd import buckets
from jaxkd.errors import TryAgain, UserError
from jaxkd.files import write_json
from jaxkd.labels import TokenVocabulary, Vocabulary
from jaxkd.models.huggingface import families, tensors, tokenizers, wav2vec2
from jaxkd.models.huggingface import weights as port
from jaxkd.models.huggingface.family import Family

# Ends of the names of classes that are pre-trained only, or lack their head.
_PRETRAINED = ("Model", "ForPreTraining", "ForCTC")
# Tokenizers of transformers.
_CHARACTERS, _PHONEMES = "Wav2Vec2CTCTokenizer", "Wav2Vec2PhonemeCTCTokenizer"


def folder_of(source: str, language: str = "") -> pathlib.Path:
  """The folder of a model: a path, or org/name, fetched from the Hugging Face hub.

  Pickled weights are fetched only where there are no safetensors.

  Args:
    source: of the model.
    language: whose adapter is fetched, too; others are not.

  Raises:
    UserError: neither.
  """
  path = buckets.here(source)
  if path.is_dir():
    return path
  if source.count("/") != 1 or source.startswith((".", "/", "~")):
    raise UserError(_not_there(source))
  # Classes may have a file of their own.
  files, adapter = ["*.json", "lexicon.txt", *tokenizers.SENTENCEPIECE], f"adapter.{language}"
  files += ["model*.safetensors", f"{adapter}.safetensors"] if language else ["*.safetensors"]
  others = None if language else ["adapter.*.safetensors"]
  path, pickled = _fetch(source, files, others), []
  if language and not (path / f"{adapter}.safetensors").exists():
    pickled += [f"{adapter}.bin"]
  if not tensors.stored(path, "model.safetensors"):
    pickled += ["pytorch_model*.bin"]
  return _fetch(source, files + pickled, others) if pickled else path


def _fetch(source: str, files: list[str], others: list[str] | None) -> pathlib.Path:
  """The folder of those files of a model on the hub; raises UserError where it is not reached."""
  try:
    from huggingface_hub import snapshot_download
  except ImportError as error:
    wrong = f"{_not_there(source)}: fetching needs pip install 'jaxkd[hf]'"
    raise UserError(wrong) from error
  try:
    return pathlib.Path(snapshot_download(source, allow_patterns=files, ignore_patterns=others))
  except Exception as error:  # the hub's and the network's many kinds
    reason = " ".join(str(error).split())[:200]
    kind = TryAgain if _may_pass(error) else UserError
    raise kind(f"{_not_there(source)} ({type(error).__name__}: {reason})") from error


def _may_pass(error: Exception) -> bool:
  """Whether the hub was not reached, or is busy, rather than that it has refused."""
  status = getattr(getattr(error, "response", None), "status_code", None)
  if status is not None:
    return status == 429 or status >= 500
  # What is no name of a model is refused before the hub is asked.
  return not isinstance(error, ValueError) and not os.environ.get("HF_HUB_OFFLINE")


def _not_there(source: str) -> str:
  return f"{source}: no such folder, nor a model that can be fetched from the Hugging Face hub"


def read_description(folder: pathlib.Path) -> dict:
  """{"config": config.json, "preprocessor": preprocessor_config.json} of a folder.

  Raises:
    UserError: a file is absent or damaged.
  """
  config = _read_json(folder / "config.json")
  if (folder / "preprocessor_config.json").exists():
    return {"config": config, "preprocessor": _read_json(folder / "preprocessor_config.json")}
  if (folder / "processor_config.json").exists():  # newer transformers keep both in one file
    found = _read_json(folder / "processor_config.json").get("feature_extractor")
    if isinstance(found, dict):
      return {"config": config, "preprocessor": found}
  raise UserError(
    f"{folder}: no preprocessor_config.json in it: it says whether waveforms are normalised"
  )


def read_labels(folder: pathlib.Path, language: str = "") -> Vocabulary:
  """The vocabulary of a model with a CTC head: ids as in vocab.json, the blank is the pad token.

  Texts are tokens between spaces where the tokenizer is that of phonemes, else characters. One
  thing differs from transformers: its tokenizer of characters drops the spaces beside a token of
  several characters, so that words run together; here every space is kept.

  Args:
    folder: of the model.
    language: of one that has a vocabulary for each.

  Raises:
    UserError: no head, no vocabulary, or one without blank or with ids that do not fit the head.
  """
  config = _read_json(folder / "config.json")
  family = families.of(config, str(folder))
  if not port.has_head(folder, family):
    raise UserError(_no_head(folder, config, family))
  classes = config.get("vocab_size") or family.classes
  by_tokenizer = not (folder / "vocab.json").exists() and tokenizers.is_there(folder)
  if family.blank is not None or by_tokenizer:
    if language:
      raise UserError(f"{folder} has one vocabulary, and none of the language {language!r}")
    return tokenizers.read(folder, config, family, classes)
  vocabulary = _of_language(folder, language)
  if language:  # the head is the adapter's
    classes = 1 + max(filter(lambda i: isinstance(i, int), vocabulary.values()), default=-1)
  settings = {}
  for name in ("tokenizer_config.json", "special_tokens_map.json"):
    if (folder / name).exists():
      settings |= _read_json(folder / name)
  if not all(isinstance(i, int) and i >= 0 for i in vocabulary.values()):
    raise UserError(f"{folder}/vocab.json must map every symbol to its class, a whole number")
  taken = set(vocabulary.values())
  for symbol, index in _added_tokens(folder, settings).items():
    if index in range(classes) and index not in taken:  # others have no class
      vocabulary.setdefault(symbol, index)
  pad = _token(settings, "pad_token") or "<pad>"
  if pad not in vocabulary:
    raise UserError(
      f"{folder}/vocab.json has no blank: CTC models of this family use the pad token, {pad!r}"
    )
  symbols = {i: s for s, i in vocabulary.items()}
  if len(symbols) < len(vocabulary) or max(symbols) >= classes:
    raise UserError(
      f"{folder}/vocab.json: {len(vocabulary)} symbols with classes up to {max(symbols)} do not "
      f"fit config.json's vocab_size, {classes}"
    )
  # Classes without a symbol exist where a head was rounded up; they stand for nothing.
  listed = tuple(symbols.get(i, f"<unused {i}>") for i in range(classes))
  delimiter = _token(settings, "word_delimiter_token")
  if (settings.get("tokenizer_class") or config.get("tokenizer_class")) == _PHONEMES:
    return TokenVocabulary(listed, vocabulary[pad], delimiter or "")
  return Vocabulary(listed, vocabulary[pad], delimiter or "|")


def _no_head(folder: pathlib.Path, config: dict, family: Family) -> str:
  """What is wrong with a model without a CTC head, and what to do about it."""
  wrong = f"{folder} has no CTC head ({family.head})"
  given = config.get("architectures") or []
  if others := [name for name in map(str, given) if not name.endswith(_PRETRAINED)]:
    return f"{wrong}: it is {others[0]}, of another task: only {family.class_name}ForCTC teaches"
  wrong += ": it is pre-trained only, and no teacher before it is fine-tuned"
  if not family.learns:
    return wrong
  return f"{wrong}: --config=configs/teacher.py:RECIPE --config.student.source={folder}"


def _of_language(folder: pathlib.Path, language: str) -> dict:
  """The content of vocab.json, which has one more level where a model has several languages.

  Raises:
    UserError: there is none of this language, or none is named.
  """
  found = _read_json(folder / "vocab.json")
  languages = [name for name, value in found.items() if isinstance(value, dict)]
  if not languages:
    if language:
      raise UserError(f"{folder} has one vocabulary, and none of the language {language!r}")
    return found
  if language not in languages:
    some = ", ".join(languages[:8]) + (", …" if len(languages) > 8 else "")
    given = f"{language!r} is none of" if language else "one must be named (teacher.language) of"
    raise UserError(f"{folder}: {given} its {len(languages)} languages: {some}")
  return found[language]


def _added_tokens(folder: pathlib.Path, settings: dict) -> dict[str, int]:
  """Symbols that are not in vocab.json, of newer and of older files."""
  given = settings.get("added_tokens_decoder") or {}
  found = {token["content"]: int(index) for index, token in given.items()}
  if (folder / "added_tokens.json").exists():
    found |= _read_json(folder / "added_tokens.json")
  return found


def _token(settings: dict, name: str) -> str | None:
  """A token of tokenizer_config.json, which is written in two ways."""
  token = settings.get(name)
  return token["content"] if isinstance(token, dict) else token


def save(
  folder: pathlib.Path, description: dict, config, params, labels: Vocabulary
) -> list[pathlib.Path]:
  """Writes a folder that transformers and `teacher.from_huggingface` load; returns its files.

  Args:
    folder: made if absent.
    description: of the model that `params` began as.
    config: of the model.
    params: its parameters.
    labels: its classes.

  Pooling of frames is no part of the layout: transformers gives the logits of every 20 ms frame.
  """
  changed = {
    "architectures": [families.FAMILIES[config.family].class_name + "ForCTC"],
    "vocab_size": len(labels.symbols),
    "pad_token_id": labels.blank_id,
    "final_dropout": config.head_dropout,
    "dtype": "float32",
  }
  given = description["config"]
  files = {
    "config.json": {k: v for k, v in given.items() if k != "torch_dtype"} | changed,
    "preprocessor_config.json": description["preprocessor"],
  } | tokenizer_files(labels)
  masks = wav2vec2.masks_frames(given)
  path = port.save(folder, config, params, mask_embedding=masks)
  for name, value in files.items():
    write_json(folder / name, value)
  return [path, *(folder / name for name in files)]


def tokenizer_files(labels: Vocabulary) -> dict[str, dict]:
  """What vocab.json and tokenizer_config.json hold: transformers has the same classes then."""
  settings = {"pad_token": labels.symbols[labels.blank_id]}
  written = {symbol: i for i, symbol in enumerate(labels.symbols)}
  if isinstance(labels, TokenVocabulary):
    settings |= {"tokenizer_class": _PHONEMES, "do_phonemize": False}
    settings |= {"phone_delimiter_token": " ", "word_delimiter_token": labels.space or None}
    return {"vocab.json": written, "tokenizer_config.json": settings}
  between = labels.space_ids()
  texts = {symbol: i for symbol, i in written.items() if i not in between}
  # transformers 5 reads no other delimiter from a file than the first of these.
  delimiter = next(c for c in map(chr, itertools.count(ord("|"))) if c not in texts)
  written = {delimiter if i in between else symbol: i for symbol, i in written.items()}
  # Beside tokens of several characters that are in vocab.json, transformers drops the spaces.
  added = {
    str(i): {"content": symbol, "lstrip": False, "rstrip": False, "normalized": False}
    for symbol, i in written.items()
    if len(symbol) > 1 and labels.decode([i])
  }
  settings |= {"tokenizer_class": _CHARACTERS, "word_delimiter_token": delimiter}
  if added:
    settings["added_tokens_decoder"] = added
  kept = {symbol: i for symbol, i in written.items() if str(i) not in added}
  return {"vocab.json": kept, "tokenizer_config.json": settings}


def _read_json(path: pathlib.Path) -> dict:
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    reason = error.strerror if isinstance(error, OSError) else error
    raise UserError(f"{path} cannot be read: {reason}") from error
  if not isinstance(found, dict):
    raise UserError(f"{path} must hold a JSON object")
  return found
