"""A model's parameters on disk: written whole, read with checks, averaged."""

import contextlib
import pathlib
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxkd.devices import mesh
from jaxkd.errors import UserError


def average(trees: list):
  """Mean of equal trees of float arrays, computed in float32."""
  return jax.tree.map(
    lambda *xs: (sum(jnp.float32(x) for x in xs) / len(xs)).astype(xs[0].dtype), *trees
  )


def save_params(folder: pathlib.Path, params) -> None:
  """Writes one tree of parameters; an older one is replaced when the new one is whole.

  A kill leaves the old or the new one for `load_params`: the new one is written beside, and takes
  the name by two renames; between them it is found under the name that it was written to.
  """
  folder = folder.absolute()
  fresh, old = _fresh(folder), folder.with_name(folder.name + ".old")
  if mesh.is_first():
    if fresh.exists() and not folder.exists():
      fresh.rename(folder)
    for leftover in (fresh, old):
      shutil.rmtree(leftover, ignore_errors=True)
  mesh.wait_for_all(f"{fresh} is free")
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(fresh, params)
  mesh.wait_for_all(f"{fresh} is written")
  if mesh.is_first():
    if folder.exists():
      folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
  mesh.wait_for_all(f"{folder} is written")


def load_params(folder: pathlib.Path, like):
  """Reads what `save_params` wrote.

  Args:
    folder: as given to `save_params`.
    like: arrays or their shapes in the same structure; their shardings are used.

  Raises:
    UserError: absent, damaged, or of another model.
  """
  with _found(folder) as found:
    check_same_arrays(found, like)
    return read(found, like)


def check_params(folder: pathlib.Path, like) -> None:
  """Raises UserError where `load_params` would, as far as names and shapes say."""
  with _found(folder) as found:
    check_same_arrays(found, like)


@contextlib.contextmanager
def _found(folder: pathlib.Path):
  """Where the parameters of a folder lie; all errors become UserErrors that name it."""
  folder = folder.absolute()
  if not folder.exists() and not _fresh(folder).exists():
    raise UserError(
      f"{folder} is not there: copy the whole workdir, or train it again in another one"
    )
  try:
    yield folder if folder.exists() else _fresh(folder)
  except UserError:
    raise
  except Exception as error:  # Orbax raises many kinds for a damaged file
    raise UserError(f"parameters in {folder} cannot be read: {reason(error)}") from error


def read(folder: pathlib.Path, like):
  """A stored tree, its arrays as those of `like`; Orbax's many errors where it cannot be read.

  No process waits for another, so that one that cannot read may say so.
  """
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), like
  )
  handler = ocp.StandardCheckpointHandler()
  try:
    return handler.restore(folder, args=ocp.args.StandardRestore(abstract))
  finally:
    handler.close()


def check_same_arrays(folder: pathlib.Path, like) -> None:
  """Raises UserError where a stored tree has other names or shapes than `like`.

  Orbax finds that out too, but says so with pages of its own.
  """
  with ocp.StandardCheckpointer() as checkpointer:
    there, here = _shapes(checkpointer.metadata(folder).item_metadata.tree), _shapes(like)
  for name in sorted(there.keys() | here.keys()):
    if there.get(name) != here.get(name):
      found, wanted = (
        f"of shape {shapes[name]}" if name in shapes else "absent" for shapes in (there, here)
      )
      raise UserError(
        f"{folder} is of another model: {name} is {found} there, and {wanted} by the config"
      )


def reason(error: Exception) -> str:
  """The first line of an error, or its kind where it has none."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _fresh(folder: pathlib.Path) -> pathlib.Path:
  return folder.with_name(folder.name + ".new")


def _shapes(tree) -> dict[str, tuple[int, ...]]:
  """Dotted name → shape; the parts of a name that only a library's container adds are left out."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
  return {name(path).removesuffix(".value"): tuple(leaf.shape) for path, leaf in leaves}
