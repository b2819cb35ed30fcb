"""Devices, and how arrays lie on them."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxkd.types import Batch


def make_mesh() -> Mesh:
  """All devices in one axis, `data`, over which batches are split."""
  return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Parameters and optimiser state: a copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
  """Batches: rows are split over the data axis."""
  return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
  """The global batch from the rows (NumPy) that this process has loaded."""
  sharding = split_rows(mesh)
  return Batch(*(jax.make_array_from_process_local_data(sharding, x) for x in batch))


def batch_struct(rows: int, samples: int, labels: int, mesh: Mesh) -> Batch:
  """Shapes of a global batch, for compiling ahead of time."""
  shapes = ((rows, samples), (rows,), (rows, labels), (rows,))
  dtypes = (np.int16, np.int32, np.int32, np.int32)
  return Batch(
    *(
      jax.ShapeDtypeStruct(s, d, sharding=split_rows(mesh))
      for s, d in zip(shapes, dtypes, strict=True)
    )
  )
