"""HuBERT, wav2vec 2.0 and their kin in Hugging Face's layout: config.json and names of weights."""

import functools

from jaxkd.errors import UserError
from jaxkd.models.huggingface.family import (
  Family,
  Names,
  check_choice,
  check_off,
  check_rate,
  convolutions,
  modules,
  transformer_sizes,
)
from jaxkd.models.layers import ACTIVATIONS
from jaxkd.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2CTC

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

_POSITION, _LAYER = "encoder.pos_conv_embed.", "encoder.layers.{layer}."
NAMES: Names = {
  "mask_embedding": (("masked_spec_embed",), "same"),
  "positions/{i}/kernel": (
    (
      _POSITION + "conv.parametrizations.weight.original1",
      _POSITION + "conv.weight_v",
    ),
    "conv",
  ),
  "positions/{i}/gain": (
    (_POSITION + "conv.parametrizations.weight.original0", _POSITION + "conv.weight_g"),
    "gain",
  ),
  "positions/{i}/bias": ((_POSITION + "conv.bias",), "same"),
  "distances": (("encoder.layers.0.attention.rel_attn_embed.weight",), "same"),
  "layers/gate_scale": ((_LAYER + "attention.gru_rel_pos_const",), "heads"),
  **modules(
    conv={"conv/{i}": "feature_extractor.conv_layers.{i}.conv"},
    linear={"project": "feature_projection.projection", "head": "lm_head"},
    norm={
      "conv/{i}/norm": "feature_extractor.conv_layers.{i}.layer_norm",
      "project_norm": "feature_projection.layer_norm",
      "norm": "encoder.layer_norm",
    },
  ),
  **modules(
    "layers/",
    _LAYER,
    linear={
      "query": "attention.q_proj",
      "key": "attention.k_proj",
      "value": "attention.v_proj",
      "out": "attention.out_proj",
      "gate": "attention.gru_rel_pos_linear",
      "inner": "feed_forward.intermediate_dense",
      "outer": "feed_forward.output_dense",
      "adapter_inner": "adapter_layer.linear_1",
      "adapter_outer": "adapter_layer.linear_2",
    },
    norm={
      "attention_norm": "layer_norm",
      "ff_norm": "final_layer_norm",
      "adapter_norm": "adapter_layer.norm",
    },
  ),
}
_DATA2VEC = NAMES | modules(conv={"positions/{i}": _POSITION + "layers.{i}.conv"})
# Of pre-training: no part of a CTC model.
_PRETRAINING = (
  "quantizer.",
  "project_q.",
  "project_hid.",
  "final_proj.",
  "label_embs_concat",
  "ctc_proj.",
  "speaker_proj.",
  "label_embeddings_concat",
  "layer_norm_for_extract.",
)


def _read(description: dict, where: str) -> Wav2Vec2Config:
  """The config of a model of these families."""
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
    **transformer_sizes(get),
    conv_activation=get("feat_extract_activation"),
    **convolutions(get),
    conv_norm=norm,
    projection_norm=get("feat_proj_layer_norm") if family == "hubert" else True,
    position_kernel=get("conv_pos_kernel_size" if data2vec else "num_conv_pos_embeddings"),
    position_groups=get("num_conv_pos_embedding_groups"),
    position_layers=given.get("num_conv_pos_embeddings", 5) if data2vec else 1,
    position_norm="layer" if data2vec else "weight",
    pre_norm=False if data2vec else get("do_stable_layer_norm"),
    norm_eps=get("layer_norm_eps"),
    buckets=get("num_buckets"),
    max_distance=get("max_bucket_distance"),
    adapter_width=given.get("adapter_attn_dim") or 0,
    normalise=front.get("do_normalize", True),
    mask_attention=norm == "layer" or front.get("return_attention_mask", False),
    dropout=get("hidden_dropout"),
    attention_dropout=get("attention_dropout"),
    activation_dropout=get("activation_dropout"),
    projection_dropout=get("feat_proj_dropout"),
    layer_drop=get("layerdrop"),
    time_mask=mask("time"),
    feature_mask=mask("feature"),
  )


def _field(given: dict, name: str):
  """A field of config.json, or what transformers assumes where it is silent."""
  return given.get(name, _DEFAULTS[name])


def _check_usable(description: dict, where: str) -> None:
  given, front = description["config"], description["preprocessor"]
  family = given.get("model_type")
  check_rate(front, where)
  check_off(given, _UNSUPPORTED, where)
  get = functools.partial(_field, given)
  if given.get("adapter_attn_dim") and (family != "wav2vec2" or not get("do_stable_layer_norm")):
    raise UserError(
      f"{where}: config.json's adapter_attn_dim is {given['adapter_attn_dim']!r}: only wav2vec2 "
      "with do_stable_layer_norm has adapters here"
    )
  for field in ("hidden_act", "feat_extract_activation"):
    check_choice(given, _DEFAULTS, field, tuple(ACTIVATIONS), where)


def masks_frames(given: dict) -> bool:
  """Whether a config.json's models have a vector for masked frames."""
  return any(_field(given, f"mask_{axis}_prob") > 0 for axis in ("time", "feature"))


def _family(class_name: str, prefix: str, names: Names = NAMES) -> Family:
  return Family(class_name, prefix, names, Wav2Vec2CTC, _read, _PRETRAINING, learns=True)


FAMILIES = {
  "hubert": _family("Hubert", "hubert."),
  "wav2vec2": _family("Wav2Vec2", "wav2vec2."),
  "wavlm": _family("WavLM", "wavlm."),
  "unispeech": _family("UniSpeech", "unispeech."),
  "unispeech-sat": _family("UniSpeechSat", "unispeech_sat."),
  "data2vec-audio": _family("Data2VecAudio", "data2vec_audio.", _DATA2VEC),
}
