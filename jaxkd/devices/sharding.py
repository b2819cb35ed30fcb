"""Where arrays lie on a mesh: rules by name and size, and layers that are gathered one at a time.

Batches are split over both axes. A large parameter, its moments and its gradient are split over
`fsdp` and repeated over `data`; the layers of a stack are whole on a device only while one runs.
"""

import contextlib
import contextvars
import functools

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")
# Parts of the models whose arrays have the layer as their first axis.
STACKS = ("blocks", "layers")
# Smaller arrays are on every device: gathering them would cost more than it saves.
_MIN_SIZE = 2**12

_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


def spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
  """The largest axis that `fsdp` divides is split; a small array is not."""
  axes = [i for i, n in enumerate(shape) if n % fsdp == 0]
  if fsdp == 1 or not axes or functools.reduce(lambda a, b: a * b, shape, 1) < _MIN_SIZE:
    return PartitionSpec()
  largest = max(axes, key=lambda i: (shape[i], i))
  return PartitionSpec(*(None,) * largest, "fsdp")


def of_state(mesh: Mesh, tree):
  """NamedSharding of every array in a tree of parameters, moments and numbers, by the rules.

  Args:
    mesh: with AXES.
    tree: arrays or their shapes; a path through one of STACKS marks a stack of layers.
  """
  fsdp = mesh.shape["fsdp"]

  def rule(path, leaf):
    stacked = any(getattr(p, "key", getattr(p, "name", None)) in STACKS for p in path)
    if not stacked:
      return NamedSharding(mesh, spec(leaf.shape, fsdp))
    inner = spec(leaf.shape[1:], fsdp)
    return NamedSharding(mesh, PartitionSpec(None, *inner) if inner else inner)

  return jax.tree_util.tree_map_with_path(rule, tree)


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
  """Rows of a batch over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


@contextlib.contextmanager
def on(mesh: Mesh | None):
  """While it is open, models that are traced are traced for a mesh; None for one device."""
  token = _mesh.set(mesh)
  try:
    yield
  finally:
    _mesh.reset(token)


def layer(params):
  """One layer's parameters, whole on every device; their gradient goes back to where they lie.

  Called inside the scan over a stack, so that no more than a layer is gathered at a time. Outside
  of `on` it changes nothing.
  """
  mesh = _mesh.get()
  if mesh is None or mesh.shape["fsdp"] == 1:
    return params
  return jax.tree.map(lambda x: _whole(x, mesh), params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole(x: jax.Array, mesh: Mesh) -> jax.Array:
  return jax.lax.with_sharding_constraint(x, replicated(mesh))


def _whole_forward(x, mesh):
  return _whole(x, mesh), None


def _whole_backward(mesh, _, cotangent):
  where = NamedSharding(mesh, spec(cotangent.shape, mesh.shape["fsdp"]))
  return (jax.lax.with_sharding_constraint(cotangent, where),)


_whole.defvjp(_whole_forward, _whole_backward)
