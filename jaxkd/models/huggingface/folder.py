"""A model folder in Hugging Face's layout: config.json, weights, vocabulary, front-end."""

import functools
import itertools
import json
import pathlib
import re

from jaxkd.errors import UserError
from jaxkd.files import write_json
from jaxkd.labels import TokenVocabulary, Vocabulary
from jaxkd.models.huggingface import weights as port
from jaxkd.models.wav2vec2 import ACTIVATIONS, FAMILIES, Wav2Vec2Config
from jaxkd.types import SAMPLE_RATE_HZ

# What transformers assumes where config.json is silent.
_DEFAULTS = {
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "intermediate_size": 3072,
  "hidden_act": "gelu",
  "hidden_dropout": 0.1,
  "activation_dropout": 0.1,
  "attention_dropout": 0.1,
  "feat_proj_dropout": 0.0,
  "feat_proj_layer_norm": True,
  "layerdrop": 0.1,
  "layer_norm_eps": 1e-5,
  "feat_extract_norm": "group",
  "feat_extract_activation": "gelu",
  "conv_dim": (512,) * 7,
  "conv_stride": (5, 2, 2, 2, 2, 2, 2),
  "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
  "conv_bias": False,
  "num_conv_pos_embeddings": 128,
  "num_conv_pos_embedding_groups": 16,
  "conv_pos_kernel_size": 19,
  "do_stable_layer_norm": False,
  "num_buckets": 320,
  "max_bucket_distance": 800,
  "apply_spec_augment": True,
  "mask_time_prob": 0.05,
  "mask_time_length": 10,
  "mask_time_min_masks": 2,
  "mask_feature_prob": 0.0,
  "mask_feature_length": 10,
  "mask_feature_min_masks": 0,
}
# Parts that some models have and this one does not: field -> value that turns them off.
_UNSUPPORTED = {"conv_pos_batch_norm": False, "add_adapter": False}

# Names of its classes, without the "ForCTC".
_CLASSES = {
  "hubert": "Hubert",
  "wav2vec2": "Wav2Vec2",
  "wavlm": "WavLM",
  "unispeech": "UniSpeech",
  "unispeech-sat": "UniSpeechSat",
  "data2vec-audio": "Data2VecAudio",
}
# Tokenizers of transformers.
_CHARACTERS, _PHONEMES = "Wav2Vec2CTCTokenizer", "Wav2Vec2PhonemeCTCTokenizer"


def folder_of(source: str, language: str = "") -> pathlib.Path:
  """The folder of a model: a path, or org/name, fetched from the Hugging Face hub.

  Args:
    source: of the model.
    language: whose adapter is fetched, too; others are not.

  Raises:
    UserError: neither, or one on the hub whose weights are pickles.
  """
  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    return path
  wrong = f"{source}: no such folder, nor a model that can be fetched from the Hugging Face hub"
  if source.count("/") != 1 or source.startswith((".", "/", "~")):
    raise UserError(wrong)
  try:
    from huggingface_hub import snapshot_download
  except ImportError as error:
    raise UserError(f"{wrong}: fetching needs pip install 'jaxkd[hf]'") from error
  try:
    # A Conformer's classes may have a file of their own.
    files = ["*.json", "lexicon.txt", "sentencepiece.model"]
    weights = ["model*.safetensors", f"adapter.{language}.safetensors"]
    files += weights if language else ["*.safetensors"]
    skipped = None if language else ["adapter.*.safetensors"]
    path = snapshot_download(source, allow_patterns=files, ignore_patterns=skipped)
    path = pathlib.Path(path)
  except Exception as error:  # the hub's and the network's many kinds
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{wrong} ({type(error).__name__}: {reason})") from error
  if not any(path.glob("*.safetensors")):
    _refuse_pickles(source)
  return path


def _refuse_pickles(source: str) -> None:
  """UserError where a model on the hub has nothing but PyTorch's pickles, which are not fetched."""
  import huggingface_hub

  try:
    found = huggingface_hub.list_repo_files(source)
  except Exception:  # without the network it is said that the folder that was kept has no weights
    return
  if old := [name for name in found if re.fullmatch(r"pytorch_model.*\.bin", name)]:
    raise UserError(
      f"{source} has no *.safetensors on the hub, only {old[0]}, a pickle, which is not fetched: "
      f"hf download {source} --local-dir DIR, then jaxkd convert DIR, and give DIR"
    )


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


