"""How the library's functions run on arrays that are split over devices, and on a kind of device.

Inside of `jax.shard_map` arrays know over which axes of the mesh their shards differ, and a scan
wants that of what it carries. On a mesh with explicit axes arrays know how they are split, and
every gather would have to say how its result is: that is left to the compiler here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def split_alike(compute: Callable, axes: int, *arrays):
  """compute(*arrays) on any mesh.

  Args:
    compute: of trees of arrays.
    axes: on a mesh with explicit axes, that many leading axes of all results are split as those of
      the first array are, and the rest is not split.
    *arrays: trees of arrays.
  """
  types = [jax.typeof(x) for x in jax.tree.leaves(arrays)]
  mesh = next((x.sharding.mesh for x in types if x.sharding.mesh.explicit_axes), None)
  if mesh is None:
    return compute(*arrays)
  out = NamedSharding(mesh, PartitionSpec(*types[0].sharding.spec[:axes]))
  return jax.jit(jax.sharding.auto_axes(compute, axes=mesh.explicit_axes, out_sharding=out))(
    *arrays
  )


def on_nvidia(compute: Callable, elsewhere: Callable, *arrays):
  """compute(*arrays) in a program for an NVIDIA GPU, elsewhere(*arrays) in any other.

  Args:
    compute, elsewhere: of trees of arrays, with results of the same shapes and dtypes. `compute` is
      traced only where JAX's default devices are such GPUs.
    *arrays: trees of arrays.
  """
  if not jax.local_devices()[0].device_kind.startswith("NVIDIA"):
    return elsewhere(*arrays)
  return jax.lax.platform_dependent(*arrays, cuda=compute, default=elsewhere)


def on_tpu(compute: Callable, elsewhere: Callable, *arrays):
  """compute(*arrays) in a program for TPUs, elsewhere(*arrays) in any other.

  Both are traced, and a gradient would keep what either asks for: the functions are to be inside of
  a `jax.custom_vjp`, or without gradient.

  Args:
    compute, elsewhere: of trees of arrays, with results of the same shapes and dtypes.
    *arrays: trees of arrays.
  """
  return jax.lax.platform_dependent(*arrays, tpu=compute, default=elsewhere)


def on_cpu(compute: Callable, elsewhere: Callable, *arrays):
  """compute(*arrays) in a program for CPUs, elsewhere(*arrays) in any other; as `on_tpu`."""
  return jax.lax.platform_dependent(*arrays, cpu=compute, default=elsewhere)


def for_tpu() -> bool:
  """Whether what is traced is for TPUs: by JAX's mesh context, else by its default device."""
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  kind = device.device_kind if device else jax.local_devices()[0].device_kind
  return kind.startswith("TPU")


def is_whole() -> bool:
  """Whether arrays are known to lie on one device: there is no other, and no `jax.shard_map`."""
  return jax.device_count() == 1 and not jax.sharding.get_abstract_mesh().manual_axes


def vary_alike(*arrays: jax.Array) -> list[jax.Array]:
  """The same arrays; inside of `jax.shard_map` each varies over the axes that any varies over."""
  axes = frozenset().union(*map(_varies_over, arrays))
  return [_vary(x, tuple(axes - _varies_over(x))) for x in arrays]


def _varies_over(x: jax.Array) -> frozenset[str]:
  """Axes of the mesh; none outside of `jax.shard_map`, or where it does not check."""
  kind = jax.typeof(x)
  return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma


def _vary(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  if not axes:
    return x
  if hasattr(jax.lax, "pcast"):
    return jax.lax.pcast(x, axes, to="varying")
  return jax.lax.pvary(x, axes)  # jax 0.8


def first_row(x: jax.Array) -> jax.Array | int:
  """i32[], the number of the first row of x[B, ...] among those of all shards.

  Inside of `jax.shard_map` rows are taken to be split over the axes of the mesh that x varies over,
  in the mesh's order; with check_vma=False, when that is not known, over all mapped axes.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = mesh.manual_axes
  if axes and _varies_over(jax.lax.axis_index(axes)):
    axes = _varies_over(x)
  axes = tuple(a for a in mesh.axis_names if a in axes)
  return (jax.lax.axis_index(axes) * x.shape[0]).astype(jnp.int32) if axes else 0
