"""What this machine can execute, found without a compiler: the kernel's view of the CPU, in LLVM's names.

An artifact lists the ISA features its code uses by LLVM's names (``avx2``, ``fma``, ``avx512vnni``). The kernel's flags
are the right source: they leave out what a hypervisor hides or the system does not save on a context switch.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bitwright.errors import UnsupportedError

# Flags of /proc/cpuinfo whose LLVM name is another one; all others keep their name.
_LLVM_NAMES = {
    "pni": ("sse3",),
    "sse4_1": ("sse4.1",),
    "sse4_2": ("sse4.2", "crc32"),
    "abm": ("lzcnt",),
    "lahf_lm": ("sahf",),
    "pclmulqdq": ("pclmul",),
    "bmi1": ("bmi",),
    "rdrand": ("rdrnd",),
    "sha_ni": ("sha",),
    "3dnowprefetch": ("prfchw",),
    "user_shstk": ("shstk",),
    "avx_vnni": ("avxvnni",),
    "avx_vnni_int8": ("avxvnniint8",),
    "avx_ne_convert": ("avxneconvert",),
    "avx_ifma": ("avxifma",),
    "avx512_vnni": ("avx512vnni",),
    "avx512_bf16": ("avx512bf16",),
    "avx512_fp16": ("avx512fp16",),
    "avx512_vbmi2": ("avx512vbmi2",),
    "avx512_bitalg": ("avx512bitalg",),
    "avx512_vpopcntdq": ("avx512vpopcntdq",),
    "avx512_vp2intersect": ("avx512vp2intersect",),
    "amx_tile": ("amx-tile",),
    "amx_int8": ("amx-int8",),
    "amx_bf16": ("amx-bf16",),
    # arm64
    "asimd": ("neon",),
    "asimddp": ("dotprod",),
    "asimdhp": ("fullfp16",),
    "asimdrdm": ("rdm",),
    "atomics": ("lse",),
    "crc32": ("crc",),
}


@dataclass(frozen=True)
class Host:
    """This machine, as far as running an artifact is concerned: its architecture and LLVM feature names."""

    arch: str
    features: frozenset[str]

    def lacks(self, required: Iterable[str]) -> tuple[str, ...]:
        """The required features this machine does not have, sorted."""
        return tuple(sorted(set(required) - self.features))


def features_from_cpuinfo(text: str) -> frozenset[str]:
    """LLVM feature names from the text of ``/proc/cpuinfo``: those that every processor listed there has."""
    per_cpu = [
        frozenset(name for flag in line.partition(":")[2].split() for name in _LLVM_NAMES.get(flag, (flag,)))
        for line in text.splitlines()
        if line.partition(":")[0].strip() in ("flags", "Features")
    ]
    return frozenset.intersection(*per_cpu) if per_cpu else frozenset()


@lru_cache(maxsize=1)
def detect_host() -> Host:
    """This machine.

    Raises:
        UnsupportedError: the operating system does not tell what the CPU can do.
    """
    source = Path("/proc/cpuinfo")
    try:
        text = source.read_text()
    except OSError as error:
        raise UnsupportedError(
            "cannot find out what this CPU can execute", where=str(source), remedy="run on Linux with /proc mounted"
        ) from error
    return Host(platform.machine(), features_from_cpuinfo(text))


def physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Physical cores this process may use: decode is bound by memory, where a core's second thread adds nothing."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = topology / f"cpu{cpu}/topology/thread_siblings_list"
        cores.add(siblings.read_text().strip() if siblings.is_file() else str(cpu))
    return max(1, len(cores))
