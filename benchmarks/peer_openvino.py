"""OpenVINO's contestants: the ONNX export made stateful, its weights compressed by NNCF to INT8 and INT4.

    PYTHONPATH=build/peers/openvino python -m benchmarks.peer_openvino HOME      (writes HOME/openvino)

``int8`` is NNCF's default (asymmetric, per channel); ``int4`` is symmetric in groups of 64, every layer, as OpenVINO's
own model hub publishes small models.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.packages import OPENVINO, environment
from benchmarks.paired import Contestant
from benchmarks.peer_onnxruntime import export
from benchmarks.reference import load

FORMS = ("int8", "int4")
GROUP = 64


def contestants(folder: Path, home: Path) -> list[Contestant]:
    packages, source = OPENVINO.ensure(), export(folder, home)
    if not (home / "openvino").exists():
        command = [sys.executable, "-m", "benchmarks.peer_openvino", str(source), str(home)]
        subprocess.run(command, check=True, env=environment(packages))
    return [Contestant(f"openvino {form}", "openvino", home / "openvino" / f"{form}.xml", packages) for form in FORMS]


def write_float(source: Path, out: Path) -> None:
    """The ONNX decoder with its cache as state, float32."""
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    model = openvino.Core().read_model(str(source))
    names = [port.get_any_name() for port in model.inputs if port.get_any_name().startswith("past_key_values.")]
    pairs = {name: name.replace("past_key_values.", "present.") for name in names}
    apply_make_stateful_transformation(model, pairs)
    openvino.save_model(model, str(out / "float.xml"), compress_to_fp16=False)


def write_quantized(out: Path) -> None:
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    kinds = {
        "int8": {"mode": nncf.CompressWeightsMode.INT8_ASYM},
        "int4": {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": GROUP, "ratio": 1.0, "all_layers": True},
    }
    for form, options in kinds.items():
        model = openvino.Core().read_model(str(out / "float.xml"))
        openvino.save_model(nncf.compress_weights(model, **options), str(out / f"{form}.xml"))


def main() -> None:
    from benchmarks.openvino_engine import OpenVinoEngine

    source, home = map(Path, sys.argv[1:])
    temporary = home / "openvino.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write_float(source / "float.onnx", temporary)
    expected = load(home)
    engine = OpenVinoEngine(temporary / "float.xml", threads=1, context=len(expected.ids), exact=True)
    engine.prefill(expected.ids)
    expected.require_equal(engine.last_logits(), "openvino float32")
    del engine
    write_quantized(temporary)
    for file in temporary.glob("float.*"):
        file.unlink()
    temporary.replace(home / "openvino")


if __name__ == "__main__":
    main()
