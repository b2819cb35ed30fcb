"""What chips can do: figures of their makers, readable without JAX."""

import dataclasses

GIB = 2**30

# Operations a second in bfloat16 without sparsity, by JAX's name of the device: from
# cloud.google.com/tpu/docs and the data sheets of NVIDIA's SXM cards.
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip can do.

  Attributes:
    kind: JAX's name of it.
    hbm: bytes of memory.
    hbm_bandwidth: of it, bytes a second.
    interconnect: bytes a second that it sends, over all of its links together.
    clock_hz: of its cores: peak over what their matrix units do in a cycle.
    topologies: some slices.
  """

  kind: str
  hbm: float
  hbm_bandwidth: float
  interconnect: float
  clock_hz: float
  topologies: tuple[str, ...]

  @property
  def flops(self) -> float:
    """Operations a second in bfloat16."""
    return PEAK_FLOPS[self.kind]


# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; there the interconnect counts both directions. The
# links of v4 are 6 of 50 GB/s (Jouppi et al. 2023, "TPU v4").
_FLAT, _SOLID = ("2x2", "2x4", "16x16"), ("2x2x1", "2x2x2", "4x4x4")
TPUS = {
  "v4": Chip("TPU v4", 32 * GIB, 1200e9, 300e9, 1.05e9, _SOLID),
  "v5e": Chip("TPU v5 lite", 16 * GIB, 819e9, 200e9, 1.5e9, _FLAT),
  "v5p": Chip("TPU v5", 95 * GIB, 2765e9, 600e9, 1.75e9, _SOLID),
  "v6e": Chip("TPU v6 lite", 32 * GIB, 1640e9, 400e9, 1.75e9, _FLAT),
}


# NVIDIA's data sheet of the SXM card; NVLink in both directions. The clock counts no program here.
GPUS = {"h100": Chip("NVIDIA H100 80GB HBM3", 84_942_979_072, 3350e9, 900e9, 1.98e9, ("1", "8"))}


def topology_names() -> list[str]:
  """Slices of TPUs and numbers of GPUs, as in "v5e:2x4" and "h100:8"."""
  chips = TPUS | GPUS
  return [f"{name}:{shape}" for name, chip in chips.items() for shape in chip.topologies]
