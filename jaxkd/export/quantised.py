"""An exported graph with weights of 8 bits."""

import logging
import pathlib

import onnx


def write_int8(source: pathlib.Path, target: pathlib.Path) -> None:
  """Writes a graph with its products in 8 bits, by onnxruntime's dynamic quantisation.

  Left as they are: the features, and the products with the table of relative positions.
  """
  from onnxruntime.quantization import QuantType, quantize_dynamic

  level = logging.getLogger().level
  logging.getLogger().setLevel(logging.ERROR)  # it recommends a step that others need
  try:
    quantize_dynamic(
      source,
      target,
      op_types_to_quantize=["MatMul"],
      nodes_to_exclude=_kept(onnx.load(source).graph),
      weight_type=QuantType.QInt8,
    )
  finally:
    logging.getLogger().setLevel(level)


def _kept(graph: onnx.GraphProto) -> list[str]:
  """Names of the nodes that need their range."""
  keep = lambda node: (
    node.name.startswith("features/") or any(name.endswith("/positions") for name in node.input)
  )
  return [node.name for node in graph.node if keep(node)]
