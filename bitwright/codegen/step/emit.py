"""The functions of a decode step: one that starts the threads, and one that each of them runs from beginning to end.

``decode_step`` takes, in order::

    tokens i64[1], logits f32[1, V], best i64[1]           tensors; the last two are results
    weights, state                                         u64[...]: addresses of the artifact's tensors
    arena u8[schedule.arena_bytes(threads)]                what the step works in
    words i64[threads * WORDS], ticks i64[tasks + 1]       of the barrier; cycle counters, written if ``profile``
    position, threads, generation, profile                 int64

``generation`` counts the calls: barriers are numbered through all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen import private
from bitwright.codegen.builder import kernel, loop, symbol
from bitwright.codegen.step.barrier import POINTER_SYMBOL, SYMBOL, support_ir
from bitwright.codegen.step.program import Operand, StepProgram
from bitwright.codegen.step.schedule import Schedule, Task
from bitwright.errors import InternalError

NAME = "decode_step"
_THREAD = "decode_step_thread"
_POINTERS = ("tokens", "logits", "best", "weights", "state", "arena", "words", "ticks")
_SCALARS = ("position", "threads", "generation", "profile")
INPUTS, OUTPUTS = ("tokens",), ("logits", "best")


def step_functions(
    program: StepProgram, schedule: Schedule, workers: Mapping[str, Any], vocab: int, triple: str
) -> dict[Any, Any]:
    """All functions of the step by global variable: ``decode_step``, what it runs on every thread, and the workers."""
    names = {name: tvm.ir.GlobalVar(name) for name in (NAME, _THREAD, *workers)}
    thread_function = _thread_function(program, schedule, names, triple)
    with kernel(NAME) as function:
        arguments = {
            "tokens": function.tensor("tokens", (1,), "int64"),
            "logits": function.tensor("logits", (1, vocab), "float32"),
            "best": function.tensor("best", (1,), "int64"),
            "weights": function.tensor("weights", (symbol("n_weights"),), "uint64"),
            "state": function.tensor("state", (symbol("n_state"),), "uint64"),
            "arena": function.tensor("arena", (symbol("n_arena"),), "uint8"),
            "words": function.tensor("words", (symbol("n_words"),), "int64"),
            "ticks": function.tensor("ticks", (symbol("n_ticks"),), "int64"),
        }
        scalars = [function.scalar(name) for name in _SCALARS]

        def run(thread: Any) -> None:
            private.call(names[_THREAD], [*(arguments[name].data for name in _POINTERS), *scalars, thread])

        threads = scalars[1]
        with T.If(threads == T.int64(1)):
            with T.Then():  # without the cost of a launch
                run(T.int64(0))
            with T.Else(), loop(threads, "parallel") as thread:
                run(thread)
    functions = {**workers, _THREAD: thread_function, NAME: function.func}
    return {names[name]: functions[name] for name in functions}


def _thread_function(program: StepProgram, schedule: Schedule, names: Mapping[str, Any], triple: str) -> Any:
    with IRBuilder() as builder, T.prim_func(s_tir=True, is_private=True):
        T.func_name(_THREAD)
        pointers = {name: T.arg(name, _pointer(name)) for name in _POINTERS}
        scalars = {name: T.arg(name, tirx.Var(name, "int64")) for name in (*_SCALARS, "thread")}
        with T.attr(T.int32(0), "pragma_import_llvm", support_ir(triple)):
            _Body(program, schedule, names, pointers, scalars).emit()
    function = builder.get()
    return tirx.PrimFunc(function.params, function.body, ret_type=tvm.ir.PrimType(private.RETURNS))


class _Body:
    def __init__(
        self,
        program: StepProgram,
        schedule: Schedule,
        names: Mapping[str, Any],
        pointers: dict[str, Any],
        scalars: dict[str, Any],
    ) -> None:
        self.program, self.schedule, self.names = program, schedule, names
        self.pointers, self.scalars = pointers, scalars
        self.arena = T.decl_buffer((T.int64(1 << 40),), "uint8", data=pointers["arena"])
        self.ticks = T.decl_buffer((T.int64(1 << 40),), "int64", data=pointers["ticks"])
        self.passed = 0

    def emit(self) -> None:
        self._tick(0)
        for number, task in enumerate(self.schedule.tasks):
            if task.barrier:
                self._barrier()
            if task.mode == "single":
                with T.If(self.scalars["thread"] == T.int64(0)), T.Then():
                    self._run(task)
            else:
                self._run(task)
            self._tick(number + 1)
        self._barrier()

    def _run(self, task: Task) -> None:
        operation = self.program.operations[task.operation]
        arguments = [self._argument(a) for a in (*operation.inputs, *operation.results, *operation.scratch)]
        share = [self.scalars["thread"], self.scalars["threads"]]
        private.call(self.names[operation.workers[task.phase]], [*arguments, *share])

    def _argument(self, operand: Operand | str | int) -> Any:
        if isinstance(operand, str):
            return self.scalars[operand]
        if isinstance(operand, int):
            return T.int64(operand)
        if operand.region in ("weight", "state"):
            return self._element(operand)
        if operand.region == "input":
            return self.pointers[INPUTS[operand.index]]
        if operand.region == "output":
            return self.pointers[OUTPUTS[operand.index]]
        place = self.schedule.places[operand.index]
        start = T.int64(place.offset + operand.offset)
        if place.private:
            start = start + T.int64(self.schedule.shared_bytes) + self.scalars["thread"] * self.schedule.private_bytes
        return T.address_of(self.arena[start])

    def _element(self, operand: Operand) -> Any:
        if operand.offset:
            raise InternalError("a step reads a part of a stored tensor", where=f"{operand.region} {operand.index}")
        table = self.pointers["weights" if operand.region == "weight" else "state"]
        return T.call_extern("handle", POINTER_SYMBOL, table, T.int64(operand.index))

    def _barrier(self) -> None:
        self.passed += 1
        count = self.scalars["generation"] * T.int64(self.schedule.barriers) + T.int64(self.passed)
        arguments = (self.pointers["words"], self.scalars["thread"], self.scalars["threads"], count)
        T.evaluate(T.call_extern("void", SYMBOL, *arguments))

    def _tick(self, index: int) -> None:
        wanted = tirx.all(self.scalars["profile"] != T.int64(0), self.scalars["thread"] == T.int64(0))
        with T.If(wanted), T.Then():
            cycles = T.call_llvm_intrin("llvm.readcyclecounter", dtype="int64")
            T.buffer_store(self.ticks, cycles, [T.int64(index)])


def _pointer(name: str) -> Any:
    kind = {"weights": "uint64", "state": "uint64", "arena": "uint8", "logits": "float32"}.get(name, "int64")
    return private.pointer(name, kind)
