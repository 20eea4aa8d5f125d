"""The artifact: a folder that holds a compiled model and everything needed to run it.

The compiler calls ``check_destination`` first and ``write_artifact`` at last; the runtime calls ``Artifact.open``,
``verify`` and ``check_host``.
"""

from bitwright.runtime.artifact.artifact import Artifact
from bitwright.runtime.artifact.manifest import (
    Interface,
    Manifest,
    ModelRecord,
    PeakRecord,
    StateTensor,
    StepRecord,
    TargetRecord,
)
from bitwright.runtime.artifact.tensormap import map_tensors
from bitwright.runtime.artifact.write import check_destination, write_artifact

__all__ = [
    "Artifact",
    "Interface",
    "Manifest",
    "ModelRecord",
    "PeakRecord",
    "StateTensor",
    "StepRecord",
    "TargetRecord",
    "check_destination",
    "map_tensors",
    "write_artifact",
]
