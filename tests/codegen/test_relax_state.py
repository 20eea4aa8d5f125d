"""How cache state travels through a Relax function: the idiom that lowering relies on.

``state`` is one Relax parameter (an ffi Array of tensors), ``pos`` a shape of one element. Its symbol stands among the
arguments of ``call_tir``; the append kernel writes the caller's tensors through ``call_tir_inplace``.

The parameter may be typed as a tuple of tensors, or as a plain object whose elements get their types as they are taken
out. The VM checks every tensor of a typed tuple at every call (0.2 us each, measured), and nothing of an object; the
kernels check the shapes they are called with in either case.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bitwright.codegen.attention import AttentionSpec, build_attention
from bitwright.codegen.cache import AppendSpec, CacheSpec, build_cache_append
from bitwright.codegen.reference import attention as reference

from .harness import THREADS, assert_close
from .tolerances import ATTENTION

CACHE = CacheSpec(kv_heads=2, head_dim=16, value_dim=16, capacity=64)
LAYERS = 2


def build_module(typed: bool = True) -> Any:
    """main(q, k, v, pos, state): append k, v to every layer's cache, attend, and return the sum over layers."""
    from tvm import relax, tirx

    append = build_cache_append(AppendSpec(CACHE))
    attend = build_attention(AttentionSpec(4, CACHE, 0.25, threads=THREADS))
    block = relax.BlockBuilder()
    append_var, attend_var = block.add_func(append, "append"), block.add_func(attend, "attend")
    n, p = tirx.Var("n", "int64"), tirx.Var("p", "int64")
    q = relax.Var("q", relax.TensorType([n, 64], "float32"))
    k = relax.Var("k", relax.TensorType([n, 32], "float32"))
    v = relax.Var("v", relax.TensorType([n, 32], "float32"))
    pos = relax.Var("pos", relax.ShapeType([p]))
    key_type = relax.TensorType(CACHE.keys.shape, CACHE.keys.dtype)
    value_type = relax.TensorType(CACHE.values.shape, CACHE.values.dtype)
    types = [key_type, value_type] * LAYERS
    state = relax.Var("state", relax.TupleType(types) if typed else relax.ObjectType())

    def tensor(index: int) -> Any:
        if typed:
            return block.emit(relax.TupleGetItem(state, index))
        getitem = "vm.builtin.tuple_getitem"
        return block.emit(
            relax.op.call_pure_packed(getitem, state, tirx.IntImm("int64", index), ty_args=[types[index]])
        )

    with block.function("main", [q, k, v, pos, state]):
        total = None
        for layer in range(LAYERS):
            caches = [tensor(2 * layer + i) for i in range(2)]
            written = block.emit(
                relax.op.call_tir_inplace(append_var, relax.Tuple([k, v, *caches, p]), [2, 3], [key_type, value_type])
            )
            # Reading the results, not the originals, orders the attention after the append.
            caches = [block.emit(relax.TupleGetItem(written, i)) for i in range(2)]
            out_type = relax.TensorType([n, 64], "float32")
            y = block.emit(relax.op.call_tir(attend_var, relax.Tuple([q, *caches, p]), out_type))
            total = y if total is None else block.emit(relax.op.add(total, y))
        block.emit_func_output(total)
    return block.get()


@pytest.fixture(scope="module", params=[True, False], ids=["tuple", "object"])
def main(request: pytest.FixtureRequest) -> Any:
    import tvm
    from tvm import relax

    from bitwright.codegen.builder import read_host_target

    executable = tvm.compile(build_module(request.param), target=read_host_target(THREADS))
    return relax.VirtualMachine(executable, tvm.cpu())["main"]


def test_state_is_written_in_place_across_calls(main: Any) -> None:
    import tvm
    import tvm_ffi

    rng = np.random.default_rng(0)
    q = rng.standard_normal((40, 4, 16)).astype("float32")
    k, v = rng.standard_normal((2, 40, 2, 16)).astype("float32")
    empty = np.full(CACHE.keys.shape, np.nan, "float16"), np.full(CACHE.values.shape, np.nan, "float16")
    tensors = [tvm.runtime.tensor(a) for a in empty * LAYERS]
    addresses = [np.from_dlpack(t).ctypes.data for t in tensors]
    outputs, done = [], 0
    for n in (23, 1, 16):
        rows = [tvm.runtime.tensor(np.ascontiguousarray(a[done : done + n].reshape(n, -1))) for a in (q, k, v)]
        outputs.append(main(*rows, tvm_ffi.Shape([done]), tvm_ffi.Array(tensors)).numpy())
        done += n
    half_k, half_v = k.astype("float16"), v.astype("float16")
    for layer in range(LAYERS):
        keys, values = tensors[2 * layer : 2 * layer + 2]
        np.testing.assert_array_equal(keys.numpy(), reference.pack_keys(half_k, 64, "float16", np.nan))
        np.testing.assert_array_equal(values.numpy(), reference.pack_values(half_v, 64, "float16", np.nan))
    assert addresses == [np.from_dlpack(t).ctypes.data for t in tensors]
    expected = LAYERS * reference.attention(q, half_k, half_v, scale=0.25)
    assert_close(np.concatenate(outputs), expected, ATTENTION)


@pytest.mark.parametrize("typed", [True, False])
def test_no_copy_of_the_cache_is_made(typed: bool) -> None:
    """The VM allocates one tensor for each kernel result (attention, additions) and none for a cache."""
    import tvm

    from bitwright.codegen.builder import read_host_target

    code = tvm.compile(build_module(typed), target=read_host_target(THREADS)).as_text()
    calls = [line.split()[1] for line in code.splitlines() if line.strip().startswith("call ")]
    assert calls.count("vm.builtin.alloc_tensor") == LAYERS + (LAYERS - 1)
    assert calls.count("cache_append_2x16_k16_v16") == calls.count("attention_4on2x16_k16_v16") == LAYERS
    assert not [name for name in calls if "copy" in name]
    checked = calls.count("vm.builtin.check_tensor_info")
    assert checked == 3 + (2 * LAYERS if typed else 0)  # q, k, v
