"""Graphs that were exported before, without their weights.

Tracing a model takes longer than anything else that reads it, and depends on its configuration and the software alone.
A graph is kept in the user's cache under the digest of both; a model of that configuration gives it its own weights.
What cannot be read or written is no error: the model is exported, as if nothing were kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.user_cache import user_cache

if TYPE_CHECKING:
    import onnx_ir as ir

MOST = 32
"""Graphs that are kept; the ones that were not used for longest go. A graph of 30 layers has half a megabyte."""

_SOFTWARE = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript")
_UNUSED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Of a configuration: what the exported module does not depend on (it is float32 always)."""


def exported_once(model: Any, export: Callable[[Any], ir.Model]) -> ir.Model:
    """The raw graph of a module: kept from before with the module's weights in it, or made by ``export`` and kept.

    Both are the same to the bit: what was just made is read back as well, for attributes are kept in single precision.
    """
    path = user_cache("exports") / f"{_digest(model)}.onnx"
    weights = _weights(model)
    try:
        graph = _parsed(path.read_bytes(), weights)
        os.utime(path)
    except (OSError, ValueError):
        content = _serialized(export(model), weights)
        _write(path, content)
        graph = _parsed(content, weights)
    return graph


def _weights(model: Any) -> dict[str, Any]:
    """Parameters and buffers by all of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _digest(model: Any) -> str:
    """Of all that a graph depends on: configuration, class, tensors, software, and how it is exported here."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _UNUSED}
    attention = getattr(model.config, "_attn_implementation", None)
    tensors = {name: (str(tensor.dtype), list(tensor.shape)) for name, tensor in _weights(model).items()}
    software = {name: version(name) for name in _SOFTWARE}
    described = [type(model).__qualname__, attention, config, tensors, software]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name in ("export.py", "export_cache.py", "graph.py", "torch_model.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _parsed(content: bytes, weights: dict[str, Any]) -> ir.Model:
    """The graph with the tensors that its references name.

    Raises:
        ValueError: it is no graph, or asks for other tensors.
    """
    import onnx
    import onnx_ir as ir

    try:
        graph = ir.from_proto(onnx.ModelProto.FromString(content))
    except Exception as error:  # protobuf's decoder raises classes of its own
        raise ValueError("no graph") from error
    if not len(graph.graph):
        raise ValueError("an empty graph")
    for name, value in graph.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            if name not in weights:
                raise ValueError(f"there is no tensor '{name}'")
            value.const_value = ir.tensor_adapters.TorchTensor(weights[name], name)
    return graph


def _serialized(graph: ir.Model, weights: dict[str, Any]) -> bytes:
    """The graph with references in the place of weights, without the exporter's remarks on where nodes come from."""
    import onnx_ir as ir

    for name, value in graph.graph.initializers.items():
        tensor = value.const_value
        if name in weights and tensor is not None:
            value.const_value = ir.ExternalTensor("weights", 0, 0, tensor.dtype, shape=tensor.shape, name=name)
    proto = ir.to_proto(graph)
    for part in (proto.graph, *proto.functions):
        for remarked in (part, *part.node, *part.value_info):
            remarked.ClearField("metadata_props")
            remarked.ClearField("doc_string")
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _write(path: Path, content: bytes) -> None:
    """Keep a graph, unless the folder cannot be written; a reader never sees half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder) / path.name
            written.write_bytes(content)
            written.replace(path)
        for old in sorted(path.parent.glob("*.onnx"), key=lambda kept: kept.stat().st_mtime)[:-MOST]:
            old.unlink(missing_ok=True)
    except OSError:
        return
