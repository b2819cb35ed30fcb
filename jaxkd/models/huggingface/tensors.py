"""Files of tensors: which of a folder's hold a model's weights, and safetensors both ways."""

import json
import math
import pathlib
import struct
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxkd.errors import UserError

# By their names in safetensors.
TYPES = {
  name: np.dtype(kind)
  for name, kind in {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
  }.items()
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_POINTER = b"version https://git-lfs"


class Tensor(NamedTuple):
  """A tensor of a file, which is not read before it is asked for.

  Attributes:
    kind: its type, one of TYPES or another of safetensors.
    shape: of it.
    read: () -> the array; raises UserError where the file is damaged.
  """

  kind: str
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def check_floats(name: str, tensor: Tensor) -> None:
  """UserError where a weight holds whole numbers, or floats of 8 bits, which stand for others."""
  if tensor.kind not in _FLOATS:
    kind = TYPES[tensor.kind].name if tensor.kind in TYPES else tensor.kind
    raise UserError(f"{name} holds {kind}: weights must be floating point, and not quantised")


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
    raise UserError(f"{index} names {some(absent)}: not in {folder}: fetch the whole model again")
  return [folder / shard for shard in shards]


def read(path: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a safetensors file.

  Each is read from the file opened anew: what is mapped of an open file counts as this process's
  memory, and grows to all of it.

  Raises:
    UserError: damaged, or safetensors is not installed.
  """
  try:
    from safetensors import SafetensorError, safe_open
  except ImportError as error:
    raise UserError("reading weights needs safetensors: pip install 'jaxkd[hf]'") from error

  def opened(act):
    try:
      with safe_open(str(path), framework="numpy") as file:
        return act(file)
    except (SafetensorError, OSError) as error:
      raise UserError(f"{path} cannot be read: {error}{pointer(path)}") from error

  def listed(file) -> dict[str, Tensor]:
    found = {}
    for name in file.keys():  # noqa: SIM118  (it is no mapping)
      part = file.get_slice(name)
      get = lambda name=name: opened(lambda file: file.get_tensor(name))
      found[name] = Tensor(part.get_dtype(), tuple(part.get_shape()), get)
    return found

  return opened(listed)


def pointer(path: pathlib.Path) -> str:
  """What to do about a file that only says where Git keeps it; "" of any other."""
  try:
    with path.open("rb") as file:
      is_one = file.read(len(_POINTER)) == _POINTER
  except OSError:
    return ""
  return ": it is a pointer of Git LFS: fetch the file itself, by git lfs pull" if is_one else ""


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


def copy(tensors: dict[str, Tensor], path: pathlib.Path) -> None:
  """Writes tensors as a safetensors file, with one of them in memory at a time.

  Raises:
    UserError: one that cannot be read.
    OSError: the file cannot be written.
  """
  header, end = {"__metadata__": {"format": "pt"}}, 0
  width = lambda name: TYPES[tensors[name].kind].itemsize
  names = sorted(tensors, key=lambda name: (-width(name), name))  # so that all are aligned
  for name in names:
    start, end = end, end + width(name) * math.prod(tensors[name].shape)
    header[name] = {"dtype": tensors[name].kind, "shape": tensors[name].shape}
    header[name]["data_offsets"] = start, end
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  with path.open("wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
      file.write(np.ascontiguousarray(tensors[name].read()).tobytes())


def size(shape: tuple[int, ...]) -> str:
  """A shape as it is shown."""
  return "×".join(map(str, shape)) or "a number"


def some(names: list[str]) -> str:
  """Names as they are shown: the first of many."""
  more = f" and {len(names) - 4} more" if len(names) > 4 else ""
  return ", ".join(names[:4]) + more
