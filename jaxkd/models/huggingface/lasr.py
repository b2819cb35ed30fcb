"""LASR (MedASR) in Hugging Face's layout: config.json and names of weights."""

from jaxkd.errors import UserError
from jaxkd.models.features import FFT, HOP, WINDOW
from jaxkd.models.huggingface.family import (
  Family,
  Names,
  check_choice,
  check_front,
  conformer_layers,
  modules,
  transformer_sizes,
)
from jaxkd.models.lasr import LasrConfig, LasrCTC
from jaxkd.models.layers import ACTIVATIONS

# What transformers assumes where config.json is silent about the encoder.
_DEFAULTS = {
  "hidden_size": 512,
  "num_hidden_layers": 17,
  "num_attention_heads": 8,
  "intermediate_size": 2048,
  "hidden_act": "silu",
  "attention_bias": False,
  "convolution_bias": False,
  "conv_kernel_size": 32,
  "subsampling_conv_channels": 256,
  "num_mel_bins": 128,
  "subsampling_conv_kernel_size": 5,
  "subsampling_conv_stride": 2,
  "layer_norm_eps": 1e-6,
  "feed_forward_residual_weights": (1.5, 0.5),
  "conv_residual_weights": (2.0, 1.0),
}
_ROTARY_BASE = 10_000.0
# Of preprocessor_config.json: the front-end that is here, which transformers assumes.
_FRONT = {"hop_length": HOP, "n_fft": FFT, "win_length": WINDOW}

_LAYER = "layers.{layer}."
_NAMES: Names = {
  **conformer_layers(_LAYER),
  "subsampling/kernels/0": (("subsampler.conv_0.weight",), "conv"),
  "subsampling/kernels/1": (("subsampler.conv_1.weight",), "conv"),
  "subsampling/biases/0": (("subsampler.conv_0.bias",), "same"),
  "subsampling/biases/1": (("subsampler.conv_1.bias",), "same"),
  **modules(
    linear={"subsampling/project": "subsampler.dense_0", "subsampling/out": "subsampler.dense_1"},
    pointwise={"head": "ctc_head"},
    norm={"norm": "out_norm"},
  ),
  **modules(
    "layers/",
    _LAYER,
    pointwise={"conv/gated": "conv.pointwise_conv1", "conv/pointwise": "conv.pointwise_conv2"},
  ),
}


def _read(description: dict, where: str) -> LasrConfig:
  """The config of a model of this family."""
  given, front = description["config"].get("encoder_config") or {}, description["preprocessor"]
  get = lambda field: given.get(field, _DEFAULTS[field])
  _check_usable(given, front, where)
  return LasrConfig(
    family=description["config"]["model_type"],
    mels=get("num_mel_bins"),
    subsampling_channels=get("subsampling_conv_channels"),
    subsampling_kernel=get("subsampling_conv_kernel_size"),
    subsampling_stride=get("subsampling_conv_stride"),
    **transformer_sizes(get),
    conv_kernel=get("conv_kernel_size"),
    bias=get("attention_bias"),
    conv_bias=get("convolution_bias"),
    norm_eps=get("layer_norm_eps"),
    rotary_base=(given.get("rope_parameters") or {}).get("rope_theta", _ROTARY_BASE),
    ff_residual=tuple(get("feed_forward_residual_weights")),
    conv_residual=tuple(get("conv_residual_weights")),
  )


def _check_usable(given: dict, front: dict, where: str) -> None:
  """UserError where the encoder or its front-end is not the one that is here."""
  get = lambda field: given.get(field, _DEFAULTS[field])
  for field, choices in {
    "hidden_act": tuple(ACTIVATIONS),
    "head_dim": (get("hidden_size") // get("num_attention_heads"), None),
  }.items():
    check_choice(given, _DEFAULTS, field, choices, where)
  rope = (given.get("rope_parameters") or {}).get("rope_type", "default")
  if rope != "default":
    raise UserError(
      f"{where}: config.json's encoder_config.rope_parameters.rope_type is {rope!r}: only "
      "'default' is there"
    )
  assumed = _FRONT | {"feature_size": _DEFAULTS["num_mel_bins"]}
  check_front(front, _FRONT | {"feature_size": get("num_mel_bins")}, assumed, where)


FAMILIES = {
  "lasr_ctc": Family(
    "Lasr",
    "encoder.",
    _NAMES,
    LasrCTC,
    _read,
    classes=512,
    blank=("pad_token_id", 0),
  )
}
