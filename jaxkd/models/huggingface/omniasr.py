"""Omnilingual ASR with a CTC head in Hugging Face's layout: config.json and names of weights.

It is wav2vec 2.0 whose positional convolution has no gains, with names and defaults of its own.
"""

from jaxkd.errors import UserError
from jaxkd.models.huggingface.family import (
  Family,
  Names,
  check_choice,
  check_rate,
  convolutions,
  transformer_sizes,
)
from jaxkd.models.huggingface.wav2vec2 import NAMES
from jaxkd.models.layers import ACTIVATIONS
from jaxkd.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2CTC

# What transformers assumes where config.json's audio_config is silent.
_DEFAULTS = {
  "hidden_size": 1024,
  "num_hidden_layers": 24,
  "num_attention_heads": 16,
  "intermediate_size": 4096,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-5,
  "conv_dim": (512,) * 7,
  "conv_stride": (5, 2, 2, 2, 2, 2, 2),
  "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
  "conv_bias": True,
  "num_conv_pos_embeddings": 128,
  "num_conv_pos_embedding_groups": 16,
}
# Beginnings of names: of wav2vec 2.0, here.
_RENAMED = {
  "feature_extractor.": "subsampling.",
  "feature_projection.": "subsampling.",
  "encoder.pos_conv_embed.": "encode_positions.",
  "encoder.": "",
  "lm_head.": "ctc_head.",
}


def _renamed(name: str) -> str:
  for theirs, here in _RENAMED.items():
    if name.startswith(theirs):
      return here + name.removeprefix(theirs)
  return name


_NAMES: Names = {
  ours: (tuple(map(_renamed, theirs)), kind) for ours, (theirs, kind) in NAMES.items()
} | {"positions/{i}/kernel": (("encode_positions.conv.weight",), "conv")}


def _read(description: dict, where: str) -> Wav2Vec2Config:
  """The config of a model of this family, which only teaches: nothing is random."""
  given, front = description["config"].get("audio_config") or {}, description["preprocessor"]
  get = lambda field: given.get(field, _DEFAULTS[field])
  check_rate(front, where)
  check_choice(given, _DEFAULTS, "hidden_act", tuple(ACTIVATIONS), where)
  if get("num_conv_pos_embeddings") % 2:
    raise UserError(
      f"{where}: config.json's num_conv_pos_embeddings is {get('num_conv_pos_embeddings')}: "
      "it must be even"
    )
  return Wav2Vec2Config(
    family=description["config"]["model_type"],
    **transformer_sizes(get),
    conv_activation=get("hidden_act"),
    **convolutions(get),
    conv_norm="layer",
    projection_norm=True,
    position_kernel=get("num_conv_pos_embeddings"),
    position_groups=get("num_conv_pos_embedding_groups"),
    position_layers=1,
    position_norm="none",
    pre_norm=True,
    norm_eps=get("layer_norm_eps"),
    buckets=0,
    max_distance=0,
    adapter_width=0,
    normalise=front.get("do_normalize", True),
    normalise_eps=1e-5,
    mask_attention=True,
  )


FAMILIES = {
  "omniasr_ctc": Family(
    "OmniASR",
    "model.audio_tower.",
    _NAMES,
    Wav2Vec2CTC,
    _read,
    classes=10288,
    blank=("blank_token_id", 0),
  )
}
