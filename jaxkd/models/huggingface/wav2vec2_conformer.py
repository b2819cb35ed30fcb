"""Wav2Vec2-Conformer in Hugging Face's layout: config.json and names of weights."""

import functools

from jaxkd.errors import UserError
from jaxkd.models.huggingface.family import (
  Family,
  Names,
  check_choice,
  check_rate,
  convolutions,
  modules,
  transformer_sizes,
)
from jaxkd.models.huggingface.wav2vec2 import NAMES
from jaxkd.models.layers import ACTIVATIONS
from jaxkd.models.wav2vec2_conformer import (
  POSITIONS,
  Wav2Vec2ConformerConfig,
  Wav2Vec2ConformerCTC,
)

# What transformers assumes where config.json is silent.
_DEFAULTS = {
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "intermediate_size": 3072,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-5,
  "feat_extract_norm": "group",
  "feat_extract_activation": "gelu",
  "conv_dim": (512,) * 7,
  "conv_stride": (5, 2, 2, 2, 2, 2, 2),
  "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
  "conv_bias": False,
  "add_adapter": False,
  "position_embeddings_type": "relative",
  "rotary_embedding_base": 10_000,
  "conv_depthwise_kernel_size": 31,
}

_LAYER = "encoder.layers.{layer}."
_NAMES: Names = {
  name: NAMES[name] for name in NAMES if name.startswith(("conv/", "project", "norm/", "head/"))
} | {
  "layers/conv/depthwise": ((_LAYER + "conv_module.depthwise_conv.weight",), "depthwise"),
  "layers/conv/inner_norm/mean": ((_LAYER + "conv_module.batch_norm.running_mean",), "same"),
  "layers/conv/inner_norm/variance": ((_LAYER + "conv_module.batch_norm.running_var",), "same"),
  "layers/attention/content_bias": ((_LAYER + "self_attn.pos_bias_u",), "same"),
  "layers/attention/position_bias": ((_LAYER + "self_attn.pos_bias_v",), "same"),
  **modules(
    "layers/",
    _LAYER,
    linear={
      "ff_first/inner": "ffn1.intermediate_dense",
      "ff_first/outer": "ffn1.output_dense",
      "attention/query": "self_attn.linear_q",
      "attention/key": "self_attn.linear_k",
      "attention/value": "self_attn.linear_v",
      "attention/out": "self_attn.linear_out",
      "attention/distance": "self_attn.linear_pos",
      "ff_last/inner": "ffn2.intermediate_dense",
      "ff_last/outer": "ffn2.output_dense",
    },
    pointwise={
      "conv/gated": "conv_module.pointwise_conv1",
      "conv/pointwise": "conv_module.pointwise_conv2",
    },
    norm={
      "ff_first/norm": "ffn1_layer_norm",
      "attention_norm": "self_attn_layer_norm",
      "conv/norm": "conv_module.layer_norm",
      "conv/inner_norm": "conv_module.batch_norm",
      "ff_last/norm": "ffn2_layer_norm",
      "norm": "final_layer_norm",
    },
  ),
}


def _read(description: dict, where: str) -> Wav2Vec2ConformerConfig:
  """The config of a model of this family."""
  given, front = description["config"], description["preprocessor"]
  get = lambda field: given.get(field, _DEFAULTS[field])
  check_rate(front, where)
  check = functools.partial(check_choice, given, _DEFAULTS, where=where)
  check("position_embeddings_type", POSITIONS)
  check("hidden_act", tuple(ACTIVATIONS))
  check("feat_extract_activation", tuple(ACTIVATIONS))
  check("feat_extract_norm", ("group", "layer"))
  check("add_adapter", (False,))
  if get("conv_depthwise_kernel_size") % 2 == 0:
    raise UserError(
      f"{where}: config.json's conv_depthwise_kernel_size is "
      f"{get('conv_depthwise_kernel_size')}: it must be odd"
    )
  return Wav2Vec2ConformerConfig(
    family=given["model_type"],
    **transformer_sizes(get),
    kernel=get("conv_depthwise_kernel_size"),
    positions=get("position_embeddings_type"),
    rotary_base=get("rotary_embedding_base"),
    norm_eps=get("layer_norm_eps"),
    conv_activation=get("feat_extract_activation"),
    **convolutions(get),
    conv_norm=get("feat_extract_norm"),
    normalise=front.get("do_normalize", True),
  )


FAMILIES = {
  "wav2vec2-conformer": Family(
    "Wav2Vec2Conformer",
    "wav2vec2_conformer.",
    _NAMES,
    Wav2Vec2ConformerCTC,
    _read,
    # Of training; a positional convolution that transformers has and does not call; and the rotary
    # wavelengths, which are computed.
    unread=("masked_spec_embed", "encoder.pos_conv_embed.", "encoder.embed_positions."),
  )
}
