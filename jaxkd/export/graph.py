"""ONNX graphs written node by node. Tensors are named by strings, as ONNX does."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8  # what sherpa-onnx's runtime and older phones load
FLOAT, HALF, INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


class Graph:
  """Nodes and constants so far.

  Attributes:
    prefix: of the names of the nodes that are added.
    half: whether what lies between `narrow` and `widen` is of 16 bits.
    float: the type of numbers in the nodes that are added: FLOAT, or HALF.
  """

  def __init__(self, half: bool = False):
    self.prefix = ""
    self.half, self.float = half, FLOAT
    self._nodes: list[onnx.NodeProto] = []
    self._constants: dict[str, onnx.TensorProto] = {}

  def __call__(self, op: str, *inputs, outputs: int = 1, **attributes):
    """Adds a node.

    Args:
      op: of ONNX's own operators.
      *inputs: names, or arrays and numbers that become constants; "" for one that is left out.
      outputs: of the node.
      **attributes: of the node.

    Returns:
      The name of its output; a list where there are several.
    """
    name = f"{self.prefix}{op}_{len(self._nodes)}"
    inputs = [x if isinstance(x, str) else self.constant(x) for x in inputs]
    names = [name] if outputs == 1 else [f"{name}:{i}" for i in range(outputs)]
    self._nodes.append(helper.make_node(op, inputs, names, name=name, **attributes))
    return names[0] if outputs == 1 else names

  def constant(self, value, name: str = "") -> str:
    """The name of a constant: `float` for floats, i64 for whole numbers."""
    value = np.asarray(value)
    if value.dtype.kind == "f":
      value = value.astype(np.float16 if self.float == HALF else np.float32)
    elif value.dtype.kind == "i":
      value = value.astype(np.int64)
    name = name or f"constant_{len(self._constants)}"
    name = name if name not in self._constants else f"{name}_{len(self._constants)}"
    self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
    return name

  def narrow(self, x: str) -> str:
    """x f32 as the graph computes from here on."""
    if not self.half:
      return x
    self.float = HALF
    return self("Cast", x, to=HALF)

  def widen(self, x: str) -> str:
    """x as f32, as the graph computes from here on."""
    narrow, self.float = self.float == HALF, FLOAT
    return self("Cast", x, to=FLOAT) if narrow else x

  def size(self, x: str, axis: int) -> str:
    """i64[1]: the size of an axis."""
    return self("Shape", x, start=axis, end=axis + 1)

  def count(self, x: str, axis: int) -> str:
    """i64[]: the size of an axis, as Range takes it where onnxruntime knows the size."""
    return self("Gather", self("Shape", x), np.int64(axis))

  def named(self, x: str, name: str) -> str:
    """The same tensor under a name of its own, for an output."""
    self._nodes.append(helper.make_node("Identity", [x], [name], name=name))
    return name

  def model(self, inputs: dict, outputs: dict, metadata: dict[str, str]) -> onnx.ModelProto:
    """The whole.

    Args:
      inputs, outputs: name → (type, shape), with names for sizes that may differ.
      metadata: kept in the file.

    Raises:
      onnx.checker.ValidationError: it is no valid graph.
    """
    infos = [
      [helper.make_tensor_value_info(name, *info) for name, info in given.items()]
      for given in (inputs, outputs)
    ]
    constants = list(self._constants.values())
    graph = helper.make_graph(self._nodes, "jaxkd", *infos, initializer=constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="jaxkd")
    model.ir_version = IR_VERSION
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model
