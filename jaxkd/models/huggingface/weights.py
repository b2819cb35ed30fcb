"""Weights of models by the names that Hugging Face transformers gives them."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.errors import UserError
from jaxkd.models.huggingface.families import FAMILIES
from jaxkd.models.huggingface.family import Family, Names

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


def structure(config, classes: int):
  """graphdef and abstract parameters (`nnx.split`) of a model, by a config of its family."""
  model = FAMILIES[config.family].model
  return nnx.split(nnx.eval_shape(lambda: model(config, classes, rngs=nnx.Rngs(0))))


def load(
  folder: pathlib.Path,
  config,
  classes: int,
  *,
  fresh_head: jax.Array | None = None,
  language: str = "",
) -> nnx.State:
  """Parameters (NumPy, float32) from a folder's safetensors.

  Args:
    folder: with model.safetensors, or shards and their index.
    config: of the model.
    classes: of its head, the blank included.
    fresh_head: typed key to draw a head from, whatever the folder has; None to read it.
    language: whose adapter and head are read, of a model that has one for each.

  Raises:
    UserError: no such file; weights that are missing, unused or of another shape, by name.
  """
  names = read_names(folder)
  if language:
    names |= _read_file(adapter_file(folder, language))
  family = FAMILIES[config.family]
  prefix = family.prefix
  bare = {name.removeprefix(prefix): name for name in names}
  leaves, tree = jax.tree_util.tree_flatten_with_path(structure(config, classes)[1])
  found, used, missing, misshapen = [], set(), [], []
  for path, leaf in leaves:
    ours = _name(path)
    theirs = _in_file(ours, family.names, config.layers, bare)
    used.update(theirs)
    if ours.startswith("head/") and fresh_head is not None:
      found.append(_fresh_head(leaf.shape, fresh_head))
      continue
    if ours == "mask_embedding" and theirs[0] not in bare:
      found.append(np.zeros(leaf.shape, np.float32))  # of a model that masks no frames
      continue
    absent = [name for name in theirs if name not in bare]
    missing += [("" if ours.startswith("head/") else prefix) + name for name in absent]
    into, outof = KINDS[_entry(ours, family.names)[1]]
    stacked = ours.startswith("layers/")
    like = outof(np.empty(leaf.shape[1:] if stacked else leaf.shape, np.bool_)).shape
    arrays = {name: names[bare[name]]() for name in theirs if name in bare}
    wrong = [name for name, array in arrays.items() if array.shape != like]
    misshapen += [f"{bare[n]} ({size(arrays[n].shape)} instead of {size(like)})" for n in wrong]
    if not absent and not wrong:
      arrays = [into(array.astype(np.float32)) for array in arrays.values()]
      found.append(np.stack(arrays) if stacked else arrays[0])
  unused = [n for b, n in bare.items() if b not in used and not b.startswith(family.unread)]
  unused = [name for name in unused if not name.endswith(_UPDATES)]
  problems = {"missing": missing, "unused": sorted(unused), "misshapen": misshapen}
  refuse(folder, problems)
  return jax.tree.unflatten(tree, found)


def refuse(folder: pathlib.Path, problems: dict[str, list[str]]) -> None:
  """UserError where weights do not fit the structure: what is wrong → names."""
  if any(problems.values()):
    listed = "; ".join(f"{what}: {_some(found)}" for what, found in problems.items() if found)
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
  if not path.exists():
    there = sorted(p.name.split(".")[1] for p in folder.glob("adapter.*.safetensors"))
    raise UserError(
      f"{folder} has no {path.name}: "
      + (f"it has adapters of {_some(there)}" if there else "it has no adapters")
    )
  return path


def save(folder: pathlib.Path, config, params: nnx.State, *, mask_embedding: bool) -> pathlib.Path:
  """Writes model.safetensors, its weights named as transformers' `save_pretrained` names them.

  Args:
    folder: where.
    config: of the model.
    params: its parameters.
    mask_embedding: whether the vector of masked frames is among them.
  """
  family, weights = FAMILIES[config.family], {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    ours = _name(path)
    if ours == "mask_embedding" and not mask_embedding:
      continue
    convert = KINDS[_entry(ours, family.names)[1]][1]
    array = np.asarray(leaf, np.float32)
    names = _spell(ours, family.names, config.layers)[0]
    prefix = "" if ours.startswith("head/") else family.prefix
    for name, part in zip(names, array if ours.startswith("layers/") else (array,), strict=True):
      weights[prefix + name] = convert(part)
      if name.endswith(_VARIANCE):
        weights[prefix + name.removesuffix(_VARIANCE) + _UPDATES] = np.zeros((), np.int64)
  return write(folder, weights, "pt")


def write(folder: pathlib.Path, weights: dict[str, np.ndarray], made_for: str) -> pathlib.Path:
  """Writes model.safetensors, the old one or the whole new one whenever a kill comes.

  Args:
    folder: made if absent.
    weights: by name.
    made_for: the library whose names these are, "pt" or "flax", which the file tells its readers.

  Raises:
    UserError: safetensors is not installed, or the disk is full.
  """
  try:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file
  except ImportError as error:
    raise UserError("writing weights needs safetensors: pip install 'jaxkd[hf]'") from error
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "model.safetensors"
  unfinished = path.with_name(f"{path.name}.unfinished")
  try:
    arrays = {name: np.require(array, requirements="C") for name, array in weights.items()}
    unfinished.touch()
    mode = unfinished.stat().st_mode  # safetensors makes files that nobody else may read
    save_file(arrays, str(unfinished), metadata={"format": made_for})
    unfinished.chmod(mode)
    unfinished.replace(path)
  except SafetensorError as error:
    raise UserError(f"{path} cannot be written: {error}") from error
  finally:
    unfinished.unlink(missing_ok=True)
  return path


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


def stored(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  """The files that hold a model's weights, as transformers chooses them; none where there are none.

  Other weights that lie beside them, such as averages, optimisers and old copies, are not read.

  Args:
    folder: of the model.
    name: of the one file that has all; or else `name` + ".index.json" says which shards have them.

  Raises:
    UserError: an index that is damaged, or a shard that is absent or outside the folder.
  """
  if (folder / name).exists():
    return [folder / name]
  index = folder / f"{name}.index.json"
  if not index.exists():
    return []
  try:
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    outside = [shard for shard in shards if pathlib.PurePath(shard).name != shard]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{index} does not say which file has which weight: {error!r}") from error
  if outside:
    raise UserError(f"{index} names {outside[0]!r}: a shard must be a file of the same folder")
  if absent := [shard for shard in shards if not (folder / shard).exists()]:
    raise UserError(f"{index} names {_some(absent)}: not in {folder}: fetch the whole model again")
  return [folder / shard for shard in shards]


def _no_weights(folder: pathlib.Path) -> str:
  """What is wrong with a folder without weights that can be read, and what to do about it."""
  if others := sorted(p.name for p in folder.glob("*.safetensors")):
    return (
      f"{folder}: neither model.safetensors nor model.safetensors.index.json in it, only "
      f"{_some(others)}: call the model's weights model.safetensors, or fetch its shards' index"
    )
  old = stored(folder, "pytorch_model.bin")
  hint = f"; jaxkd convert {folder} makes one of {old[0].name}" if old else ""
  return f"{folder}: no *.safetensors in it{hint}"


def read_names(folder: pathlib.Path) -> dict:
  """Name → function that reads the array, of floats, over a folder's safetensors.

  Raises:
    UserError: none there, or damaged.
  """
  paths = stored(folder, "model.safetensors")
  if not paths:
    raise UserError(_no_weights(folder))
  return {name: read for path in paths for name, read in _read_file(path).items()}


def _read_file(path: pathlib.Path) -> dict:
  try:
    from safetensors import SafetensorError, safe_open
  except ImportError as error:
    raise UserError("reading weights needs safetensors: pip install 'jaxkd[hf]'") from error
  try:
    file = safe_open(str(path), framework="numpy")
    return {name: lambda name=name: _array(file, name) for name in file.keys()}  # noqa: SIM118
  except (SafetensorError, OSError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error


def _array(file, name: str) -> np.ndarray:
  array = file.get_tensor(name)
  if array.dtype.kind == "f" or array.dtype == jnp.bfloat16:
    return array
  raise UserError(f"{name} holds {array.dtype}: weights must be floating point")


def size(shape: tuple[int, ...]) -> str:
  """A shape as it is shown."""
  return "×".join(map(str, shape)) or "a number"


def _some(names: list[str]) -> str:
  more = f" and {len(names) - 4} more" if len(names) > 4 else ""
  return ", ".join(names[:4]) + more
