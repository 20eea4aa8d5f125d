"""What the cost model sees of a candidate: its knobs, and the workload that they are tried on.

Features are named numbers. A knob that a workload does not have is missing (NaN), which trees handle, so that records
of different operations, shapes and schemes train one model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bitwright.autotune.space import Knobs
from bitwright.autotune.workload import Workload
from bitwright.codegen.isa import ISAS
from bitwright.errors import UsageError
from bitwright.scheme import LinearScheme

Features = dict[str, float]


def features(workload: Workload, knobs: Knobs) -> Features:
    """Named numbers of a candidate."""
    found = dict(_workload_features(workload))
    for name, value in knobs.items():
        if isinstance(value, str):
            found[f"{name}={value}"] = 1.0
        else:
            found[name] = float(value)
    return found


@lru_cache(maxsize=4096)
def _workload_features(workload: Workload) -> tuple[tuple[str, float], ...]:
    found: Features = {f"op={workload.op}": 1.0, "log m": math.log2(workload.m), "threads": float(workload.threads)}
    found |= {f"log extent {axis}": math.log2(extent) for axis, extent in enumerate(workload.shape)}
    isa = next((isa for isa in ISAS if isa.name == workload.isa), None)
    if isa is not None:
        found |= {"lanes": float(isa.lanes), "registers": float(isa.registers), f"dot={isa.dot}": 1.0}
    try:
        scheme = LinearScheme.parse(workload.scheme)
    except UsageError:  # an operation without weights, or a mixture of schemes
        return tuple(found.items())
    weight = scheme.weight
    found |= {
        "bits": float(weight.bits),
        "group": float(weight.group or workload.shape[-1]),
        "zeros": float(not weight.symmetric),
        "activation bits": float(scheme.activation.bits),
        "float": float(weight.is_float),
        "log bytes": math.log2(weight.storage_bytes(workload.shape[0], workload.shape[-1])),
    }
    return tuple(found.items())


def columns(rows: Iterable[Features]) -> list[str]:
    """All names that occur, sorted."""
    return sorted({name for row in rows for name in row})


def matrix(rows: Sequence[Features], names: Sequence[str]) -> npt.NDArray[np.float32]:
    """f32 [rows, names]; NaN where a row lacks a feature."""
    return np.array([[row.get(name, math.nan) for name in names] for row in rows], np.float32).reshape(-1, len(names))
