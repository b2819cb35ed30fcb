"""Where arrays lie on a mesh: rules by name and size, and layers that are gathered one at a time.

Batches are split over both axes. A large parameter, its moments and its gradient are split over
`fsdp` and repeated over `data`; the layers of a stack are whole on a device only while one runs.
"""

import contextlib
import functools

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

AXES = ("data", "fsdp")
# Parts of the models whose arrays have the layer as their first axis.
STACKS = ("blocks", "layers")
# Smaller arrays are on every device: gathering them would cost more than it saves.
_MIN_SIZE = 2**12


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


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
  """Rows of a batch over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def on(mesh: Mesh | None) -> contextlib.AbstractContextManager:
  """While it is open, models that are traced are traced for a mesh; None for one device.

  It opens JAX's own mesh context, which is in the key of every cache of jit. It may be opened
  inside a jitted function or around what traces one, and the devices need not be there.
  `jax.set_mesh` says the same to `layer`, but also puts new arrays on the whole mesh and refuses
  those that are on one device: for the call of a step, not for a training.
  """
  return contextlib.nullcontext() if mesh is None else use_abstract_mesh(mesh.abstract_mesh)


def by_rows(tree):
  """Arrays whose rows are split over JAX's mesh context; unchanged where that has not AXES."""
  mesh = jax.sharding.get_abstract_mesh()
  if not set(AXES) <= set(mesh.axis_names):
    return tree
  return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(AXES)))


def layer(params):
  """One layer's parameters, whole on every device; their gradient goes back to where they lie.

  Called inside the scan over a stack, so that no more than a layer is gathered at a time. It
  changes nothing where JAX's mesh context has no axis `fsdp` of more than one device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.shape.get("fsdp", 1) == 1:
    return params
  return jax.tree.map(lambda x: _whole(x, mesh), params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole(x: jax.Array, mesh: AbstractMesh) -> jax.Array:
  return jax.lax.with_sharding_constraint(x, replicated(mesh))


def _whole_forward(x, mesh):
  return _whole(x, mesh), None


def _whole_backward(mesh, _, cotangent):
  where = NamedSharding(mesh, spec(cotangent.shape, mesh.shape["fsdp"]))
  return (jax.lax.with_sharding_constraint(cotangent, where),)


_whole.defvjp(_whole_forward, _whole_backward)
