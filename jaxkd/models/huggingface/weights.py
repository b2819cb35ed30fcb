"""Weights of models by the names that Hugging Face transformers gives them."""

import pathlib
import re

import jax
import numpy as np
from flax import nnx

from jaxkd.devices import layout, sharding
from jaxkd.errors import UserError
from jaxkd.models.huggingface import pickles, tensors
from jaxkd.models.huggingface.families import FAMILIES
from jaxkd.models.huggingface.family import Family, Names
from jaxkd.models.huggingface.tensors import Tensor, size, some
from jaxkd.models.rounding import rounded

# kind -> (theirs to ours, ours to theirs)
KINDS = {
  "same": (lambda x: x, lambda x: x),
  "linear": (lambda x: x.T, lambda x: x.T),
  "conv": (lambda x: x.transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0)),  # [O, I, K]
  "conv2d": (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),  # [O, I, K, L]
  "depthwise": (lambda x: x[:, 0].T, lambda x: x.T[:, None]),  # [D, 1, K]
  "pointwise": (lambda x: x[..., 0].T, lambda x: x.T[..., None]),  # [O, I, 1]
  "pointwise2d": (lambda x: x[..., 0, 0].T, lambda x: x.T[..., None, None]),  # [O, I, 1, 1]
  "gain": (lambda x: x[0, 0], lambda x: x[None, None]),  # [1, 1, K]
  "heads": (lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None]),  # [1, H, 1, 1]
}
# Of a batch norm in torch: how often its statistics were updated, which no model reads.
_UPDATES, _VARIANCE = ".num_batches_tracked", ".running_var"


def structure(config, classes: int, *, frozen: bool = False):
  """graphdef and abstract parameters (`nnx.split`) of a model, by a config of its family.

  Args:
    config: of the model.
    classes: of its head.
    frozen: it is not trained: its matrices lie in memory as its arithmetic reads them.
  """
  model = FAMILIES[config.family].model
  graphdef, like = nnx.split(nnx.eval_shape(lambda: model(config, classes, rngs=nnx.Rngs(0))))
  return graphdef, rounded(graphdef, like, config.dtype) if frozen else like


def load(
  folder: pathlib.Path,
  config,
  classes: int,
  *,
  fresh_head: jax.Array | None = None,
  language: str = "",
  frozen: bool = False,
  devices: jax.sharding.Mesh | None = None,
) -> nnx.State:
  """Parameters from a folder's weights, read and laid out on devices one after the other.

  Args:
    folder: with model.safetensors or pytorch_model.bin, or shards of either and their index.
    config: of the model.
    classes: of its head, the blank included.
    fresh_head: typed key to draw a head from, whatever the folder has; None to read it.
    language: whose adapter and head are read, of a model that has one for each.
    frozen: as of `structure`; otherwise all are float32.
    devices: where they are laid out, by the rules of `sharding.of_state`; None for the default one.

  Raises:
    UserError: no such file; weights that are missing, unused or of another shape, by name, before
      any is read.
  """
  found = read_names(folder)
  if language:
    found |= tensors.read(adapter_file(folder, language))
  like = structure(config, classes, frozen=frozen)[1]
  taken = _matched(folder, config, like, found, fresh_head is not None)
  where = None if devices is None else sharding.of_state(devices, like)

  def one(path, leaf, where=None) -> jax.Array:
    ours = _name(path)
    if ours in taken:
      into = KINDS[_entry(ours, FAMILIES[config.family].names)[1]][0]
      arrays = (into(tensor.read().astype(np.float32, copy=False)) for tensor in taken[ours])
    elif ours.startswith("head/"):
      arrays = [_fresh_head(leaf.shape, fresh_head)]
    else:  # the vector of masked frames, of a model that masks none
      arrays = [np.zeros(leaf.shape, np.float32)]
    return layout.fill(leaf, where, arrays, stacked=_is_stacked(ours))

  return jax.tree_util.tree_map_with_path(one, like, *([] if where is None else [where]))


def _matched(
  folder: pathlib.Path, config, like, found: dict[str, Tensor], fresh_head: bool
) -> dict[str, list[Tensor]]:
  """Our leaves' names → their tensors, one or one a layer; without those that are made anew.

  Raises:
    UserError: tensors that are missing, unused, of another shape or of whole numbers.
  """
  family = FAMILIES[config.family]
  bare = {name.removeprefix(family.prefix): name for name in found}
  taken, used, missing, misshapen = {}, set(), [], []
  for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]:
    ours = _name(path)
    theirs = _in_file(ours, family.names, config.layers, bare)
    used.update(theirs)
    is_head = ours.startswith("head/")
    if (is_head and fresh_head) or (ours == "mask_embedding" and theirs[0] not in bare):
      continue
    missing += [("" if is_head else family.prefix) + name for name in theirs if name not in bare]
    there = {bare[name]: found[bare[name]] for name in theirs if name in bare}
    outof = KINDS[_entry(ours, family.names)[1]][1]
    wanted = outof(np.empty(leaf.shape[1:] if _is_stacked(ours) else leaf.shape, np.bool_)).shape
    for name, tensor in there.items():
      tensors.check_floats(name, tensor)
      if tensor.shape != wanted:
        misshapen.append(f"{name} ({size(tensor.shape)} instead of {size(wanted)})")
    taken[ours] = list(there.values())
  unused = [n for b, n in bare.items() if b not in used and not b.startswith(family.unread)]
  unused = [name for name in unused if not name.endswith(_UPDATES)]
  refuse(folder, {"missing": missing, "unused": sorted(unused), "misshapen": misshapen})
  return taken


