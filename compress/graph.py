"""Edit an ONNX graph: find, insert, replace, and sweep out what nothing needs any more."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

MICROSOFT = "com.microsoft"


class Graph:
    """An ONNX model opened for editing. Nodes stay in topological order: insert before the first user."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._producer_index: dict[str, NodeProto] | None = None
        self._consumer_index: dict[str, list[NodeProto]] | None = None

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """Return the value of an initializer or of a Constant node, or None for anything computed."""
        if name not in self._arrays:
            if name in self._weights:
                self._arrays[name] = numpy_helper.to_array(self._weights[name])
            else:
                node = self.producer(name)
                if node is None or node.op_type != "Constant" or node.attribute[0].name != "value":
                    return None
                self._arrays[name] = numpy_helper.to_array(node.attribute[0].t)
        return self._arrays[name]

    def weight(self, name: str) -> np.ndarray[Any, Any] | None:
        """Return the value of an initializer, or None."""
        return self.constant(name) if name in self._weights else None

    def producer(self, name: str) -> NodeProto | None:
        """Return the node that computes `name`, or None for inputs and initializers."""
        return self._producers().get(name)

    def consumers(self, name: str) -> list[NodeProto]:
        """Return the nodes that read `name`."""
        return self._consumers().get(name, [])

    def is_output(self, name: str) -> bool:
        """Whether `name` is an output of the model."""
        return any(output.name == name for output in self.model.graph.output)

    def add_weight(self, name: str, value: np.ndarray[Any, Any] | np.generic) -> str:
        """Add an initializer (once) and return its name."""
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> NodeProto:
        """Make a node named after its one output; it is not yet part of the graph."""
        if domain and all(opset.domain != domain for opset in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(domain, 1))
        return helper.make_node(op, list(inputs), [output], name=output, domain=domain, **attributes)

    def replace(self, old: NodeProto, new: Sequence[NodeProto]) -> None:
        """Put nodes where `old` stood."""
        position = self._position(old)
        self.nodes[position : position + 1] = new
        self._changed()

    def insert_before(self, user: NodeProto, new: Sequence[NodeProto]) -> None:
        """Put nodes just before `user`."""
        position = self._position(user)
        self.nodes[position:position] = new
        self._changed()

    def rewire(self, node: NodeProto, old: str, new: str) -> None:
        """Make one node read `new` where it read `old`."""
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new
        self._changed()

    def sweep(self) -> set[str]:
        """Drop the nodes that no output needs; return every name that is still needed."""
        needed = {output.name for output in self.model.graph.output}
        kept: list[NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self._changed()
        return needed

    def finish(self) -> onnx.ModelProto:
        """Drop what no output needs and return the model."""
        needed = self.sweep()
        graph = self.model.graph
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(tensor for name, tensor in self._weights.items() if name in needed)
        return self.model

    def _position(self, node: NodeProto) -> int:
        return next(position for position, other in enumerate(self.nodes) if other is node)

    def _changed(self) -> None:
        self._producer_index = self._consumer_index = None

    def _producers(self) -> dict[str, NodeProto]:
        if self._producer_index is None:
            self._producer_index = {output: node for node in self.nodes for output in node.output}
        return self._producer_index

    def _consumers(self) -> dict[str, list[NodeProto]]:
        if self._consumer_index is None:
            self._consumer_index = defaultdict(list)
            for node in self.nodes:
                for name in dict.fromkeys(node.input):
                    self._consumer_index[name].append(node)
        return self._consumer_index
