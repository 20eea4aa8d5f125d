"""From lowered Relax to a shared library: TVM's own passes in a list we can read, then code generation and linking."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bitwright.errors import BitwrightError, InternalError
from bitwright.target import Target


def relax_phases() -> list[Any]:
    """TVM's passes from calls of TensorIR functions to VM byte code.

    Reshapes are not legalised to copies: the VM makes views of them.
    """
    from tvm.relax import transform

    return [
        transform.LegalizeOps(skip_ops=["relax.reshape"]),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        transform.AttachGlobalSymbol(),
    ]


def build_library(
    module: Any, target: Target, destination: Path, functions: Mapping[Any, Any] = MappingProxyType({})
) -> None:
    """Compile a lowered module and link it to a shared library.

    Args:
        functions: more PrimFuncs by global variable, that Relax's passes do not see.

    Raises:
        InternalError: TVM refused the module.
        InputError: there is no linker.
    """
    import tvm
    from tvm import relax

    from bitwright.codegen.tir_pipeline import register

    machine = target.tvm()
    try:
        with machine:
            lowered = tvm.transform.Sequential(relax_phases())(module)
            for variable, function in functions.items():
                lowered[variable] = function
        executable = relax.build(lowered, target=machine, relax_pipeline=None, tir_pipeline=register())
    except BitwrightError:
        raise
    except Exception as error:
        raise InternalError("TVM could not compile the module", where=str(error).strip()[-2000:]) from error
    link(executable, destination)


def link(executable: Any, destination: Path) -> None:
    """Write the executable as a shared library with the system's C compiler."""
    import shutil

    from bitwright.errors import InputError

    if shutil.which("cc") is None and shutil.which("gcc") is None:
        raise InputError("no C compiler to link with", limit="gcc or cc on PATH", remedy="install gcc")
    executable.export_library(str(destination))
