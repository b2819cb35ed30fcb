"""PyTorch's pickled weights, of which tensors are read and nothing else.

A pickle is a program: it names functions and calls them. Here those few names that tensors need
stand for functions of this file, and any other name ends the reading, so that nothing is imported
and nothing of theirs is called. The tensors are then kept in the cache as safetensors.
"""

import collections
import functools
import hashlib
import json
import logging
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxkd.data import cache
from jaxkd.errors import UserError
from jaxkd.models.huggingface import tensors
from jaxkd.models.huggingface.tensors import TYPES, Tensor

log = logging.getLogger(__name__)
# PyTorch's names of what a tensor's numbers lie in → safetensors' names of their types.
_STORAGES = {
  "DoubleStorage": "F64",
  "FloatStorage": "F32",
  "HalfStorage": "F16",
  "BFloat16Storage": "BF16",
  "LongStorage": "I64",
  "IntStorage": "I32",
  "ShortStorage": "I16",
  "CharStorage": "I8",
  "ByteStorage": "U8",
  "BoolStorage": "BOOL",
}
# The first pickle of a file by PyTorch before 1.6, and the second.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class _Storage(NamedTuple):
  """Numbers in a row, in some file: their type, key and count."""

  kind: str
  key: str
  count: int


class _View(NamedTuple):
  """A tensor: a storage, where in it the tensor begins, and sizes and steps of its axes."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
  """Reads tensors in dictionaries and nothing else; `storages` are those that it met."""

  def __init__(self, file):
    super().__init__(file)
    self.storages: list[_Storage] = []

  def find_class(self, module: str, name: str):
    """What stands here for a name of theirs.

    Raises:
      pickle.UnpicklingError: a name that tensors do not need.
    """
    if module == "torch" and name in _STORAGES:
      return _STORAGES[name]
    # Functions made anew: a pickle may leave attributes on what it is given.
    known = {
      ("collections", "OrderedDict"): collections.OrderedDict,
      ("torch", "Size"): lambda shape: tuple(shape),
      ("torch._utils", "_rebuild_tensor"): lambda *view: _View(*view),
      ("torch._utils", "_rebuild_tensor_v2"): lambda *view: _View(*view[:4]),
      ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    }
    if (module, name) not in known:
      raise pickle.UnpicklingError(f"it asks for {module}.{name}")
    return known[module, name]

  def persistent_load(self, given) -> _Storage:
    """The storage of ("storage", type, key, device, count[, None])."""
    what, kind, key, _, count, *view = given
    if what != "storage" or kind not in TYPES or any(part is not None for part in view):
      raise pickle.UnpicklingError("it asks for what is no storage of numbers")
    self.storages.append(_Storage(kind, str(key), int(count)))
    return self.storages[-1]


def read(path: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a file that torch.save has written, by name.

  Raises:
    UserError: damaged, or with anything else in it.
  """
  try:
    found, numbers = (_zipped if zipfile.is_zipfile(path) else _legacy)(path)
  except Exception as error:  # whatever a pickle's parts are not
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise UserError(
      f"{path} cannot be read as tensors alone: {reason}{tensors.pointer(path)}"
    ) from error
  if not isinstance(found, dict) or not found or not all(map(_is_tensor, found.items())):
    raise UserError(f"{path} does not hold tensors by name, and nothing else")
  return {name: _tensor(path, name, view, numbers) for name, view in found.items()}


def _is_tensor(item) -> bool:
  name, view = item
  if not isinstance(name, str) or not isinstance(view, _View):
    return False
  storage, offset, shape, strides = view
  whole = [offset, *shape, *strides]
  return isinstance(storage, _Storage) and len(shape) == len(strides) and all(map(_is_count, whole))


def _is_count(number) -> bool:
  return type(number) is int and number >= 0


def _tensor(path: pathlib.Path, name: str, view: _View, numbers) -> Tensor:
  storage, offset, shape, strides = view

  def read_it() -> np.ndarray:
    try:
      found = np.frombuffer(numbers(storage), TYPES[storage.kind])
    except Exception as error:  # of zip, of the file
      raise UserError(f"{path} cannot be read: {name}: {error}") from error
    if 0 in shape:
      return np.empty(shape, found.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if last >= len(found):
      raise UserError(f"{path} cannot be read: {name} is longer than its numbers")
    steps = [step * found.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(found[offset:], shape, steps, writeable=False)

  return Tensor(storage.kind, tuple(shape), read_it)


def _zipped(path: pathlib.Path) -> tuple[dict, Callable[[_Storage], bytes]]:
  """What is pickled in a zip file, and the bytes of a storage."""
  archive = zipfile.ZipFile(path)  # open until nothing reads of it: its index is read once
  (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
  folder = index.removesuffix("data.pkl")
  if f"{folder}byteorder" in archive.namelist():
    order = archive.read(f"{folder}byteorder")
    if order != b"little":
      raise ValueError(f"its byte order is {order!r}")
  with archive.open(index) as file:
    found = _Unpickler(file).load()

  @functools.lru_cache(maxsize=1)  # tensors of one storage stand next to each other
  def numbers(storage: _Storage) -> bytes:
    return archive.read(f"{folder}data/{storage.key}")

  return found, numbers


def _legacy(path: pathlib.Path) -> tuple[dict, Callable[[_Storage], bytes]]:
  """As `_zipped`, of a file by PyTorch before 1.6: pickles, then each storage after its count."""
  with path.open("rb") as file:
    magic, protocol, machine = (_Unpickler(file).load() for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not machine["little_endian"]:
      raise ValueError("it is no file of PyTorch's")
    unpickler = _Unpickler(file)
    found = unpickler.load()
    sizes, places = {s.key: TYPES[s.kind].itemsize for s in unpickler.storages}, {}
    for key in _Unpickler(file).load():
      length = sizes[key] * struct.unpack("<q", file.read(8))[0]
      places[key] = file.tell(), length
      file.seek(length, os.SEEK_CUR)

  @functools.lru_cache(maxsize=1)
  def numbers(storage: _Storage) -> bytes:
    place, length = places[storage.key]
    with path.open("rb") as file:
      file.seek(place)
      return file.read(length)

  return found, numbers


def read_all(paths: list[pathlib.Path]) -> dict[str, Tensor]:
  """The tensors of one model's files.

  Raises:
    UserError: see `read`.
  """
  return {name: tensor for path in paths for name, tensor in read(path).items()}


def converted(paths: list[pathlib.Path]) -> pathlib.Path:
  """A safetensors file of one model's pickles, which is made the first time and kept in the cache.

  It is made again where a file is another one, or was written anew.

  Raises:
    UserError: see `read`; or the cache cannot be written.
  """
  facts = [(str(path.resolve()), path.stat()) for path in paths]
  facts = [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in facts]
  name = "weights-" + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

  def make(folder: pathlib.Path) -> None:
    found = read_all(paths)
    log.info(
      "%s is converted once, its tensors alone, and kept as %s", paths[0], cache.folder() / name
    )
    tensors.copy(found, folder / "model.safetensors")

  return cache.made(name, make) / "model.safetensors"
