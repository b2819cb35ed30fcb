"""Slices of TPUs that need not be there, for compiling ahead of time."""

import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from jaxkd.devices.chips import TPUS, Chip, topology_names
from jaxkd.errors import UserError


def slice_of(topology: str) -> tuple[Chip, list]:
  """The chip of a slice such as "v5e:2x4", and its devices, one a chip.

  Raises:
    UserError: no such slice, or no libtpu.
  """
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", topology)
  wrong = f"--topology={topology}: it must be CHIP:SHAPE, such as {', '.join(topology_names())}"
  if not found or found[1] not in TPUS:
    raise UserError(wrong)
  if importlib.util.find_spec("libtpu") is None:
    raise UserError("libtpu is not installed: pip install 'jaxkd[tpu]'")
  # libtpu compiles only: it must not look for chips, nor for the services of a TPU's machine, nor
  # mind a process that uses them.
  jax.config.update("jax_platforms", "cpu")
  for name, value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_LOG_DIR": "disabled",
  }.items():
    os.environ.setdefault(name, value)
  sizes = [int(n) for n in found[2].split("x")]
  options = {"chips_per_host_bounds": (min(sizes[0], 2), min(sizes[1], 2), 1)}
  if found[1] == "v4":
    options["chip_config_name"] = "megacore"  # the two cores of a chip are one device
  try:
    described = topologies.get_topology_desc(topology, "tpu", **options)
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    raise UserError(f"{wrong} ({' '.join(str(error).split())[:200]})") from error
  return TPUS[found[1]], described.devices
