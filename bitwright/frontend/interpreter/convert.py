"""ONNX tensors and attributes as torch tensors and Python values."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

TYPE_ATTRIBUTES = ("to", "dtype")
"""Integer attributes that name an ONNX element type."""


def torch_dtype(code: int, dtype: torch.dtype, where: str) -> torch.dtype:
    """The torch type of an ONNX element type; ``dtype``, the type computed in, stands for float32."""
    import torch
    from onnx import TensorProto

    types = {
        TensorProto.FLOAT: dtype,
        TensorProto.DOUBLE: torch.float64,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.BFLOAT16: torch.bfloat16,
        TensorProto.INT64: torch.int64,
        TensorProto.INT32: torch.int32,
        TensorProto.UINT8: torch.uint8,
        TensorProto.INT8: torch.int8,
        TensorProto.BOOL: torch.bool,
    }
    if code not in types:
        raise UnsupportedError(
            f"element type {TensorProto.DataType.Name(code)} has no place in a canonical graph",
            where=where,
            limit="float16, bfloat16, float32, float64, int8, uint8, int32, int64 or bool",
            remedy="import the model with bitwright, which widens its weights",
        )
    return types[code]


def to_torch(tensor: ir.TensorProtocol | None, dtype: torch.dtype, device: torch.device, where: str) -> torch.Tensor:
    """The tensor's values, not copied where type and device allow: memory-mapped data stays mapped, and read-only."""
    import numpy as np
    import torch

    if tensor is None:
        raise InputError(
            "a constant has no values", where=where, remedy="load the model together with its external data"
        )
    target = torch_dtype(int(tensor.dtype), dtype, where)
    array = tensor.numpy()
    bfloat16 = target == torch.bfloat16
    array = array.view(np.int16) if bfloat16 else array
    with warnings.catch_warnings():
        # A mapped file is not writable. Nothing here writes to weights.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        result = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    result = result.view(torch.bfloat16) if bfloat16 else result
    return result.to(device=device, dtype=target)


def attribute_value(attribute: ir.Attr, dtype: torch.dtype, device: torch.device, where: str) -> Any:
    """A number, string, tuple of them, torch type or tensor. Subgraphs and references are not supported."""
    import onnx_ir as ir

    if attribute.name in TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT:
        return torch_dtype(attribute.as_int(), dtype, where)
    readers = {
        ir.AttributeType.INT: attribute.as_int,
        ir.AttributeType.FLOAT: attribute.as_float,
        ir.AttributeType.STRING: attribute.as_string,
        ir.AttributeType.INTS: attribute.as_ints,
        ir.AttributeType.FLOATS: attribute.as_floats,
    }
    if attribute.type == ir.AttributeType.TENSOR:
        return to_torch(attribute.as_tensor(), dtype, device, where)
    if attribute.is_ref() or attribute.type not in readers:
        raise UnsupportedError(
            f"the torch interpreter does not evaluate attribute '{attribute.name}' of type {attribute.type.name}",
            where=where,
            limit="numbers, strings, lists of numbers and tensors",
            remedy="normalise the graph first",
        )
    return readers[attribute.type]()
