"""Wav2Vec2-BERT in Hugging Face's layout: config.json and names of weights."""

import functools

from jaxkd.errors import UserError
from jaxkd.models.huggingface.family import (
  Family,
  Names,
  check_choice,
  check_front,
  modules,
  transformer_sizes,
)
from jaxkd.models.layers import ACTIVATIONS
from jaxkd.models.wav2vec2_bert import POSITIONS, STACKED, Wav2Vec2BertConfig, Wav2Vec2BertCTC

# What transformers assumes where config.json is silent.
_DEFAULTS = {
  "hidden_size": 1024,
  "num_hidden_layers": 24,
  "num_attention_heads": 16,
  "intermediate_size": 4096,
  "feature_projection_input_dim": 160,
  "hidden_act": "swish",
  "layer_norm_eps": 1e-5,
  "add_adapter": False,
  "adapter_kernel_size": 3,
  "adapter_stride": 2,
  "num_adapter_layers": 1,
  "adapter_act": "relu",
  "use_intermediate_ffn_before_adapter": False,
  "output_hidden_size": None,
  "position_embeddings_type": "relative_key",
  "rotary_embedding_base": 10_000,
  "left_max_position_embeddings": 64,
  "right_max_position_embeddings": 8,
  "conv_depthwise_kernel_size": 31,
}
# Of preprocessor_config.json: field -> its only value that is here, and the default.
_FRONT = {"stride": STACKED, "return_attention_mask": True}

_LAYER = "encoder.layers.{layer}."
_ATTENTION = {
  "attention/query": "self_attn.linear_q",
  "attention/key": "self_attn.linear_k",
  "attention/value": "self_attn.linear_v",
  "attention/out": "self_attn.linear_out",
}
_NAMES: Names = {
  "layers/depthwise": ((_LAYER + "conv_module.depthwise_conv.weight",), "depthwise"),
  "layers/attention/distances": ((_LAYER + "self_attn.distance_embedding.weight",), "same"),
  "layers/attention/content_bias": ((_LAYER + "self_attn.pos_bias_u",), "same"),
  "layers/attention/position_bias": ((_LAYER + "self_attn.pos_bias_v",), "same"),
  **modules(
    linear={
      "project": "feature_projection.projection",
      "adapter_ff/inner": "intermediate_ffn.intermediate_dense",
      "adapter_ff/outer": "intermediate_ffn.output_dense",
      "adapter_project": "adapter.proj",
      "head": "lm_head",
    },
    norm={
      "project_norm": "feature_projection.layer_norm",
      "adapter_norm": "adapter.proj_layer_norm",
    },
  ),
  **modules(
    "layers/",
    _LAYER,
    linear=_ATTENTION
    | {
      "ff1/inner": "ffn1.intermediate_dense",
      "ff1/outer": "ffn1.output_dense",
      "ff2/inner": "ffn2.intermediate_dense",
      "ff2/outer": "ffn2.output_dense",
      "attention/distance": "self_attn.linear_pos",
    },
    pointwise={
      "gated": "conv_module.pointwise_conv1",
      "pointwise": "conv_module.pointwise_conv2",
    },
    norm={
      "ff1_norm": "ffn1_layer_norm",
      "attention_norm": "self_attn_layer_norm",
      "conv_norm": "conv_module.layer_norm",
      "inner_norm": "conv_module.depthwise_layer_norm",
      "ff2_norm": "ffn2_layer_norm",
      "norm": "final_layer_norm",
    },
  ),
  **modules(
    "adapter/{i}/",
    "adapter.layers.{i}.",
    conv={"residual": "residual_conv", "strided": "self_attn_conv"},
    linear=_ATTENTION | {"ff/inner": "ffn.intermediate_dense", "ff/outer": "ffn.output_dense"},
    norm={
      "residual_norm": "residual_layer_norm",
      "attention_norm": "self_attn_layer_norm",
      "ff_norm": "ffn_layer_norm",
    },
  ),
}


def _read(description: dict, where: str) -> Wav2Vec2BertConfig:
  """The config of a model of this family."""
  _check_usable(description, where)
  given = description["config"]
  get = lambda name: given.get(name, _DEFAULTS[name])
  adapts = get("add_adapter")
  return Wav2Vec2BertConfig(
    family=given["model_type"],
    mels=get("feature_projection_input_dim") // STACKED,
    **transformer_sizes(get),
    kernel=get("conv_depthwise_kernel_size"),
    norm_eps=get("layer_norm_eps"),
    positions=get("position_embeddings_type"),
    left=get("left_max_position_embeddings"),
    right=get("right_max_position_embeddings"),
    rotary_base=get("rotary_embedding_base"),
    adapter_layers=get("num_adapter_layers") if adapts else 0,
    adapter_kernel=get("adapter_kernel_size"),
    adapter_stride=get("adapter_stride"),
    adapter_width=get("output_hidden_size") or get("hidden_size"),
    adapter_activation=get("adapter_act"),
    adapter_ff=adapts and get("use_intermediate_ffn_before_adapter"),
  )


def _check_usable(description: dict, where: str) -> None:
  given, front = description["config"], description["preprocessor"]
  check_front(front, _FRONT, _FRONT, where)
  check = functools.partial(check_choice, given, _DEFAULTS, where=where)
  check("position_embeddings_type", POSITIONS)
  check("hidden_act", tuple(ACTIVATIONS))
  get = lambda name: given.get(name, _DEFAULTS[name])
  if get("add_adapter"):
    check("adapter_act", tuple(ACTIVATIONS))
    if get("adapter_kernel_size") // 2 != get("adapter_stride") // 2:
      raise UserError(
        f"{where}: config.json's adapter_kernel_size is {get('adapter_kernel_size')!r} and its "
        f"adapter_stride {get('adapter_stride')!r}: transformers counts other frames than these "
        "have, unless half of each is the same"
      )
  mels = front.get("num_mel_bins", 80)
  if get("feature_projection_input_dim") != STACKED * mels:
    raise UserError(
      f"{where}: config.json's feature_projection_input_dim is "
      f"{get('feature_projection_input_dim')!r}: it must be {STACKED} times num_mel_bins of "
      f"preprocessor_config.json, {mels!r}"
    )


FAMILIES = {
  "wav2vec2-bert": Family(
    "Wav2Vec2Bert",
    "wav2vec2_bert.",
    _NAMES,
    Wav2Vec2BertCTC,
    _read,
    unread=("masked_spec_embed",),  # of training
  )
}
