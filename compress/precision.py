"""Half precision for CUDA: float16 weights and arithmetic, float32 logits.

Inputs stay int64. LayerNormalization keeps its mean and variance in float32 (its `stash_type`), and CUDA's softmax and
matrix products sum in float32, so no operator is left in float32 for safety's sake; values past ±65,504 are cut to it.
ONNX Runtime's CPU provider has few float16 kernels and casts around the others: it loads the file, slowly.
"""

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from compress.errors import QuantizeError
from compress.graph import Graph

_LARGEST = float(np.finfo(np.float16).max)


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` in float16, with its outputs cast back to float32; the argument is used up.

    Meant for the fused float32 graph. Raises QuantizeError when a weight holds NaN, infinity or a value that a float16
    cannot hold (a mask's −3.4e38 is no weight: such scalars are cut to ±65,504).
    """
    graph = Graph(model)
    outputs = {output.name for output in model.graph.output if output.type.tensor_type.elem_type == TensorProto.FLOAT}
    for node in graph.nodes:
        for position, name in enumerate(node.output):
            if name in outputs:
                node.output[position] = f"{name}_float16"
        for position, name in enumerate(node.input):
            if name in outputs:
                node.input[position] = f"{name}_float16"
        _convert_attributes(node)
    graph.nodes += [graph.node("Cast", [f"{name}_float16"], name, to=TensorProto.FLOAT) for name in sorted(outputs)]
    result = graph.finish()
    for tensor in result.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(_half(tensor))
    del result.graph.value_info[:]  # the exporter's notes of dtypes no longer hold
    return result


def _convert_attributes(node: NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half(attribute.t))


def _half(tensor: TensorProto) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    if values.size > 1 and not (np.abs(values) <= _LARGEST).all():  # also catches NaN
        raise QuantizeError(f"weight {tensor.name} holds values that float16 cannot; expected at most {_LARGEST:.0f}")
    return numpy_helper.from_array(np.clip(values, -_LARGEST, _LARGEST).astype(np.float16), tensor.name)
