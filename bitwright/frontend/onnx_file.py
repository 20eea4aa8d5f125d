"""Reader of an ONNX file, with its external data and what lies beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from bitwright.errors import InputError, UnsupportedError
from bitwright.frontend import external_data, tokenizer_files
from bitwright.frontend.assemble import Source
from bitwright.frontend.graph import describe
from bitwright.frontend.json_file import optional_object
from bitwright.frontend.torch_model import chosen_context

FILE_LIMIT = (1 << 31) - 1  # bytes of a protobuf message
NODE_LIMIT = 1_000_000  # after functions are expanded


def read(path: Path, context: int | None) -> Source:
    """Read and check an ONNX model; weights stay in their files until they are needed.

    Raises:
        InputError: for a file that is malformed, or data that is missing, too short or elsewhere.
        UnsupportedError: for control flow.
        UsageError: where nothing says how many positions the model has.
    """
    model = _load(path)
    _expand_functions(model, path)
    _refuse_subgraphs(model)
    external_data.check(model, path)
    folder = path.parent
    config = optional_object(folder / "config.json")
    chosen = chosen_context(_positions(config, folder, model), context, str(path))
    return Source(
        model,
        path.stem,
        chosen,
        tokenizer_files.tokenizer_json(folder),
        tokenizer_files.chat_template(folder),
        tokenizer_files.generation(folder, config),
    )


def _load(path: Path) -> ir.Model:
    import onnx

    try:
        size = path.stat().st_size
        if size > FILE_LIMIT:
            raise InputError(
                f"the file has {size} bytes",
                where=str(path),
                limit=f"{FILE_LIMIT} bytes",
                remedy="store weights as external data",
            )
        proto = onnx.load(str(path), load_external_data=False)
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            "the file cannot be read", where=str(path), limit=error.strerror, remedy="check the path"
        ) from error
    except Exception as error:  # protobuf's decoder raises classes of its own
        raise _malformed(path, error) from error
    if not proto.graph.node or not proto.opset_import:
        raise InputError(
            "the file holds no ONNX graph",
            where=str(path),
            limit="a model with nodes and opsets",
            remedy="export it again",
        )
    _check_operators(proto)
    try:
        onnx.checker.check_model(_without_external_data(proto))
        model = ir.from_proto(proto)
        for tensor in external_data.tensors(model):
            if isinstance(tensor, ir.ExternalTensor):
                tensor.base_dir = str(path.parent)
    except InputError:
        raise
    except Exception as error:  # checker and deserializer raise many classes
        raise _malformed(path, error) from error
    return model


def _check_operators(proto: Any) -> None:
    """Name a node whose operator ONNX does not have, before the checker calls the whole file malformed."""
    import onnx

    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, ""):
            raise UnsupportedError(
                f"ONNX has no operator '{node.op_type[:80]}'",
                where=f"node '{node.name[:80]}' (ai.onnx::{node.op_type[:80]})",
                limit=f"the operators of onnx {onnx.__version__}",
                remedy="export the model again, or declare the operator's own domain",
            )


def _without_external_data(proto: Any) -> Any:
    """A copy whose external tensors are empty: the checker would open their files, which are checked later."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            del tensor.dims[:]
            tensor.dims.append(0)
            tensor.raw_data = b""
    return copy


def _expand_functions(model: ir.Model, path: Path) -> None:
    """Inline model-local functions, refusing explosive nesting; the checker has refused recursion."""
    sizes: dict[Any, int] = {}

    def size(node: ir.Node) -> int:
        key = node.op_identifier()
        if key not in model.functions:
            return 1
        if key not in sizes:
            sizes[key] = sum(size(inner) for inner in model.functions[key])
        return sizes[key]

    try:
        total = sum(size(node) for node in model.graph)
    except RecursionError as error:
        raise InputError("functions are nested too deeply", where=str(path), remedy="export the model again") from error
    if total > NODE_LIMIT:
        raise InputError(
            f"{total} nodes",
            where=str(path),
            limit=f"{NODE_LIMIT} nodes with functions expanded",
            remedy="export the model again",
        )
    if model.functions:
        ir.passes.common.InlinePass()(model)


def _refuse_subgraphs(model: ir.Model) -> None:
    for node in model.graph:
        if any(found.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for found in node.attributes.values()):
            raise UnsupportedError(
                f"control flow {node.domain or 'ai.onnx'}::{node.op_type} is not understood",
                where=describe(node),
                limit="graphs without branches and loops",
                remedy="export the decoder with past (not the merged one), without data-dependent control flow",
            )


def _positions(config: dict[str, Any], folder: Path, model: ir.Model) -> int | None:
    """Positions as config.json, genai_config.json or the file's own metadata state them."""
    section = optional_object(folder / "genai_config.json").get("model")
    stated = (
        config.get("max_position_embeddings"),
        config.get("n_positions"),
        section.get("context_length") if isinstance(section, dict) else None,
        model.metadata_props.get("bitwright.context"),
    )
    for found in stated:
        if isinstance(found, str) and found.isdigit():
            found = int(found)
        if isinstance(found, int) and not isinstance(found, bool) and found > 0:
            return found
    return None


def _malformed(path: Path, error: Exception) -> InputError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return InputError(
        "malformed ONNX file",
        where=str(path),
        limit=lines[0][:300] if lines else type(error).__name__,
        remedy="the file is truncated or damaged: download or export it again",
    )
