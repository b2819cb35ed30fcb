"""Folders in Hugging Face's layout, as tests read, damage and write them."""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from jaxkd import teacher as teacher_lib
from jaxkd.errors import UserError
from jaxkd.models.huggingface import families
from jaxkd.models.huggingface import folder as huggingface
from jaxkd.models.huggingface import weights as port


def edit(path: pathlib.Path, **changes) -> None:
  """Changes fields of a JSON file; a value of None takes the field away."""
  found = json.loads(path.read_text()) if path.exists() else {}
  found |= changes
  path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def edit_weights(folder: pathlib.Path, change) -> None:
  """Applies a function to name → tensor of model.safetensors."""
  path = folder / "model.safetensors"
  weights = load_file(path)
  change(weights)
  save_file({k: v.contiguous() for k, v in weights.items()}, path, metadata={"format": "pt"})


def leaves(params) -> dict[str, np.ndarray]:
  found = jax.tree_util.tree_flatten_with_path(params)[0]
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def assert_same(params, others) -> None:
  params, others = leaves(params), leaves(others)
  assert params.keys() == others.keys() and len(params) > 30
  for name, leaf in params.items():
    assert leaf.dtype == others[name].dtype == np.float32
    np.testing.assert_array_equal(leaf, others[name], err_msg=name)


def config_of(folder):
  return families.model_config(huggingface.read_description(folder), "")


def load_params(folder, *, classes=12, **options):
  return port.load(folder, config_of(folder), classes, **options)


def save_again(folder, target) -> None:
  """What jaxkd writes of a model that it has read."""
  teacher = teacher_lib.from_huggingface(folder)
  save(folder, target, teacher.params, teacher.vocabulary)


def save(folder, target, params, labels) -> None:
  description = huggingface.read_description(folder)
  huggingface.save(target, description, config_of(folder), params, labels)


def from_pretrained(kind, folder):
  """The model as transformers loads it, which finds every weight and no other."""
  loaded, problems = kind.from_pretrained(folder, output_loading_info=True)
  assert not any(problems.values()), problems
  return loaded.eval()


def refuse(folder, *words: str) -> str:
  """The error of loading a folder: one line that has these words."""
  with pytest.raises(UserError) as error:
    teacher_lib.from_huggingface(folder)
  text = str(error.value)
  assert "\n" not in text
  for word in words:
    assert word in text
  return text
