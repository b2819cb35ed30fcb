"""What is to be known of a family of CTC models in Hugging Face's layout."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxkd.errors import UserError
from jaxkd.types import SAMPLE_RATE_HZ

# Ours, a leaf's path with {i} for an index → theirs, newest spelling first, with {layer} where ours
# is stacked (`layers/...`); how an array of theirs becomes ours (`weights.KINDS`).
Names = dict[str, tuple[tuple[str, ...], str]]


class Family(NamedTuple):
  """One architecture, by one of its names.

  Attributes:
    class_name: of transformers, without its "ForCTC".
    prefix: of its weights' names in a file, but for those of the head.
    names: of its weights, without the prefix.
    model: (config, classes, *, rngs) -> nnx.Module that is called with (audio, audio_len), has
      `encode` and `classify`, a `head`, and `layers` that are stacked.
    read: (description of `folder.read_description`, folder or file for errors) -> its config, which
      has `family`, `layers`, `pool`, `dtype`, `frame_samples` and `frame_len`. Raises UserError
      where the model cannot be had exactly.
    unread: beginnings of names of weights that are no part of a CTC model.
    learns: whether it can be fine-tuned, too.
    classes: of the head, where config.json has no vocab_size.
    blank: (field of config.json that is the blank's class, the class where it is silent); None
      where the blank is the tokenizer's pad token.
  """

  class_name: str
  prefix: str
  names: Names
  model: Callable[..., Any]
  read: Callable[[dict, str], Any]
  unread: tuple[str, ...] = ()
  learns: bool = False
  classes: int = 32
  blank: tuple[str, int] | None = None

  @property
  def head(self) -> str:
    """Name of the head's weight."""
    return self.names["head/kernel"][0][0]


def modules(ours: str = "", theirs: str = "", /, **kinds: dict[str, str]) -> Names:
  """Names of the weights and biases of modules; one without a bias looks none up.

  Args:
    ours, theirs: beginnings of all names.
    **kinds: for each kind of weights (of `weights.KINDS`, or "norm" for the scale of a norm) the
      rest of our name of a module → of theirs.
  """
  found: Names = {}
  for kind, parts in kinds.items():
    weight, kind = ("scale", "same") if kind == "norm" else ("kernel", kind)
    for here, there in parts.items():
      found[f"{ours}{here}/{weight}"] = ((f"{theirs}{there}.weight",), kind)
      found[f"{ours}{here}/bias"] = ((f"{theirs}{there}.bias",), "same")
  return found


def conformer_layers(layer: str) -> Names:
  """What transformers' Conformer layers have in common, whatever their convolutions' kinds are.

  Args:
    layer: beginning of the names of a layer.
  """
  return {
    "layers/conv/depthwise": ((layer + "conv.depthwise_conv.weight",), "depthwise"),
    "layers/conv/depthwise_bias": ((layer + "conv.depthwise_conv.bias",), "same"),
    "layers/conv/inner_norm/mean": ((layer + "conv.norm.running_mean",), "same"),
    "layers/conv/inner_norm/variance": ((layer + "conv.norm.running_var",), "same"),
    **modules(
      "layers/",
      layer,
      linear={
        "ff_first/inner": "feed_forward1.linear1",
        "ff_first/outer": "feed_forward1.linear2",
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/out": "self_attn.o_proj",
        "ff_last/inner": "feed_forward2.linear1",
        "ff_last/outer": "feed_forward2.linear2",
      },
      norm={
        "ff_first/norm": "norm_feed_forward1",
        "attention/norm": "norm_self_att",
        "conv/norm": "norm_conv",
        "conv/inner_norm": "conv.norm",
        "ff_last/norm": "norm_feed_forward2",
        "norm": "norm_out",
      },
    ),
  }


def transformer_sizes(get: Callable[[str], Any]) -> dict:
  """Fields of our configs that every family's config.json has by the same name.

  Args:
    get: a field of config.json → its value, or what transformers assumes.
  """
  return dict(
    width=get("hidden_size"),
    layers=get("num_hidden_layers"),
    heads=get("num_attention_heads"),
    ff_width=get("intermediate_size"),
    activation=get("hidden_act"),
  )


def convolutions(get: Callable[[str], Any]) -> dict:
  """The same of convolutions over a waveform, but for their activation and norm."""
  return dict(
    conv_channels=tuple(get("conv_dim")),
    conv_kernels=tuple(get("conv_kernel")),
    conv_strides=tuple(get("conv_stride")),
    conv_bias=get("conv_bias"),
  )


def check_rate(front: dict, where: str) -> None:
  """UserError where a front-end's sampling rate is another than ours."""
  rate = front.get("sampling_rate", SAMPLE_RATE_HZ)
  if rate != SAMPLE_RATE_HZ:
    raise UserError(
      f"{where}: preprocessor_config.json's sampling_rate is {rate!r}: "
      f"only models of {SAMPLE_RATE_HZ} Hz can be used"
    )


def check_front(front: dict, here: dict, assumed: dict, where: str) -> None:
  """UserError where a preprocessor_config.json is of another front-end than the one that is here.

  Args:
    front: what is in the file.
    here: field → its only value.
    assumed: field → what transformers takes where the file is silent.
    where: folder or file.
  """
  check_rate(front, where)
  for field, only in here.items():
    if (value := front.get(field, assumed[field])) != only:
      raise UserError(
        f"{where}: preprocessor_config.json's {field} is {value!r}: only {only!r} is there"
      )


def check_off(given: dict, off: dict, where: str) -> None:
  """UserError where a field of config.json is another than the value that turns a part off."""
  for field, value in off.items():
    if given.get(field, value) != value:
      raise UserError(
        f"{where}: config.json's {field} is {given[field]!r}: only {value!r} is there"
      )


def check_choice(given: dict, defaults: dict, field: str, choices, where: str) -> None:
  """UserError where a field of config.json has a value that is not here."""
  value = given.get(field, defaults.get(field))
  if value not in choices:
    raise UserError(
      f"{where}: config.json's {field} is {value!r}: it must be "
      + ("one of " if len(choices) > 1 else "")
      + ", ".join(map(str, choices))
    )
