"""Orbax checkpoints: the whole training state to resume from, and the best students to average."""

import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxkd.devices import mesh
from jaxkd.errors import UserError

log = logging.getLogger(__name__)


class Checkpoints:
  """`last/`: state and position of the two newest saves. `best/`: parameters of the k best.

  A save becomes visible by a rename, so a killed run leaves whole checkpoints only.
  """

  def __init__(self, folder: pathlib.Path, *, keep_best: int):
    folder = folder.absolute()
    # On CPU a background save would read buffers that the next step reuses.
    in_background = jax.default_backend() != "cpu"
    self._last = ocp.CheckpointManager(
      folder / "last",
      options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=in_background),
    )
    self._best = ocp.CheckpointManager(
      folder / "best",
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep_best,
        best_fn=lambda m: m["score"],
        best_mode="min",
        enable_async_checkpointing=in_background,
      ),
    )

  def save(self, step: int, state, position: dict) -> None:
    """Writes the training state and the JSON-able `position`; in the background on accelerators."""
    if step in self._last.all_steps():
      return
    self._last.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
      ),
    )

  def save_best(self, step: int, params, score: float) -> None:
    """Offers parameters; they stay while `score` (lower is better) is among the k best."""
    self._best.save(step, args=ocp.args.StandardSave(params), metrics={"score": score})

  def restore(self, like) -> tuple[object, dict] | None:
    """The newest readable state and its position; None where there is none.

    Args:
      like: a state of the same structure; its shardings are used.

    Raises:
      UserError: checkpoints exist, and none can be read, or they are of another model.
    """
    steps = sorted(self._last.all_steps(), reverse=True)
    for step in steps:
      try:
        _check_same_arrays(self._last.directory / str(step) / "state", like)
        found = self._last.restore(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_abstract(like)), position=ocp.args.JsonRestore()
          ),
        )
      except UserError:
        raise
      except Exception as error:  # Orbax raises many kinds for a damaged file
        reason = str(error).splitlines()[0][:200]
        log.warning("checkpoint %d cannot be read and is left out: %s", step, reason)
        continue
      self._drop_after(step)
      return found.state, found.position
    if steps:
      raise UserError(
        f"no checkpoint in {self._last.directory} can be read: remove the workdir and start again"
      )
    return None

  def _drop_after(self, step: int) -> None:
    """Later saves would be made again, bit for bit; damaged ones must not be found again."""
    for manager in (self._last, self._best):
      for later in [s for s in manager.all_steps() if s > step]:
        manager.delete(later)

  def best(self, like) -> list[tuple[int, object]]:
    """(step, parameters) of the k best, best first."""
    self._best.wait_until_finished()
    first = self._best.best_step()
    steps = sorted(self._best.all_steps(), key=lambda s: (s != first, -s))
    args = ocp.args.StandardRestore(_abstract(like))
    return [(step, self._best.restore(step, args=args)) for step in steps]

  def close(self) -> None:
    """Waits for saves under way."""
    for manager in (self._last, self._best):
      manager.wait_until_finished()
      manager.close()


def average(trees: list):
  """Mean of equal trees of float arrays, computed in float32."""
  return jax.tree.map(
    lambda *xs: (sum(jnp.float32(x) for x in xs) / len(xs)).astype(xs[0].dtype), *trees
  )


def save_params(folder: pathlib.Path, params) -> None:
  """Writes one tree of parameters; an older one is replaced."""
  folder = folder.absolute()
  if mesh.is_first() and folder.exists():
    shutil.rmtree(folder)
  mesh.wait_for_all(f"{folder} is free")
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, params)


def load_params(folder: pathlib.Path, like):
  """Reads what `save_params` wrote.

  Raises:
    UserError: absent, damaged, or of another model.
  """
  try:
    _check_same_arrays(folder.absolute(), like)
    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(folder.absolute(), _abstract(like))
  except UserError:
    raise
  except Exception as error:  # Orbax raises many kinds for a damaged file
    reason = str(error).splitlines()[0][:200]
    raise UserError(f"parameters in {folder} cannot be read: {reason}") from error


def _check_same_arrays(folder: pathlib.Path, like) -> None:
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
        f"{folder} is of another model: {name} is {found} there, and {wanted} by config.json"
      )


def _shapes(tree) -> dict[str, tuple[int, ...]]:
  """Dotted name → shape; the parts of a name that only a library's container adds are left out."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
  return {name(path).removesuffix(".value"): tuple(leaf.shape) for path, leaf in leaves}


def _abstract(tree):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree
  )
