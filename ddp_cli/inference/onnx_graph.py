"""Writes ONNX graphs node by node: tracing a policy takes seconds, this does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

FLOAT = TensorProto.FLOAT
ValueInfo = onnx.ValueInfoProto


def value(name: str, shape: list[str | int | None], kind: int = FLOAT) -> ValueInfo:
    """An input or an output."""
    return helper.make_tensor_value_info(name, kind, shape)


class GraphBuilder:
    """Nodes and constants of a graph, named as they come: calling adds a node and returns the name of its output."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._prefix = prefix

    def __call__(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        made = name or f"{self._prefix}{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [made], **attributes))
        return made

    def constant(self, given: Any, kind: type = np.float32) -> str:
        """A tensor, or an array or number of `kind`."""
        array = given.detach().cpu().contiguous().numpy() if isinstance(given, Tensor) else np.asarray(given, kind)
        name = f"{self._prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def whole(self, *numbers: int) -> str:
        """Whole numbers: shapes, places."""
        return self.constant(numbers, np.int64)

    def linear(self, x: str, weight: Tensor, bias: Tensor) -> str:
        return self("Add", self("MatMul", x, self.constant(weight.t())), self.constant(bias))

    def layer(self, x: str, layer: nn.Module) -> str:
        assert isinstance(layer, nn.Linear)
        return self.linear(x, layer.weight, layer.bias)

    def norm(self, x: str, norm: nn.LayerNorm) -> str:
        weights = self.constant(norm.weight), self.constant(norm.bias)
        return self("LayerNormalization", x, *weights, axis=-1, epsilon=norm.eps)

    def gelu(self, x: str) -> str:
        """As operator sets below 20 have it."""
        risen = self("Add", self("Erf", self("Div", x, self.constant(2.0**0.5))), self.constant(1.0))
        return self("Mul", self("Mul", x, risen), self.constant(0.5))

    def mish(self, x: str) -> str:
        return self("Mul", x, self("Tanh", self("Softplus", x)))

    def embed(self, model: onnx.ModelProto, prefix: str, inputs: dict[str, str], output: str) -> None:
        """The nodes of `model`, whose inputs are called `inputs` here, and its one output `output`."""
        renamed = {**inputs, model.graph.output[0].name: output}

        def name(old: str) -> str:
            return renamed.get(old, prefix + old) if old else ""

        for tensor in model.graph.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = name(tensor.name)
            self.constants.append(copy)
        for node in model.graph.node:
            own = onnx.NodeProto()
            own.CopyFrom(node)
            own.name = ""
            own.input[:], own.output[:] = [name(x) for x in node.input], [name(x) for x in node.output]
            self.nodes.append(own)
