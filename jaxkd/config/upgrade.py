"""Configs on disk: what config.json holds, how older ones are read, what binds a workdir."""

import copy
import json

from ml_collections import ConfigDict

from jaxkd.config import fields, schema
from jaxkd.config.check import check_values
from jaxkd.errors import UserError

SCHEMA = 7  # of config.json; those from before there were numbers are 0

# Fields that configs of schema 0 may lack, with the value that they had before they were fields.
_MODEL = {"name": "conformer", "init": ""}
_TRAINING = {"accumulate": 1, "remat": False}
_LABELS = {
  "name": "auto",
  "alphabet": fields.ALPHABET,
  "lexicon": "",
  "cmudict": True,
  "missing": "error",
  "size": 500,
}
_SINCE_0 = {
  "labels": _LABELS,
  "student": _MODEL,
  "teacher": {"pool": 2, "model": _MODEL, "training": _TRAINING},
  "kd": {"normalization": "frames", "warmup": 0, "hypotheses": 0},
  "training": _TRAINING,
  "profile": "",
  "mesh": {"fsdp": 1},
}


def upgrade(stored: dict) -> ConfigDict:
  """A complete, unlocked config of the newest schema from what a config.json of any version holds.

  Fields that it lacks get the value that they had when it was written.

  Args:
    stored: left as it is.

  Raises:
    UserError: it is no config of this program, damaged, or of a newer version; the line does not
      name the file.
  """
  if not isinstance(stored, dict) or not {"recipe", "kd", "seed"} <= stored.keys():
    raise UserError("it is no config of jaxkd: it lacks recipe, kd or seed")
  schema = stored.get("schema", 0)
  if isinstance(schema, bool) or not isinstance(schema, int) or not 0 <= schema <= SCHEMA:
    raise UserError(
      f"its schema is {schema!r}, and this version of jaxkd knows 0 to {SCHEMA}: take a newer one"
    )
  tree = copy.deepcopy({k: v for k, v in stored.items() if k != "schema"})
  for number in range(schema, SCHEMA):
    _UPGRADES[number](tree)
  tree = _with_tuples(tree)
  check_values(tree)
  return ConfigDict(tree)


def _from_0(tree: dict) -> None:
  _fill(tree, _SINCE_0)
  kd = tree["kd"]
  if isinstance(kd, dict) and "loss" not in kd:
    kd["loss"] = "hypotheses" if kd["hypotheses"] else "kl"
    kd["hypotheses"] = kd["hypotheses"] or 10


def _fill(tree: dict, lacking: dict) -> None:
  for name, value in lacking.items():
    if not isinstance(value, dict):
      tree.setdefault(name, value)
    elif isinstance(tree.setdefault(name, {}), dict):
      _fill(tree[name], value)


def _from_1(tree: dict) -> None:
  _fill(tree, {"data": {"min_seconds": 0.0, "max_seconds": 1e6}})


def _from_2(tree: dict) -> None:
  _fill(tree, {"teacher": {"language": ""}})


def _from_3(tree: dict) -> None:
  _fill(tree, {"teacher": {"cache": False}})


def _from_4(tree: dict) -> None:
  _fill(
    tree,
    {
      "teacher": {"decay": 0.999},
      "kd": {
        "scale_ramp": [],
        "temperature_ramp": [],
        "delays": [0],
        "softness": 1.0,
        "blank_scale": 1.0,
        "targets": "hypotheses",
        "consistency": 0.0,
        "n_ramp": [],
        "inner_scale": 0.0,
      },
    },
  )
  for model in (tree.get("student"), tree["teacher"].get("model")):
    if isinstance(model, dict) and model.get("name") == "conformer":
      model.setdefault("inner_layers", [])
  training = {"batch_seconds_per_device": 0.0, "row_multiple": 1}
  _fill(tree, {"training": training, "teacher": {"training": training}})
  _fill(tree, {"checkpoint": {"every_minutes": 0.0}})


def _from_5(tree: dict) -> None:
  _fill(tree, {"kd": {"co_teacher": 0.0, "delay_of": "frame"}})
  for model in (tree.get("student"), tree["teacher"].get("model")):
    if isinstance(model, dict) and model.get("name") == "conformer":
      _fill(model, {"chunk_frames": [], "left_frames": []})


def _from_6(tree: dict) -> None:
  _fill(tree, {"kd": {"ctc": "transcripts"}})


_UPGRADES = (_from_0, _from_1, _from_2, _from_3, _from_4, _from_5, _from_6)


def _with_tuples(value):
  """JSON has lists where configs have tuples."""
  if isinstance(value, dict):
    return {k: _with_tuples(v) for k, v in value.items()}
  if isinstance(value, list):
    return tuple(_with_tuples(v) for v in value)
  return value


def stored(config: ConfigDict) -> dict:
  """What config.json holds: plain values and the schema's number."""
  return {"schema": SCHEMA} | json.loads(json.dumps(config.to_dict()))


def flat(config: ConfigDict | dict) -> dict:
  """Dotted name → plain value of every field, of a config or of what a config.json holds.

  Raises:
    UserError: what is stored is no config of this program.
  """
  if not isinstance(config, ConfigDict):
    config = upgrade(config)
  return dict(_leaves(json.loads(json.dumps(config.to_dict()))))


def binding(config: ConfigDict | dict) -> dict:
  """Dotted name → plain value of the fields that the result depends on.

  Data counts by its fingerprint and a lexicon by its words, so that their paths are left out.

  Args:
    config: a config of this version, or what a config.json of any version holds.

  Raises:
    UserError: what is stored is no config of this program.
  """
  free = set(schema.unbound(fields.FIELDS))
  return {name: value for name, value in flat(config).items() if name not in free}


def _leaves(tree: dict, prefix: str = ""):
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value
