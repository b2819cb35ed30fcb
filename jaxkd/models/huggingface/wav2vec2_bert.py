"""Wav2Vec2-BERT in Hugging Face's layout: config.json and names of weights."""

import functools

from jaxkd.errors import UserError
from jaxkd.models.huggingface.family import Family, Names, check_choice, check_rate
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

_LAYER, _ADAPTER = "encoder.layers.{layer}.", "adapter.layers.{i}."
_NAMES: Names = {
  "layers/depthwise": ((_LAYER + "conv_module.depthwise_conv.weight",), "depthwise"),
  "layers/gated/kernel": ((_LAYER + "conv_module.pointwise_conv1.weight",), "pointwise"),
  "layers/pointwise/kernel": ((_LAYER + "conv_module.pointwise_conv2.weight",), "pointwise"),
  "layers/attention/distances": ((_LAYER + "self_attn.distance_embedding.weight",), "same"),
  "layers/attention/distance/kernel": ((_LAYER + "self_attn.linear_pos.weight",), "linear"),
  "layers/attention/content_bias": ((_LAYER + "self_attn.pos_bias_u",), "same"),
  "layers/attention/position_bias": ((_LAYER + "self_attn.pos_bias_v",), "same"),
}
for _ours, _theirs in {
  "project": "feature_projection.projection",
  "layers/ff1/inner": _LAYER + "ffn1.intermediate_dense",
  "layers/ff1/outer": _LAYER + "ffn1.output_dense",
  "layers/ff2/inner": _LAYER + "ffn2.intermediate_dense",
  "layers/ff2/outer": _LAYER + "ffn2.output_dense",
  **{
    f"{ours}/attention/{part}": f"{theirs}self_attn.linear_{part[0]}"
    for ours, theirs in (("layers", _LAYER), ("adapter/{i}", _ADAPTER))
    for part in ("query", "key", "value")
  },
  "layers/attention/out": _LAYER + "self_attn.linear_out",
  "adapter/{i}/attention/out": _ADAPTER + "self_attn.linear_out",
  "adapter/{i}/ff/inner": _ADAPTER + "ffn.intermediate_dense",
  "adapter/{i}/ff/outer": _ADAPTER + "ffn.output_dense",
  "adapter_ff/inner": "intermediate_ffn.intermediate_dense",
  "adapter_ff/outer": "intermediate_ffn.output_dense",
  "adapter_project": "adapter.proj",
  "head": "lm_head",
}.items():
  _NAMES[f"{_ours}/kernel"] = ((f"{_theirs}.weight",), "linear")
  _NAMES[f"{_ours}/bias"] = ((f"{_theirs}.bias",), "same")
for _ours, _theirs in {
  "project_norm": "feature_projection.layer_norm",
  "layers/ff1_norm": _LAYER + "ffn1_layer_norm",
  "layers/attention_norm": _LAYER + "self_attn_layer_norm",
  "layers/conv_norm": _LAYER + "conv_module.layer_norm",
  "layers/inner_norm": _LAYER + "conv_module.depthwise_layer_norm",
  "layers/ff2_norm": _LAYER + "ffn2_layer_norm",
  "layers/norm": _LAYER + "final_layer_norm",
  "adapter_norm": "adapter.proj_layer_norm",
  "adapter/{i}/residual_norm": _ADAPTER + "residual_layer_norm",
  "adapter/{i}/attention_norm": _ADAPTER + "self_attn_layer_norm",
  "adapter/{i}/ff_norm": _ADAPTER + "ffn_layer_norm",
}.items():
  _NAMES[f"{_ours}/scale"] = ((f"{_theirs}.weight",), "same")
  _NAMES[f"{_ours}/bias"] = ((f"{_theirs}.bias",), "same")
for _ours, _theirs in {"residual": "residual_conv", "strided": "self_attn_conv"}.items():
  _NAMES[f"adapter/{{i}}/{_ours}/kernel"] = ((f"{_ADAPTER}{_theirs}.weight",), "conv")
  _NAMES[f"adapter/{{i}}/{_ours}/bias"] = ((f"{_ADAPTER}{_theirs}.bias",), "same")


def _read(
  description: dict,
  where: str,
  *,
  pool: int = 1,
  dtype: str = "float32",
  head_dropout: float = 0.0,
  freeze_conv: bool = False,
) -> Wav2Vec2BertConfig:
  """`families.model_config` of this family; it is not trained, so rates are not read."""
  del head_dropout, freeze_conv
  _check_usable(description, where)
  given = description["config"]
  get = lambda name: given.get(name, _DEFAULTS[name])
  adapts = get("add_adapter")
  return Wav2Vec2BertConfig(
    family=given["model_type"],
    mels=get("feature_projection_input_dim") // STACKED,
    width=get("hidden_size"),
    layers=get("num_hidden_layers"),
    heads=get("num_attention_heads"),
    ff_width=get("intermediate_size"),
    activation=get("hidden_act"),
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
    pool=pool,
    dtype=dtype,
  )


def _check_usable(description: dict, where: str) -> None:
  given, front = description["config"], description["preprocessor"]
  check_rate(front, where)
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
  for field, value in _FRONT.items():
    if front.get(field, value) != value:
      raise UserError(
        f"{where}: preprocessor_config.json's {field} is {front[field]!r}: only {value!r} is there"
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
