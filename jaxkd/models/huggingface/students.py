"""A FastConformer of ours as a folder that transformers loads: Parakeet with a CTC head."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
from flax import nnx

from jaxkd.errors import UserError
from jaxkd.files import write_json
from jaxkd.labels import PieceVocabulary, SubwordVocabulary, Vocabulary, segmentation, spm
from jaxkd.models.fastconformer import FastConformerConfig
from jaxkd.models.features import FFT, HOP, PREEMPHASIS, WINDOW
from jaxkd.models.huggingface import weights
from jaxkd.types import SAMPLE_RATE_HZ

KINDS = ("characters", "sentencepiece", "subwords")


def save(
  folder: pathlib.Path, settings: FastConformerConfig, params, labels: Vocabulary
) -> list[pathlib.Path]:
  """Writes a folder that transformers and `teacher.from_huggingface` load; returns its files.

  Args:
    folder: made if absent.
    settings: of the model.
    params: its parameters.
    labels: its classes.

  Raises:
    UserError: classes that no tokenizer.json has.
  """
  files = {
    "config.json": config(settings, labels),
    "preprocessor_config.json": _front(settings),
    # Or a blank that is called <blank> is taken for a transducer's, whose repeats stay.
    "processor_config.json": {"processor_class": "ParakeetProcessor", "decoder_type": "ctc"},
    **tokenizer_files(labels),
  }
  whole = dataclasses.replace(settings, statistics=True)
  path = weights.save(folder, whole, with_statistics(params, settings), mask_embedding=False)
  for name, value in files.items():
    write_json(folder / name, value)
  return [path, *(folder / name for name in files)]


def with_statistics(params: nnx.State, settings: FastConformerConfig) -> nnx.State:
  """Parameters with the mean and the variance of every batch norm: 0 and 1 where it has none."""
  if settings.statistics:
    return params
  norm = params["layers"]["conv"]["inner_norm"]
  like = norm["scale"][...]
  more = {"mean": nnx.Param(jnp.zeros_like(like)), "variance": nnx.Param(jnp.ones_like(like))}
  conv = params["layers"]["conv"] | {"inner_norm": nnx.State(dict(norm) | more)}
  layers = nnx.State(dict(params["layers"]) | {"conv": nnx.State(dict(conv))})
  return nnx.State(dict(params) | {"layers": layers})


def config(settings: FastConformerConfig, labels: Vocabulary) -> dict:
  """What config.json holds; rates are those of training."""
  encoder = {
    "model_type": "parakeet_encoder",
    "hidden_size": settings.width,
    "num_hidden_layers": settings.layers,
    "num_attention_heads": settings.heads,
    "intermediate_size": settings.ff_width,
    "hidden_act": settings.activation,
    "attention_bias": settings.bias,
    "convolution_bias": settings.conv_bias,
    "conv_kernel_size": settings.conv_kernel,
    "subsampling_factor": settings.subsampling,
    "subsampling_conv_channels": settings.subsampling_channels,
    "num_mel_bins": settings.mels,
    "scale_input": settings.scale_input,
    "dropout": settings.dropout,
    "activation_dropout": settings.dropout,
    "attention_dropout": settings.dropout,
    "layerdrop": settings.layer_drop,
  }
  return {
    "architectures": ["ParakeetForCTC"],
    "model_type": settings.family,
    "vocab_size": len(labels.symbols),
    "pad_token_id": labels.blank_id,
    "dtype": "float32",
    "encoder_config": encoder,
  }


def _front(settings: FastConformerConfig) -> dict:
  return {
    "feature_extractor_type": "ParakeetFeatureExtractor",
    "processor_class": "ParakeetProcessor",
    "feature_size": settings.mels,
    "hop_length": HOP,
    "n_fft": FFT,
    "win_length": WINDOW,
    "preemphasis": PREEMPHASIS,
    "padding_value": 0.0,
    "sampling_rate": SAMPLE_RATE_HZ,
  }


def tokenizer_files(labels: Vocabulary) -> dict[str, dict]:
  """What tokenizer.json and tokenizer_config.json hold: transformers has the same classes then.

  Raises:
    UserError: classes that no tokenizer.json has.
  """
  if labels.kind not in KINDS:
    raise UserError(
      f"a FastConformer's classes are kept as transformers has them, which are {', '.join(KINDS)}, "
      f"and not {labels.kind}"
    )
  blank = {"id": labels.blank_id, "content": labels.symbols[labels.blank_id], "special": True}
  found = _MADE[labels.kind](labels)
  cleaned = found.pop("clean_up_tokenization_spaces", False)
  added = {token["content"]: token for token in found["added_tokens"]} | {blank["content"]: blank}
  flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
  listed = sorted((flags | token for token in added.values()), key=lambda token: token["id"])
  nothing = dict.fromkeys(("truncation", "padding", "post_processor"))
  settings = {
    "tokenizer_class": "ParakeetTokenizer",
    "processor_class": "ParakeetProcessor",
    "pad_token": blank["content"],
    "clean_up_tokenization_spaces": cleaned,
  }
  return {
    "tokenizer.json": {"version": "1.0"} | nothing | found | {"added_tokens": listed},
    "tokenizer_config.json": settings,
  }


def _of_characters(labels: Vocabulary) -> dict:
  """Letters that are never merged; the space is one of them, or is written as another."""
  shown = {
    i: labels.decode([i]) != "" or i in labels.space_ids() for i in range(len(labels.symbols))
  }
  symbols = dict(enumerate(labels.symbols))
  added = [
    {"id": i, "content": symbol, "special": not shown[i]}
    for i, symbol in symbols.items()
    if not shown[i] or len(symbol) > 1
  ]
  space, fuse = next((symbols[i] for i in labels.space_ids()), " "), {"type": "Fuse"}
  normalizer, decoder = None, fuse
  if space != " ":
    swapped = lambda a, b: {"type": "Replace", "pattern": {"String": a}, "content": b}
    normalizer = swapped(" ", space)
    decoder = {"type": "Sequence", "decoders": [swapped(space, " "), fuse]}
  ids = {symbol: i for i, symbol in symbols.items()}
  model = {"type": "BPE", "vocab": ids, "merges": []}
  return _tokenizer(model, added, normalizer, None, decoder)


def _of_pieces(labels: PieceVocabulary) -> dict:
  """Sentencepiece's, whose unknown has no class: it comes behind the blank."""
  found = spm.tokenizer_of(labels.model)
  scores = found["model"]["vocab"][1:]
  unknown = len(labels.symbols)
  model = found["model"] | {
    "vocab": [*scores, [labels.symbols[labels.blank_id], 0.0], ["<unk>", 0.0]],
    "unk_id": unknown,
  }
  added = [{"id": unknown, "content": "<unk>", "special": True}]
  steps = (found[name] for name in ("normalizer", "pre_tokenizer", "decoder"))
  return _tokenizer(model, added, *steps)


def _of_subwords(labels: SubwordVocabulary) -> dict:
  found = json.loads(labels.tokenizer)
  kind = segmentation.kind_of(found["model"])
  return found | {"model": {"type": kind} | found["model"]}


def _tokenizer(model: dict, added: list, normalizer, pre_tokenizer, decoder) -> dict:
  return {
    "added_tokens": added,
    "normalizer": normalizer,
    "pre_tokenizer": pre_tokenizer,
    "decoder": decoder,
    "model": model,
  }


_MADE = {"characters": _of_characters, "sentencepiece": _of_pieces, "subwords": _of_subwords}
