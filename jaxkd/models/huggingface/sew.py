"""SEW and SEW-D in Hugging Face's layout: config.json and names of weights."""

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
from jaxkd.models.huggingface.wav2vec2 import NAMES
from jaxkd.models.layers import ACTIVATIONS
from jaxkd.models.sew import Distances, SewConfig, SewCTC

# What transformers assumes where config.json is silent.
_DEFAULTS = {
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "intermediate_size": 3072,
  "squeeze_factor": 2,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-5,
  "feat_extract_norm": "group",
  "feat_extract_activation": "gelu",
  "conv_dim": (64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512),
  "conv_stride": (5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1),
  "conv_kernel": (10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1),
  "conv_bias": False,
  "num_conv_pos_embeddings": 128,
  "num_conv_pos_embedding_groups": 16,
}
_DISTANCE_DEFAULTS = _DEFAULTS | {
  "hidden_act": "gelu_python",
  "layer_norm_eps": 1e-7,
  "feature_layer_norm_eps": 1e-5,
  "max_position_embeddings": 512,
  "max_relative_positions": -1,
  "position_buckets": 256,
  "share_att_key": True,
  "pos_att_type": ("p2c", "c2p"),
  "norm_rel_ebd": "layer_norm",
}
# Parts that DeBERTa may have and that are not here: field -> value that turns them off.
_UNSUPPORTED = {
  "relative_attention": True,
  "attention_head_size": None,
  "conv_kernel_size": 0,
  "add_adapter": False,
}

_NAMES: Names = {
  name: NAMES[name] for name in NAMES if name.startswith(("conv/", "norm/", "layers/", "head/"))
} | {
  "position/kernel": NAMES["positions/{i}/kernel"],
  "position/gain": NAMES["positions/{i}/gain"],
  "position/bias": NAMES["positions/{i}/bias"],
  **modules(
    linear={"project": "feature_projection", "unsqueeze": "encoder.upsample.projection"},
    norm={"project_norm": "layer_norm"},
  ),
}
_DISTANCE_NAMES: Names = _NAMES | {
  "distances": (("encoder.encoder.rel_embeddings.weight",), "same"),
  **modules(norm={"distances_norm": "encoder.encoder.LayerNorm"}),
  **modules(
    "layers/",
    "encoder.encoder.layer.{layer}.",
    linear={
      "query": "attention.self.query_proj",
      "key": "attention.self.key_proj",
      "value": "attention.self.value_proj",
      "out": "attention.output.dense",
      "distance_key": "attention.self.pos_key_proj",
      "distance_query": "attention.self.pos_query_proj",
      "inner": "intermediate.dense",
      "outer": "output.dense",
    },
    norm={
      "attention_norm": "attention.output.LayerNorm",
      "ff_norm": "output.LayerNorm",
    },
  ),
}


def _read(description: dict, where: str) -> SewConfig:
  """The config of a model of these families."""
  given, front = description["config"], description["preprocessor"]
  by_distance = given["model_type"] == "sew-d"
  defaults = _DISTANCE_DEFAULTS if by_distance else _DEFAULTS
  get = lambda field: given.get(field, defaults[field])
  check_rate(front, where)
  check_off(given, _UNSUPPORTED, where)
  for field in ("hidden_act", "feat_extract_activation"):
    check_choice(given, defaults, field, tuple(ACTIVATIONS), where)
  check_choice(given, defaults, "feat_extract_norm", ("group", "layer"), where)
  return SewConfig(
    family=given["model_type"],
    **transformer_sizes(get),
    conv_activation=get("feat_extract_activation"),
    **convolutions(get),
    conv_norm=get("feat_extract_norm"),
    squeeze=get("squeeze_factor"),
    position_kernel=get("num_conv_pos_embeddings"),
    position_groups=get("num_conv_pos_embedding_groups"),
    feature_eps=get("feature_layer_norm_eps" if by_distance else "layer_norm_eps"),
    norm_eps=get("layer_norm_eps"),
    distances=_distances(get, where) if by_distance else None,
    normalise=front.get("do_normalize", True),
  )


def _distances(get, where: str) -> Distances:
  """SEW-D's attention by distance, of fields of config.json."""
  by_query, by_key = (kind in get("pos_att_type") for kind in ("c2p", "p2c"))
  if not by_query and not by_key:
    raise UserError(
      f"{where}: config.json's pos_att_type is {get('pos_att_type')!r}: it must have c2p or p2c"
    )
  farthest, buckets = get("max_relative_positions"), get("position_buckets")
  if farthest < 1:
    farthest = get("max_position_embeddings")
  return Distances(
    span=buckets if buckets > 0 else farthest,
    farthest=farthest if buckets > 0 else 0,
    shared=get("share_att_key"),
    by_query=by_query,
    by_key=by_key,
    norm="layer_norm" in [part.strip() for part in get("norm_rel_ebd").lower().split("|")],
  )


def _family(class_name: str, prefix: str, names: Names) -> Family:
  # The vector of masked frames is for training.
  return Family(class_name, prefix, names, SewCTC, _read, ("masked_spec_embed",))


FAMILIES = {
  "sew": _family("SEW", "sew.", _NAMES),
  "sew-d": _family("SEWD", "sew_d.", _DISTANCE_NAMES),
}
