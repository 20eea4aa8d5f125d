"""What ``bitwright doctor`` shows: this machine as the compiler sees it, and what is missing to work on it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from typing import TYPE_CHECKING, Any

from bitwright.target import Target, versions
from bitwright.version import __version__

if TYPE_CHECKING:
    from bitwright.autotune.bandwidth import ReadBandwidth

MIB = 1 << 20

# The tested pair: with a later tvm-ffi, scheduling crashes.
TESTED_PAIR = {"tvm": "0.27.0.post1", "tvm_ffi": "0.1.14.post1"}
COMPILE_PACKAGES = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "gguf")

# What shows the differences between machines; LLVM lists some eighty features.
_SHOWN_FEATURES = (
    "avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512vbmi", "avx512bf16",
    "amx-int8", "neon", "dotprod", "i8mm", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """This machine: ``problems`` are sentences about what will not work and what to do."""

    target: Target
    isa: str
    pair: dict[str, str]
    packages: dict[str, str]
    bandwidth: tuple[ReadBandwidth, ...]
    problems: tuple[str, ...]

    def rows(self) -> list[list[str]]:
        """Name and value, for people."""
        target = self.target
        shown = [f for f in _SHOWN_FEATURES if f in target.features]
        hidden = [f for f in _SHOWN_FEATURES if f in target.disabled]
        caches = ", ".join(f"{level} {size >> 10} KiB" for level, size in target.caches.items())
        return [
            ["bitwright", f"{__version__}, Python {sys.version.split()[0]}"],
            ["TVM, tvm-ffi", f"{self.pair['tvm']}, {self.pair['tvm_ffi']}"],
            ["triple", target.triple],
            ["CPU model", target.cpu or "unknown"],
            ["features", " ".join(shown) or "none that kernels use"],
            *(
                [["hidden features", f"{' '.join(hidden)} (the CPU model has them, this machine does not offer them)"]]
                * bool(hidden)
            ),
            ["kernels for", self.isa],
            ["cores", str(target.cores)],
            ["caches", caches or "unknown"],
            ["fingerprint", target.fingerprint],
            ["to compile models", ", ".join(f"{n} {v}" for n, v in self.packages.items()) or "nothing installed"],
        ]

    def to_json(self) -> dict[str, Any]:
        """One JSON document."""
        target = self.target
        return {
            "bitwright": __version__,
            "versions": self.pair,
            "packages": self.packages,
            "target": {
                "triple": target.triple,
                "cpu": target.cpu,
                "features": sorted(target.features),
                "hidden_features": sorted(target.disabled),
                "isa": self.isa,
                "cores": target.cores,
                "caches": dict(target.caches),
                "fingerprint": target.fingerprint,
            },
            "read_bandwidth": [
                {"level": b.level, "bytes": b.nbytes, "threads": b.threads, "bytes_per_second": b.bytes_per_second}
                for b in self.bandwidth
            ],
            "problems": list(self.problems),
        }


def diagnose(*, progress: Callable[[str], None] | None = None) -> Diagnosis:
    """Look at this machine and measure its read bandwidth (a few seconds).

    Raises:
        InternalError: TVM cannot compile the measuring loop.
    """
    from bitwright.codegen.isa import select_isa

    tell = progress or (lambda _: None)
    tell("ask LLVM")
    target = Target.parse("native")
    isa = select_isa(target.features)
    tell("measure read bandwidth")
    bandwidth = _measure(target, isa)
    packages = {name: metadata.version(name.replace("_", "-")) for name in COMPILE_PACKAGES if util.find_spec(name)}
    return Diagnosis(target, isa.name, versions(), packages, bandwidth, tuple(_problems(packages)))


def _measure(target: Target, isa: Any) -> tuple[ReadBandwidth, ...]:
    from bitwright.autotune.bandwidth import build_read_bandwidth, measure_read_bandwidth
    from bitwright.codegen.builder import build

    compiled = build(build_read_bandwidth(isa), target.tvm())
    return tuple(measure_read_bandwidth(compiled["read_bandwidth"], isa, target.cores, buffer_sizes(target.caches)))


def buffer_sizes(caches: Any) -> dict[str, int]:
    """Buffers that live in DRAM, in half of L3 and in half of L2 (sizes of a common machine where unknown)."""
    l2, l3 = caches.get("L2", MIB), caches.get("L3", 16 * MIB)
    return {"DRAM": max(256 * MIB, 8 * l3), "L3": l3 // 2, "L2": l2 // 2}


def _problems(packages: dict[str, str]) -> Sequence[str]:
    found = []
    if versions() != TESTED_PAIR:
        found.append(f"TVM and tvm-ffi are {versions()}, tested is {TESTED_PAIR}: install that pair")
    missing = [name for name in COMPILE_PACKAGES if name not in packages]
    if missing:
        found.append(f"models cannot be compiled without {', '.join(missing)}: pip install 'bitwright[compile]'")
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        found.append("models cannot be compiled without a C compiler to link with: install gcc")
    return found
