"""LASR (MedASR) in Hugging Face's layout: config.json and names of weights."""

from jaxkd.errors import UserError
from jaxkd.models.features import FFT, HOP, WINDOW
from jaxkd.models.huggingface.family import Family, Names, check_choice, check_rate
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
  "subsampling/kernels/0": (("subsampler.conv_0.weight",), "conv"),
  "subsampling/kernels/1": (("subsampler.conv_1.weight",), "conv"),
  "subsampling/biases/0": (("subsampler.conv_0.bias",), "same"),
  "subsampling/biases/1": (("subsampler.conv_1.bias",), "same"),
  "layers/conv/depthwise": ((_LAYER + "conv.depthwise_conv.weight",), "depthwise"),
  "layers/conv/depthwise_bias": ((_LAYER + "conv.depthwise_conv.bias",), "same"),
  "layers/conv/inner_norm/scale": ((_LAYER + "conv.norm.weight",), "same"),
  "layers/conv/inner_norm/bias": ((_LAYER + "conv.norm.bias",), "same"),
  "layers/conv/inner_norm/mean": ((_LAYER + "conv.norm.running_mean",), "same"),
  "layers/conv/inner_norm/variance": ((_LAYER + "conv.norm.running_var",), "same"),
}
for _ours, (_theirs, _kind) in {
  "subsampling/project": ("subsampler.dense_0", "linear"),
  "subsampling/out": ("subsampler.dense_1", "linear"),
  "layers/ff_first/inner": (_LAYER + "feed_forward1.linear1", "linear"),
  "layers/ff_first/outer": (_LAYER + "feed_forward1.linear2", "linear"),
  "layers/attention/query": (_LAYER + "self_attn.q_proj", "linear"),
  "layers/attention/key": (_LAYER + "self_attn.k_proj", "linear"),
  "layers/attention/value": (_LAYER + "self_attn.v_proj", "linear"),
  "layers/attention/out": (_LAYER + "self_attn.o_proj", "linear"),
  "layers/conv/gated": (_LAYER + "conv.pointwise_conv1", "pointwise"),
  "layers/conv/pointwise": (_LAYER + "conv.pointwise_conv2", "pointwise"),
  "layers/ff_last/inner": (_LAYER + "feed_forward2.linear1", "linear"),
  "layers/ff_last/outer": (_LAYER + "feed_forward2.linear2", "linear"),
  "head": ("ctc_head", "pointwise"),
}.items():
  _NAMES[f"{_ours}/kernel"] = ((f"{_theirs}.weight",), _kind)
  _NAMES[f"{_ours}/bias"] = ((f"{_theirs}.bias",), "same")
for _ours, _theirs in {
  "norm": "out_norm",
  "layers/ff_first/norm": _LAYER + "norm_feed_forward1",
  "layers/attention/norm": _LAYER + "norm_self_att",
  "layers/conv/norm": _LAYER + "norm_conv",
  "layers/ff_last/norm": _LAYER + "norm_feed_forward2",
  "layers/norm": _LAYER + "norm_out",
}.items():
  _NAMES[f"{_ours}/scale"] = ((f"{_theirs}.weight",), "same")


def _read(
  description: dict,
  where: str,
  *,
  pool: int = 1,
  dtype: str = "float32",
  head_dropout: float = 0.0,
  freeze_conv: bool = False,
) -> LasrConfig:
  """`families.model_config` of this family; it is not trained, so rates are not read."""
  del head_dropout, freeze_conv
  given, front = description["config"].get("encoder_config") or {}, description["preprocessor"]
  get = lambda field: given.get(field, _DEFAULTS[field])
  _check_usable(given, front, where)
  return LasrConfig(
    family=description["config"]["model_type"],
    mels=get("num_mel_bins"),
    subsampling_channels=get("subsampling_conv_channels"),
    subsampling_kernel=get("subsampling_conv_kernel_size"),
    subsampling_stride=get("subsampling_conv_stride"),
    layers=get("num_hidden_layers"),
    width=get("hidden_size"),
    heads=get("num_attention_heads"),
    ff_width=get("intermediate_size"),
    conv_kernel=get("conv_kernel_size"),
    activation=get("hidden_act"),
    bias=get("attention_bias"),
    conv_bias=get("convolution_bias"),
    norm_eps=get("layer_norm_eps"),
    rotary_base=(given.get("rope_parameters") or {}).get("rope_theta", _ROTARY_BASE),
    ff_residual=tuple(get("feed_forward_residual_weights")),
    conv_residual=tuple(get("conv_residual_weights")),
    pool=pool,
    dtype=dtype,
  )


def _check_usable(given: dict, front: dict, where: str) -> None:
  """UserError where the encoder or its front-end is not the one that is here."""
  check_rate(front, where)
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
  for field, here in (_FRONT | {"feature_size": get("num_mel_bins")}).items():
    value = front.get(field, _FRONT.get(field, _DEFAULTS["num_mel_bins"]))
    if value != here:
      raise UserError(
        f"{where}: preprocessor_config.json's {field} is {value!r}: only {here!r} is there"
      )


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
