"""llama.cpp's contestants: the reference as GGUF, in llama.cpp's own types, run by a native and by an AVX2 build.

    python -m benchmarks.peer_llama_cpp FOLDER HOME TYPE ...      (writes HOME/*.gguf; in a process of its own)

The float file is checked against torch's logits; llama.cpp's own quantizer makes the types from it, without an
importance matrix. The AVX2 build has no AVX-512 and no AVX-VNNI: the peer of an artifact compiled with ``--target
avx2``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.llama_gguf import TYPES, quantize, write_gguf
from benchmarks.packages import AVX2_LLAMA, NATIVE_LLAMA, environment
from benchmarks.paired import Contestant
from benchmarks.reference import load, reference

FLOAT = "float"
"""What the unquantized file is called among the types."""

FLOAT_TYPE = {"float32": "float32", "bfloat16": "float16"}
"""Of the float file, by the reference's dtype: large models are kept in half precision throughout."""


def contestants(folder: Path, home: Path, types: Sequence[str], *, avx2: bool) -> list[Contestant]:
    """One contestant per type.

    Args:
        avx2: run them with the AVX2 build.
    """
    native = NATIVE_LLAMA.ensure()
    packages = AVX2_LLAMA.ensure() if avx2 else native
    missing = [name for name in types if not (home / f"{name}.gguf").exists()]
    if missing:
        reference(folder, home)
        command = [sys.executable, "-m", "benchmarks.peer_llama_cpp", str(folder), str(home), *missing]
        subprocess.run(command, check=True, env=environment(native))
    engine = "llama.cpp-avx2" if avx2 else "llama.cpp"
    return [Contestant(f"{engine} {name}", "llama.cpp", home / f"{name}.gguf", packages) for name in types]


def main() -> None:
    from benchmarks.llama_engine import LlamaEngine

    folder, home, *types = sys.argv[1:]
    source = Path(home) / f"{FLOAT}.gguf"
    if not source.exists():
        expected = load(Path(home))
        unchecked = source.with_suffix(".unchecked.gguf")
        write_gguf(Path(folder), unchecked, FLOAT_TYPE[expected.dtype])
        with LlamaEngine(unchecked, threads=os.cpu_count() or 1, context=64, exact=True) as engine:
            engine.prefill(expected.ids)
            expected.require_equal(engine.last_logits(), "llama.cpp float")
        unchecked.replace(source)
    for name in set(types) - {FLOAT}:
        quantize(source, TYPES[name], Path(home) / f"{name}.gguf")


if __name__ == "__main__":
    main()
