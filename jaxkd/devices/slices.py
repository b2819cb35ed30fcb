"""Slices of TPUs, and GPUs, that need not be there, for compiling ahead of time."""

import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from jaxkd.devices.chips import GPUS, TPUS, Chip, topology_names
from jaxkd.errors import UserError

# What XLA asks of a card to compile for it, of the H100 with HBM3 (CUDA's device attributes).
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# Without a card nothing can be timed, and a product that is not timed is a library's.
COMPILER_OPTIONS = {
  "xla_gpu_autotune_level": 0,
  "xla_gpu_enable_triton_gemm": False,
  "xla_gpu_enable_cublaslt": True,
}


def slice_of(topology: str) -> tuple[Chip, list]:
  """The chip of a slice such as "v5e:2x4", or of GPUs such as "h100:8", and the devices.

  Raises:
    UserError: no such slice, or no libtpu, or no compiler for GPUs.
  """
  if topology.partition(":")[0] in GPUS:
    return _gpus(topology)
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


def _gpus(topology: str) -> tuple[Chip, list]:
  """GPUs of one machine, for the compiler of JAX's plugin for CUDA; it needs no driver."""
  found = re.fullmatch(r"(\w+):([1-9]\d{0,3})", topology)
  if not found:
    raise UserError(f"--topology={topology}: it must be CARD:NUMBER, such as h100:8")
  if importlib.util.find_spec("jax_cuda13_plugin") is None:
    raise UserError(
      "JAX's plugin for CUDA is not installed: pip install 'jaxkd[cuda]', or without NVIDIA's "
      f"libraries pip install --no-deps jax-cuda13-plugin=={jax.__version__} "
      f"jax-cuda13-pjrt=={jax.__version__}"
    )
  jax.config.update("jax_platforms", "cpu")
  os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # libraries may be absent
  described = topologies.get_topology_desc(
    topology, "cuda", target_config=_H100, topology=f"1x1x{found[2]}"
  )
  return GPUS[found[1]], described.devices
