"""onnxruntime's contestants: the reference exported to ONNX, in its own INT8 and 4-bit forms.

    python -m benchmarks.peer_onnxruntime FOLDER HOME      (writes HOME/onnx; in a process of its own for its memory)

The export is torch's at opset 23 (one Attention node a layer, cache in and out), constants folded by onnxruntime, and
cut so that only the last token's logits are computed, as the other engines do. ``int8`` is ``quantize_dynamic`` on
every MatMul; ``int4`` is MatMulNBits, blocks of 32, symmetric, int8 activations (``accuracy_level=4``). The embedding
stays float32: onnxruntime does not share it with the lm_head.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paired import Contestant
from benchmarks.reference import load, reference

FORMS = ("int8", "int4")
BLOCK = 32
INT8_ACTIVATIONS = 4


def contestants(folder: Path, home: Path) -> list[Contestant]:
    models = export(folder, home)
    return [Contestant(f"onnxruntime {form}", "onnxruntime", models / f"{form}.onnx") for form in FORMS]


def export(folder: Path, home: Path) -> Path:
    """The folder of ONNX files, made once: ``float``, ``int8`` and ``int4``."""
    if not (home / "onnx").exists():
        reference(folder, home)
        subprocess.run([sys.executable, "-m", "benchmarks.peer_onnxruntime", str(folder), str(home)], check=True)
    return home / "onnx"


def write_float(folder: Path, out: Path) -> None:
    """Export, fold constants, and compute the last token's logits alone."""
    import onnx
    import onnx_ir
    import onnxruntime

    from bitwright.frontend.export import export_decoder
    from bitwright.frontend.torch_model import load_config, load_model

    raw, folded = out / "raw.onnx", out / "folded.onnx"
    config = load_config(folder)
    elements = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    onnx_ir.save(export_decoder(load_model(config, folder, elements)), raw, external_data="raw.data")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.data")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(raw), options, providers=["CPUExecutionProvider"])
    model = onnx.load(folded)
    keep_last_token(model)
    onnx.save(model, out / "float.onnx", save_as_external_data=True, location="float.data")
    for stem in ("raw", "folded"):
        for file in out.glob(f"{stem}.*"):
            file.unlink()


def keep_last_token(model: Any) -> None:
    """Cut the input of the last matrix product to its last row; ``logits`` becomes [1, 1, vocabulary]."""
    from onnx import helper, numpy_helper

    graph = model.graph
    (index,) = [i for i, node in enumerate(graph.node) if "logits" in node.output]
    last = graph.node[index]
    if last.op_type != "MatMul":
        raise SystemExit(f"the exported graph ends in {last.op_type}, not in the lm_head's MatMul")
    bounds = {"last_start": -1, "last_end": np.iinfo(np.int64).max, "last_axis": 1}
    graph.initializer.extend(numpy_helper.from_array(np.array([value]), name) for name, value in bounds.items())
    cut = helper.make_node("Slice", [last.input[0], *bounds], ["last_hidden"], name="last_token")
    last.input[0] = "last_hidden"
    graph.node.insert(index, cut)
    output = next(entry for entry in graph.output if entry.name == "logits")
    vocabulary = output.type.tensor_type.shape.dim[2].dim_value
    output.CopyFrom(helper.make_tensor_value_info("logits", output.type.tensor_type.elem_type, [1, 1, vocabulary]))


def write_quantized(out: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)
    source = out / "float.onnx"
    quantize_dynamic(
        source,
        out / "int8.onnx",
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )
    quantizer = MatMulNBitsQuantizer(
        onnx.load(source), bits=4, block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_ACTIVATIONS
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(out / "int4.onnx"), use_external_data_format=True)


def main() -> None:
    from benchmarks.onnx_engine import OnnxEngine

    folder, home = map(Path, sys.argv[1:])
    temporary = home / "onnx.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write_float(folder, temporary)
    expected = load(home)
    engine = OnnxEngine(temporary / "float.onnx", threads=1, context=len(expected.ids))
    engine.prefill(expected.ids)
    expected.require_equal(engine.last_logits(), "onnxruntime float32")
    del engine
    write_quantized(temporary)
    temporary.replace(home / "onnx")


if __name__ == "__main__":
    main()
