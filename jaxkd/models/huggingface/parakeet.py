"""Parakeet (FastConformer) in Hugging Face's layout: config.json and names of weights."""

from jaxkd.errors import UserError
from jaxkd.models.fastconformer import FastConformerConfig, FastConformerCTC
from jaxkd.models.features import FFT, HOP, PREEMPHASIS, WINDOW
from jaxkd.models.huggingface.family import (
  Family,
  Names,
  check_choice,
  check_front,
  conformer_layers,
  modules,
  transformer_sizes,
)
from jaxkd.models.layers import ACTIVATIONS

# What transformers assumes where config.json is silent about the encoder.
_DEFAULTS = {
  "hidden_size": 1024,
  "num_hidden_layers": 24,
  "num_attention_heads": 8,
  "intermediate_size": 4096,
  "hidden_act": "silu",
  "attention_bias": True,
  "convolution_bias": True,
  "conv_kernel_size": 9,
  "subsampling_factor": 8,
  "subsampling_conv_channels": 256,
  "num_mel_bins": 80,
  "subsampling_conv_kernel_size": 3,
  "subsampling_conv_stride": 2,
  "scale_input": True,
}
# Of preprocessor_config.json: the front-end that is here, and what transformers assumes.
_FRONT = {
  "hop_length": HOP,
  "n_fft": FFT,
  "win_length": WINDOW,
  "preemphasis": PREEMPHASIS,
}
_FACTORS = (2, 4, 8, 16)

_LAYER, _SUBSAMPLING = "layers.{layer}.", "subsampling.layers."
_NAMES: Names = {
  **conformer_layers(_LAYER),
  "layers/attention/content_bias": ((_LAYER + "self_attn.bias_u",), "same"),
  "layers/attention/position_bias": ((_LAYER + "self_attn.bias_v",), "same"),
  **modules(
    conv2d={"subsampling": _SUBSAMPLING + "0"},
    linear={"subsampling/project": "subsampling.linear"},
    pointwise={"head": "ctc_head"},
  ),
  **modules(
    "layers/",
    _LAYER,
    linear={
      "attention/positions": "self_attn.relative_k_proj",
    },
    pointwise={"conv/gated": "conv.pointwise_conv1", "conv/pointwise": "conv.pointwise_conv2"},
  ),
}
for _i in range(len(_FACTORS) - 1):  # a depthwise convolution, a pointwise one and a ReLU each
  _at = 3 * _i + 2
  _NAMES |= {
    f"subsampling/depthwise/{_i}": ((f"{_SUBSAMPLING}{_at}.weight",), "conv2d"),
    f"subsampling/depthwise_bias/{_i}": ((f"{_SUBSAMPLING}{_at}.bias",), "same"),
    **modules(pointwise2d={f"subsampling/pointwise/{_i}": f"{_SUBSAMPLING}{_at + 1}"}),
  }


def _read(description: dict, where: str) -> FastConformerConfig:
  """The config of a model of this family."""
  given, front = description["config"].get("encoder_config") or {}, description["preprocessor"]
  get = lambda field: given.get(field, _DEFAULTS[field])
  _check_usable(given, front, where)
  return FastConformerConfig(
    mels=get("num_mel_bins"),
    **transformer_sizes(get),
    conv_kernel=get("conv_kernel_size"),
    subsampling=get("subsampling_factor"),
    subsampling_channels=get("subsampling_conv_channels"),
    bias=get("attention_bias"),
    conv_bias=get("convolution_bias"),
    scale_input=get("scale_input"),
  )


def _check_usable(given: dict, front: dict, where: str) -> None:
  """UserError where the encoder or its front-end is not the one that is here."""
  get = lambda field: given.get(field, _DEFAULTS[field])
  for field, choices in {
    "hidden_act": tuple(ACTIVATIONS),
    "subsampling_factor": _FACTORS,
    "subsampling_conv_kernel_size": (3,),
    "subsampling_conv_stride": (2,),
    "head_dim": (get("hidden_size") // get("num_attention_heads"), None),
  }.items():
    check_choice(given, _DEFAULTS, field, choices, where)
  mels, factor = get("num_mel_bins"), get("subsampling_factor")
  for said, right in {
    f"conv_kernel_size is {get('conv_kernel_size')}: it must be odd": get("conv_kernel_size") % 2,
    f"num_mel_bins is {mels}: it must be a multiple of {factor}": mels % factor == 0,
  }.items():
    if not right:
      raise UserError(f"{where}: config.json's encoder_config.{said}")
  assumed = _FRONT | {"feature_size": _DEFAULTS["num_mel_bins"]}
  check_front(front, _FRONT | {"feature_size": mels}, assumed, where)


FAMILIES = {
  "parakeet_ctc": Family(
    "Parakeet",
    "encoder.",
    _NAMES,
    FastConformerCTC,
    _read,
    classes=1025,
    blank=("pad_token_id", 1024),
  )
}
