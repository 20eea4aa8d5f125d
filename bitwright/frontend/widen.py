"""Every floating-point value of a graph becomes float32; weights are widened only when they are read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import is_float

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """``tensor`` as float32, converted when read; itself where it is not a half or double."""
    if tensor.dtype not in _NARROW:
        return tensor
    return ir.LazyTensor(
        lambda: ir.tensor(np.asarray(tensor.numpy()).astype(np.float32)),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape([int(d) for d in tensor.shape]),
        name=tensor.name,
    )


def widen(model: ir.Model) -> None:
    """Widen initializers, tensor attributes and the types of values in place."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype in _NARROW:
            value.const_value = widened(value.const_value)
            value.dtype = ir.DataType.FLOAT
    for value in graph.inputs:
        if is_float(value):
            value.dtype = ir.DataType.FLOAT
    for node in graph:
        for name, found in list(node.attributes.items()):
            if found.type is ir.AttributeType.TENSOR and found.value.dtype in _NARROW:
                node.attributes[name] = ir.AttrTensor(name, widened(found.value))
        for value in node.outputs:
            if is_float(value):
                value.dtype = ir.DataType.FLOAT