def model_config(
  description: dict,
  where: str,
  *,
  pool: int = 1,
  dtype: str = "float32",
  head_dropout: float = 0.0,
  freeze_conv: bool = False,
) -> Wav2Vec2Config:
  """The structure that a description stands for.

  Args:
    description: of `read_description`.
    where: folder or file, for errors.
    pool: frames that are max-pooled into one before the head.
    dtype: of the arithmetic.
    head_dropout: rate before the head.
    freeze_conv: the convolutions over the waveform are not trained.

  Raises:
    UserError: another architecture, sampling rate, or a part that is not there.
  """
  _check_usable(description, where)
  given, front = description["config"], description["preprocessor"]
  get = functools.partial(_field, given)
  family = given["model_type"]
  data2vec = family == "data2vec-audio"
  norm = "layer" if data2vec else get("feat_extract_norm")
  augment = get("apply_spec_augment")
  mask = lambda axis: (
    float(get(f"mask_{axis}_prob")) * bool(augment),
    get(f"mask_{axis}_length"),
    get(f"mask_{axis}_min_masks"),
  )
  return Wav2Vec2Config(
    family=family,
    width=get("hidden_size"),
    layers=get("num_hidden_layers"),
    heads=get("num_attention_heads"),
    ff_width=get("intermediate_size"),
    activation=get("hidden_act"),
    conv_activation=get("feat_extract_activation"),
    conv_channels=tuple(get("conv_dim")),
    conv_kernels=tuple(get("conv_kernel")),
    conv_strides=tuple(get("conv_stride")),
    conv_bias=get("conv_bias"),
    conv_norm=norm,
    projection_norm=get("feat_proj_layer_norm") if family == "hubert" else True,
    position_kernel=get("conv_pos_kernel_size" if data2vec else "num_conv_pos_embeddings"),
    position_groups=get("num_conv_pos_embedding_groups"),
    position_layers=given.get("num_conv_pos_embeddings", 5) if data2vec else 1,
    pre_norm=False if data2vec else get("do_stable_layer_norm"),
    norm_eps=get("layer_norm_eps"),
    buckets=get("num_buckets"),
    max_distance=get("max_bucket_distance"),
    adapter_width=given.get("adapter_attn_dim") or 0,
    normalise=front.get("do_normalize", True),
    mask_attention=norm == "layer" or front.get("return_attention_mask", False),
    pool=pool,
    dtype=dtype,
    head_dropout=head_dropout,
    dropout=get("hidden_dropout"),
    attention_dropout=get("attention_dropout"),
    activation_dropout=get("activation_dropout"),
    projection_dropout=get("feat_proj_dropout"),
    layer_drop=get("layerdrop"),
    time_mask=mask("time"),
    feature_mask=mask("feature"),
    freeze_conv=freeze_conv,
  )


def _field(given: dict, name: str):
  """A field of config.json, or what transformers assumes where it is silent."""
  return given.get(name, _DEFAULTS[name])


def _check_usable(description: dict, where: str) -> None:
  given, front = description["config"], description["preprocessor"]
  family = given.get("model_type")
  if family not in FAMILIES:
    raise UserError(
      f"{where}: config.json's model_type is {family!r}: it must be one of {', '.join(FAMILIES)}"
    )
  rate = front.get("sampling_rate", SAMPLE_RATE_HZ)
  if rate != SAMPLE_RATE_HZ:
    raise UserError(
      f"{where}: preprocessor_config.json's sampling_rate is {rate!r}: "
      f"only models of {SAMPLE_RATE_HZ} Hz can be used"
    )
  for field, off in _UNSUPPORTED.items():
    if given.get(field, off) != off:
      raise UserError(f"{where}: config.json's {field} is {given[field]!r}: only {off!r} is there")
  get = functools.partial(_field, given)
  if given.get("adapter_attn_dim") and (family != "wav2vec2" or not get("do_stable_layer_norm")):
    raise UserError(
      f"{where}: config.json's adapter_attn_dim is {given['adapter_attn_dim']!r}: only wav2vec2 "
      "with do_stable_layer_norm has adapters here"
    )
  for field in ("hidden_act", "feat_extract_activation"):
    if get(field) not in ACTIVATIONS:
      raise UserError(
        f"{where}: config.json's {field} is {get(field)!r}: it must be one of "
        + ", ".join(ACTIVATIONS)
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
  if not port.has_head(folder):
    raise UserError(
      f"{folder} has no CTC head (lm_head): it is pre-trained only, and no teacher before it is "
      f"fine-tuned: --config=configs/teacher.py:RECIPE --config.student.source={folder}"
    )
  config = _read_json(folder / "config.json")
  vocabulary, classes = _of_language(folder, language), config.get("vocab_size", 32)
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
  folder: pathlib.Path, description: dict, config: Wav2Vec2Config, params, labels: Vocabulary
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
    "architectures": [_CLASSES[config.family] + "ForCTC"],
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
  probabilities = (f"mask_{axis}_prob" for axis in ("time", "feature"))
  masks = any(_field(given, p) > 0 for p in probabilities)
  path = port.save(folder, config, params, mask_embedding=masks)
  for name, value in files.items():
    write_json(folder / name, value)
  return [path, *(folder / name for name in files)]


def tokenizer_files(labels: Vocabulary) -> dict[str, dict]:
  """Of vocab.json and tokenizer_config.json, by which transformers has the same classes."""
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
