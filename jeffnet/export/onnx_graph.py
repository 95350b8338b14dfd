"""An ONNX graph in the making."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import jeffnet

OLDEST_OPSET = 18
# Of the dimension that counts pictures, where a file takes any number.
BATCH = "batch"


@dataclass(frozen=True)
class Tensor:
    """A value of a graph.

    Attributes:
      name: in the graph.
      shape: without the pictures' axis, but for constants, which have none. Maps are `(C, H, W)`.
      dtype: of its elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def channels(self) -> int:
        """Of a map or a vector."""
        return self.shape[0]


class OnnxGraph:
    """Nodes and constants of a graph in the order in which they are added.

    Attributes:
      opset: version of the operators.
      batch_size: pictures of a call; None for any number.
      constants: arrays by name.
    """

    def __init__(self, opset: int, batch_size: int | None) -> None:
        self.opset, self.batch_size = opset, batch_size
        self.constants: dict[str, np.ndarray] = {}
        self._nodes: list[Any] = []
        self._values: list[Any] = []
        self._inputs: list[Any] = []
        self._names: set[str] = set()

    def input(self, name: str, shape: tuple[int, ...], dtype: Any) -> Tensor:
        """What the graph is given."""
        tensor = self._new(Tensor(name, shape, np.dtype(dtype)))
        self._inputs.append(self._described(tensor))
        return tensor

    def constant(self, name: str, array: np.ndarray) -> Tensor:
        """An array; the same name stands for the same array."""
        if name not in self.constants:
            self._new(Tensor(name, array.shape, array.dtype))
            self.constants[name] = array
        return Tensor(name, array.shape, array.dtype)

    def numbers(self, *values: int) -> Tensor:
        """Integers, such as a shape."""
        return self.constant(f"integers:{','.join(map(str, values))}", np.array(values, np.int64))

    def add(
        self,
        operator: str,
        name: str,
        inputs: Sequence[Tensor],
        shape: tuple[int, ...] | None = None,
        *,
        dtype: Any = None,
        **attributes: Any,
    ) -> Tensor:
        """A node with one output, which has the node's name.

        Args:
          operator: of ONNX.
          name: of node and output.
          inputs: in the operator's order.
          shape: of the output, without the pictures' axis; None for that of the first input.
          dtype: of the output; None for that of the first input.
          **attributes: of the operator.
        """
        from onnx import helper

        first = inputs[0]
        output = self._new(Tensor(name, first.shape if shape is None else shape, np.dtype(dtype or first.dtype)))
        self._nodes.append(helper.make_node(operator, [each.name for each in inputs], [name], name=name, **attributes))
        self._values.append(self._described(output))
        return output

    def dequantized(self, name: str, integers: np.ndarray, scales: np.ndarray) -> Tensor:
        """A constant `integers * scales`, where the scales are those of the first axis; it is kept as integers."""
        from onnx import helper

        zeros = np.zeros(len(scales), integers.dtype)
        arrays = {f"{name}:integers": integers, f"{name}:scales": scales, f"{name}:zeros": zeros}
        inputs = [self.constant(each, array).name for each, array in arrays.items()]
        output = self._new(Tensor(f"{name}:rounded", integers.shape, scales.dtype))
        self._nodes.append(helper.make_node("DequantizeLinear", inputs, [output.name], name=output.name, axis=0))
        return output

    def cast(self, name: str, x: Tensor, dtype: Any) -> Tensor:
        """The same values in another dtype; `x` itself if it has that one."""
        from onnx import helper

        if x.dtype == np.dtype(dtype):
            return x
        return self.add("Cast", name, [x], dtype=dtype, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reshape(self, name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The same elements of every picture in another shape."""
        return x if shape == x.shape else self.add("Reshape", name, [x, self.numbers(0, *shape)], shape)

    def transpose(self, name: str, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The axes of every picture in another order; `axes` counts them from 0."""
        order = [0, *(axis + 1 for axis in axes)]
        return self.add("Transpose", name, [x], tuple(x.shape[axis] for axis in axes), perm=order)

    def model(self, name: str, output: Tensor, metadata: dict[str, str]) -> Any:
        """The graph as an `onnx.ModelProto`.

        Args:
          name: of the graph.
          output: what it gives.
          metadata: texts by name.
        """
        from onnx import helper, numpy_helper

        values = [each for each in self._values if each.name != output.name]
        constants = [
            numpy_helper.from_array(np.asarray(array, order="C"), name) for name, array in self.constants.items()
        ]
        graph = helper.make_graph(
            self._nodes, name, self._inputs, [self._described(output)], constants, value_info=values
        )
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="jeffnet",
            producer_version=jeffnet.__version__,
        )
        helper.set_model_props(model, metadata)
        return model

    def _new(self, tensor: Tensor) -> Tensor:
        assert tensor.name not in self._names, f"two tensors are called {tensor.name}"
        self._names.add(tensor.name)
        return tensor

    def _described(self, tensor: Tensor) -> Any:
        from onnx import helper

        shape = (self.batch_size or BATCH, *tensor.shape)
        return helper.make_tensor_value_info(tensor.name, helper.np_dtype_to_tensor_dtype(tensor.dtype), shape)
