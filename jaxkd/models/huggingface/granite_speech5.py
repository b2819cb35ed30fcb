"""Granite Speech 5 in Hugging Face's layout: config.json and names of weights."""

from jaxkd.errors import UserError
from jaxkd.models.features import FFT, HOP, WINDOW
from jaxkd.models.granite_speech5 import GraniteSpeech5Config, GraniteSpeech5CTC
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
  "num_hidden_layers": 16,
  "num_attention_heads": 8,
  "num_key_value_heads": None,
  "head_dim": None,
  "intermediate_size": 4096,
  "hidden_act": "silu",
  "attention_bias": True,
  "num_mel_bins": 80,
  "max_position_embeddings": 512,
  "context_size": 128,
  "conv_kernel_size": 7,
  "conv_expansion_factor": 2,
}
_HALVING = (0, 1)
_FLOOR = 8.0
# Of preprocessor_config.json: the front-end that is here, which transformers assumes.
_FRONT = {"hop_length": HOP, "n_fft": FFT, "win_length": WINDOW, "delta_win_length": 3}

_LAYER = "layers.{layer}."
_NAMES: Names = {
  **conformer_layers(_LAYER),
  # A head that is tied is stored once, by the name that it has half-way.
  "head/kernel": (("ctc_head.weight", "out.weight"), "linear"),
  "head/bias": (("ctc_head.bias", "out.bias"), "same"),
  "layers/attention/distances": ((_LAYER + "self_attn.rel_pos_emb.weight",), "same"),
  **modules(linear={"project": "input_linear", "middle": "out", "feedback": "out_mid"}),
  **modules(
    "layers/",
    _LAYER,
    linear={
      "conv/gated": "conv.pointwise_lin1",
      "conv/pointwise": "conv.pointwise_lin2",
    },
  ),
}


def _read(description: dict, where: str) -> GraniteSpeech5Config:
  """The config of a model of this family."""
  config, front = description["config"], description["preprocessor"]
  given = config.get("encoder_config") or {}
  get = lambda field: given.get(field, _DEFAULTS[field])
  _check_usable(given, front, where)
  return GraniteSpeech5Config(
    family=config["model_type"],
    mels=get("num_mel_bins"),
    floor=front.get("logmel_floor_db", _FLOOR),
    **transformer_sizes(get),
    head_width=get("head_dim") or get("hidden_size") // get("num_attention_heads"),
    context=get("context_size"),
    distances=get("max_position_embeddings"),
    conv_kernel=get("conv_kernel_size"),
    conv_width=get("hidden_size") * get("conv_expansion_factor"),
    bias=get("attention_bias"),
    halving=_halving(given),
    tied=config.get("tie_word_embeddings", True),
  )


def _halving(given: dict) -> tuple[int, ...]:
  """Layers that halve the frames."""
  found = given.get("subsample_layers")
  return _HALVING if found is None else tuple(found)


def _check_usable(given: dict, front: dict, where: str) -> None:
  """UserError where the encoder or its front-end is not the one that is here."""
  get = lambda field: given.get(field, _DEFAULTS[field])
  for field, choices in {
    "hidden_act": tuple(ACTIVATIONS),
    "num_key_value_heads": (get("num_attention_heads"), None),
  }.items():
    check_choice(given, _DEFAULTS, field, choices, where)
  layers, halving = get("num_hidden_layers"), _halving(given)
  for said, right in {
    f"conv_kernel_size is {get('conv_kernel_size')}: it must be odd": get("conv_kernel_size") % 2,
    f"context_size is {get('context_size')}: it must be 1 to max_position_embeddings, "
    f"{get('max_position_embeddings')}": 1 <= get("context_size") <= get("max_position_embeddings"),
    f"subsample_layers is {list(halving)}: they must be different layers below {layers}": (
      len(set(halving)) == len(halving) and all(0 <= i < layers for i in halving)
    ),
  }.items():
    if not right:
      raise UserError(f"{where}: config.json's encoder_config.{said}")
  assumed = _FRONT | {"num_mel_bins": _DEFAULTS["num_mel_bins"]}
  check_front(front, _FRONT | {"num_mel_bins": get("num_mel_bins")}, assumed, where)


FAMILIES = {
  "granite_speech5_ctc": Family(
    "GraniteSpeech5",
    "encoder.",
    _NAMES,
    GraniteSpeech5CTC,
    _read,
    classes=16_384,
    blank=("pad_token_id", 0),
  )
}
