"""Targets: the machine code is generated for, as LLVM sees it.

TVM is imported only when a target is detected or turned into TVM's own target object.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bitwright.errors import UsageError

_X86_64_V2 = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
_AVX2 = (*_X86_64_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni")

# Targets that can be named besides "native": the CPU model LLVM schedules for, and the features code may use.
NAMED: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "avx512vnni": ("x86-64-v4", (*_AVX512, "avx512vbmi")),
        "avx512vnni-novbmi": ("x86-64-v4", _AVX512),
        "avxvnni": ("x86-64-v3", (*_AVX2, "avxvnni")),
        "avx2": ("x86-64-v3", _AVX2),
        "generic": ("", ()),
    }
)


KERNELS = 2
"""Generation of the kernels: it grows when times that were measured of those before say nothing about them."""


@dataclass(frozen=True)
class Target:
    """A CPU to compile for.

    Attributes:
        name: what the user asked for.
        triple: LLVM target triple.
        cpu: LLVM's CPU model, possibly empty: code for a named target runs on others too.
        tune: LLVM's model of the CPU at hand, which kernels shall be fast on (as compilers' ``-mtune``).
        features: LLVM feature names that generated code may use.
        cores: threads that run kernels.
        caches: bytes by level ("L1d", "L2", "L3") as the operating system reports them.
        disabled: features that ``cpu`` implies and this machine lacks (a hypervisor may hide them).
    """

    name: str
    triple: str
    cpu: str
    features: frozenset[str]
    cores: int
    caches: Mapping[str, int] = field(default_factory=dict, compare=False)
    disabled: frozenset[str] = frozenset()
    tune: str = ""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides whether generated code runs and how it is tuned."""
        document = {
            "triple": self.triple,
            "cpu": self.cpu,
            "tune": self.tune,
            "features": sorted(self.features),
            "cores": self.cores,
            "kernels": KERNELS,
            **versions(),
        }
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def required_features(self) -> tuple[str, ...]:
        """Features that code compiled for this target may execute, sorted."""
        return tuple(sorted(self.features & _EXECUTABLE))

    @property
    def scheduled_for(self) -> str:
        """The CPU model that LLVM orders instructions for.

        Kernels are written in the order that their memory streams want. LLVM's models of particular CPUs with AVX-512
        reorder loads: steps are 8 to 11 % slower with ``znver5``'s on that very CPU than with the level's general one.
        """
        level, features = NAMED["avx512vnni-novbmi"]
        return level if self.cpu and self.features.issuperset(features) else self.cpu

    def tvm(self) -> Any:
        """The ``tvm.target.Target`` that generates code for exactly these features."""
        import tvm

        config: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "num-cores": self.cores}
        if self.cpu:
            config["mcpu"] = self.scheduled_for
        attributes = [f"+{f}" for f in sorted(self.features)] + [f"-{f}" for f in sorted(self.disabled)]
        if attributes:
            config["mattr"] = attributes
        return tvm.target.Target(config)

    @classmethod
    def parse(cls, name: str) -> Target:
        """``native``, or a named feature level of this machine's architecture.

        Raises:
            UsageError: no such target.
        """
        if name == "native":
            return _native()
        if name not in NAMED:
            raise UsageError(
                f"'{name}' is not a target", limit=", ".join(("native", *NAMED)), remedy="use --target native"
            )
        host = _native()
        if name == "generic":
            return cls(name, host.triple, "", frozenset(), host.cores, host.caches, tune=host.tune)
        cpu, features = NAMED[name]
        if not host.triple.startswith("x86_64"):
            raise UsageError(
                f"target '{name}' needs an x86-64 machine", where=host.triple, remedy="use --target native"
            )
        return cls(name, host.triple, cpu, frozenset(features), host.cores, host.caches, tune=host.tune)


# Instruction sets our kernels or LLVM's own choices may use: what an artifact demands of the machine that runs it.
_EXECUTABLE = frozenset(
    (
        *_AVX512,
        "avx512vbmi",
        "avx512vbmi2",
        "avx512bf16",
        "avx512fp16",
        "avxvnni",
        "gfni",
        "amx-int8",
        "neon",
        "dotprod",
        "i8mm",
        "sve",
        "fullfp16",
    )
)


def versions() -> dict[str, str]:
    """The TVM and tvm-ffi pair that compiles and runs the code."""
    return {"tvm": metadata.version("apache-tvm"), "tvm_ffi": metadata.version("apache-tvm-ffi")}


@lru_cache(maxsize=1)
def _native() -> Target:
    import tvm_ffi
    from tvm.target import codegen

    host = {str(k): bool(v) for k, v in tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")().items()}
    triple, cpu = str(codegen.llvm_get_system_triple()), str(codegen.llvm_get_system_cpu())
    present = frozenset(name for name, there in host.items() if there)
    implied = _implied_features(triple, cpu)
    return Target(
        "native",
        triple,
        cpu,
        present,
        len(os.sched_getaffinity(0)),
        cache_sizes(),
        frozenset(f for f in implied if host.get(f) is False),
        cpu,
    )


def _implied_features(triple: str, cpu: str) -> frozenset[str]:
    import tvm
    from tvm.target import codegen

    return frozenset(
        map(str, codegen.llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})))
    )


def cache_sizes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, int]:
    """Bytes of each cache level, from sysfs; empty where the system does not tell."""
    sizes: dict[str, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            level = (index / "level").read_text().strip()
            text = (index / "size").read_text().strip()
        except OSError:
            continue
        if kind != "Instruction":
            unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1)
            sizes[f"L{level}{'d' if level == '1' else ''}"] = int(text.rstrip("KM")) * unit
    return sizes