def _is_stacked(ours: str) -> bool:
  return ours.startswith("layers/")


def refuse(folder: pathlib.Path, problems: dict[str, list[str]]) -> None:
  """UserError where weights do not fit the structure: what is wrong → names."""
  if any(problems.values()):
    listed = "; ".join(f"{what}: {some(found)}" for what, found in problems.items() if found)
    raise UserError(f"{folder}: the weights do not fit config.json: {listed}")


def has_head(folder: pathlib.Path, family: Family) -> bool:
  """Whether a folder's weights have a CTC head.

  Raises:
    UserError: no weights there.
  """
  names, (first, *others) = read_names(folder), family.names["head/kernel"][0]
  return first in names or any(family.prefix + other in names for other in others)


def adapter_file(folder: pathlib.Path, language: str) -> pathlib.Path:
  """The weights of one of a model's languages.

  Raises:
    UserError: not there.
  """
  path = folder / f"adapter.{language}.safetensors"
  if path.exists():
    return path
  if (pickled := path.with_suffix(".bin")).exists():
    return pickles.converted([pickled])
  there = sorted({p.name.split(".")[1] for p in folder.glob("adapter.*.*")})
  raise UserError(
    f"{folder} has no {path.name}: "
    + (f"it has adapters of {some(there)}" if there else "it has no adapters")
  )


def save(folder: pathlib.Path, config, params: nnx.State, *, mask_embedding: bool) -> pathlib.Path:
  """Writes model.safetensors, its weights named as transformers' `save_pretrained` names them.

  Args:
    folder: where.
    config: of the model.
    params: its parameters.
    mask_embedding: whether the vector of masked frames is among them.
  """
  family, named = FAMILIES[config.family], {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    ours = _name(path)
    if ours == "mask_embedding" and not mask_embedding:
      continue
    convert = KINDS[_entry(ours, family.names)[1]][1]
    array = np.asarray(leaf, np.float32)
    names = _spell(ours, family.names, config.layers)[0]
    prefix = "" if ours.startswith("head/") else family.prefix
    for name, part in zip(names, array if ours.startswith("layers/") else (array,), strict=True):
      named[prefix + name] = convert(part)
      if name.endswith(_VARIANCE):
        named[prefix + name.removesuffix(_VARIANCE) + _UPDATES] = np.zeros((), np.int64)
  return tensors.write(folder, named, "pt")


def _name(path) -> str:
  """A leaf's path in the model, such as conv/0/kernel."""
  return "/".join(str(p.key) for p in path if hasattr(p, "key"))


def _entry(ours: str, names: Names) -> tuple[tuple[str, ...], str]:
  return names.get(ours) or names[re.sub(r"/\d+/", "/{i}/", ours)]


def _spell(ours: str, names: Names, layers: int) -> list[list[str]]:
  """Every spelling of a leaf's name in files: a list of one name, or of one a layer."""
  index = re.search(r"/(\d+)/", ours)
  numbers = range(layers) if ours.startswith("layers/") else (0,)
  return [
    [theirs.format(i=index and index[1], layer=layer) for layer in numbers]
    for theirs in _entry(ours, names)[0]
  ]


def _in_file(ours: str, names: Names, layers: int, bare) -> list[str]:
  """The spelling that a file has most names of."""
  return max(_spell(ours, names, layers), key=lambda found: sum(name in bare for name in found))


def _fresh_head(shape, key: jax.Array) -> np.ndarray:
  """A kernel as transformers draws it, or a bias."""
  if len(shape) == 1:
    return np.zeros(shape, np.float32)
  return np.asarray(0.02 * jax.random.normal(key, shape))


def read_names(folder: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a folder's weights: of safetensors, or else of pickles, which are converted.

  Raises:
    UserError: none there, or damaged.
  """
  paths = tensors.stored(folder, "model.safetensors")
  if not paths and (pickled := tensors.stored(folder, "pytorch_model.bin")):
    paths = [pickles.converted(pickled)]
  if not paths:
    raise UserError(_no_weights(folder))
  return {name: tensor for path in paths for name, tensor in tensors.read(path).items()}


def _no_weights(folder: pathlib.Path) -> str:
  """What is wrong with a folder without weights that can be read, and what to do about it."""
  wrong = f"{folder}: no weights in it, neither model.safetensors nor pytorch_model.bin"
  if (folder / "adapter_config.json").exists():
    return f"{wrong}: it is an adapter (adapter_config.json): merge it into its model first"
  ours = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
  if ours:
    return f"{wrong}, only {some(ours)}: rename the model's weights, or fetch their shards' index"
  theirs = sorted(p.name for p in folder.iterdir() if p.suffix in (".h5", ".msgpack"))
  if theirs:
    return f"{wrong}, only {some(theirs)}, which is not read: save it from PyTorch"
  return wrong
