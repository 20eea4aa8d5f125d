"""Helpers around TVM's IRBuilder shared by all kernel builders.

Kernels are built, not parsed: a Python loop unrolls at build time, a ``loop(...)`` stays in the program. Every index is
int64, because the element offset of a large table does not fit 32 bits.

Importing this module imports TVM (seconds): import it inside the verb that builds kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc, Var
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.stack import aligned_stack
from bitwright.codegen.tir_pipeline import register


def symbol(name: str) -> Var:
    """A symbolic int64 extent, such as the number of tokens ``n``."""
    return Var(name, "int64")


class Kernel:
    """A prim_func under construction; ``func`` holds it once the ``with kernel(...)`` block ends."""

    def __init__(self) -> None:
        self._func: PrimFunc | None = None

    @property
    def func(self) -> PrimFunc:
        assert self._func is not None, "the function exists after the `with kernel(...)` block"
        return self._func

    def tensor(self, name: str, shape: Sequence[Any], dtype: str) -> Any:
        """The next argument: a contiguous tensor. Extents may be ints or symbols."""
        return T.match_buffer(T.arg(name, T.handle()), [index_of(extent) for extent in shape], dtype)

    def scalar(self, name: str, dtype: str = "int64") -> Any:
        """The next argument: a scalar."""
        return T.arg(name, Var(name, dtype))


@contextmanager
def kernel(name: str) -> Iterator[Kernel]:
    """Opens a prim_func called ``name``: arguments do not alias each other."""
    builder = Kernel()
    with IRBuilder() as ir_builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        yield builder
    builder._func = ir_builder.get()


def index_of(value: Any) -> Any:
    return T.int64(value) if isinstance(value, int) else value


def loop(extent: Any, kind: Literal["serial", "parallel"] = "serial", *, start: Any = 0) -> Any:
    """``with loop(n) as i``: i = start .. start+extent-1 in int64."""
    bounds = index_of(start), index_of(start + extent)
    return T.serial(*bounds) if kind == "serial" else _parallel(*bounds)


@contextmanager
def _parallel(start: Any, end: Any) -> Iterator[Any]:
    """The body of a parallel loop becomes a function."""
    with T.parallel(start, end) as index, aligned_stack():
        yield index


def splat(value: Any, lanes: int) -> Any:
    """A vector with ``lanes`` copies of a scalar expression (the scalar itself if one)."""
    return T.broadcast(value, lanes) if lanes > 1 else value


def vector(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def load(buffer: Any, indices: Sequence[Any], lanes: int) -> Any:
    """``lanes`` consecutive elements of the last axis, starting at ``indices``."""
    return buffer.vload([index_of(index) for index in indices], vector(buffer.dtype, lanes))


def store(buffer: Any, value: Any, indices: Sequence[Any], lanes: int) -> None:
    """Writes ``lanes`` consecutive elements of the last axis, starting at ``indices``."""
    *outer, last = [index_of(index) for index in indices]
    T.buffer_store(buffer, value, [*outer, T.ramp(last, T.int64(1), lanes) if lanes > 1 else last])


def stack(shape: Sequence[int], dtype: str) -> Any:
    """A small local array (below 1 KiB).

    The scope matters: TVM puts small "global" allocations of CPU functions on the stack, where LLVM promotes them to
    registers, but every "local" one becomes a call of the workspace allocator.
    """
    return T.alloc_buffer(tuple(shape), dtype, scope="global")


def prefetch(element: Any, level: int = 1) -> None:
    """Ask for the cache line of a tensor element, into the cache of this level (a hint that any target may ignore)."""
    arguments = (T.address_of(element), T.int32(0), T.int32(4 - level), T.int32(1))  # read, from level on, data
    T.evaluate(T.call_llvm_intrin("llvm.prefetch", *arguments, dtype="void"))


class Registers:
    """``count`` local variables of one (vector) type, indexed by Python ints so that LLVM keeps them in registers.

    Each is an array of scalars: TVM lets arrays of one element type share storage, and that must not mix with vectors.
    """

    def __init__(self, count: int, dtype: str) -> None:
        self.dtype = dtype
        base, _, lanes = dtype.partition("x")
        self._lanes = int(lanes or 1)
        self._variables = [stack((self._lanes,), base) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._variables)

    def __getitem__(self, index: int) -> Any:
        return load(self._variables[index], [0], self._lanes)

    def __setitem__(self, index: int, value: Any) -> None:
        store(self._variables[index], value, [0], self._lanes)


def zero_registers(count: int, dtype: str) -> Registers:
    """``count`` zeros of a (vector) type."""
    registers = Registers(count, dtype)
    base, _, lanes = dtype.partition("x")
    for index in range(count):
        registers[index] = splat(T.cast(0, base), int(lanes or 1))
    return registers


def llvm(intrinsic: str, dtype: str, *args: Any) -> Any:
    """A call of a pure LLVM intrinsic, by its name such as ``llvm.x86.avx2.pmadd.ub.sw``."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(intrinsic), *args, dtype=dtype)


def build(functions: PrimFunc | Mapping[Any, PrimFunc], target: Any) -> Any:
    """Compiles functions for tests and measurements, as a model's are: ``build(f, target)[name](*tensors)``.

    Args:
        functions: one; or several by name, private ones among them by global variable.
    """
    if isinstance(functions, PrimFunc):
        functions = {str(functions.attrs["global_symbol"]): functions}
    return tvm.compile(tvm.IRModule(dict(functions)), target=target, tir_pipeline=register())


def host_features() -> frozenset[str]:
    """Features that LLVM finds on this machine (never assumed from the CPU's name: a hypervisor may hide some)."""
    features = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return frozenset(str(name) for name, present in features.items() if present)


def read_host_target(cores: int = 0) -> Any:
    """An LLVM target for this machine, built from its features alone. ``cores`` 0: all that this process may use."""
    import os

    cores = cores or len(os.sched_getaffinity(0))
    mattr = [f"+{feature}" for feature in sorted(host_features())]
    return tvm.target.Target({"kind": "llvm", "mattr": mattr, "num-cores": cores})
