"""The artifact: a folder that holds a compiled model and everything needed to run it.

The compiler calls ``write_artifact``; the runtime calls ``Artifact.open``, ``verify`` and ``check_host``.
"""

from bitwright.runtime.artifact.artifact import Artifact
from bitwright.runtime.artifact.manifest import (
    Interface,
    Manifest,
    ModelRecord,
    StateTensor,
    TargetRecord,
)
from bitwright.runtime.artifact.tensormap import map_tensors
from bitwright.runtime.artifact.write import write_artifact

__all__ = [
    "Artifact",
    "Interface",
    "Manifest",
    "ModelRecord",
    "StateTensor",
    "TargetRecord",
    "map_tensors",
    "write_artifact",
]
