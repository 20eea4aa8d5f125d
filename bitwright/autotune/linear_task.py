"""Linear layers as something to tune: their search spaces, and what the measuring process does with a candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np

from bitwright.autotune.isolation import IsolatedWorker
from bitwright.autotune.search import Task
from bitwright.autotune.space import Knobs, Space
from bitwright.autotune.workload import Workload
from bitwright.codegen.isa import ISAS, Isa, tuned_for
from bitwright.codegen.linear import LinearSchedule, LinearSpec, default_schedule
from bitwright.codegen.linear.schedule import decode_space, fixed, prefill_space
from bitwright.errors import NumericalError
from bitwright.scheme import LinearScheme

ENTRY = f"{__name__}:measure"
CHECKED_OUTPUTS, CHECKED_INPUTS = 72, 512
"""Candidates are compared with the oracle on a matrix of at most this size, and its last tile is partial."""


def spec_of(workload: Workload) -> LinearSpec:
    outputs, inputs = workload.shape
    return LinearSpec(outputs, inputs, LinearScheme.parse(workload.scheme), rows=1 if workload.m == 1 else None)


def isa_of(workload: Workload, cpu: str) -> Isa:
    return tuned_for(next(isa for isa in ISAS if isa.name == workload.isa), cpu)


def linear_task(workload: Workload, cpu: str) -> Task | None:
    """The workload with its space and the default knobs on ``cpu`` (``Target.tune``); None if its kernel has none."""
    spec, isa = spec_of(workload), isa_of(workload, cpu)
    knobs = decode_space(spec, isa) if spec.rows == 1 else prefill_space(spec, isa)
    if not knobs:
        return None
    default = asdict(default_schedule(spec, isa))
    return Task(workload, Space.of(knobs), {name: default[name] for name in knobs})


def schedule_of(knobs: Knobs, spec: LinearSpec, isa: Isa) -> LinearSchedule:
    """The default schedule with the knobs that are given."""
    return LinearSchedule(**{**asdict(default_schedule(spec, isa)), **knobs})


def measure_with(worker: IsolatedWorker, target: str) -> Callable[[Workload, Knobs], tuple[float, float]]:
    """How a search measures: (seconds, default's seconds) by the worker, for the target of this name."""

    def measured(workload: Workload, knobs: Knobs) -> tuple[float, float]:
        request = {"target": target, "workload": workload.to_json(), "knobs": dict(knobs)}
        seconds, default_seconds = worker(request)
        return float(seconds), float(default_seconds)

    return measured


def measure(request: dict[str, Any]) -> tuple[float, float]:
    """In the measuring process: build the candidate, compare it with the oracle, time it beside the default.

    Raises:
        NumericalError: it computes something else.
    """
    workload = Workload.from_json(request["workload"], "request")
    bench = _bench(request["target"])
    spec, isa = spec_of(workload), isa_of(workload, bench.target.tune)
    schedule = schedule_of(request["knobs"], spec, isa)
    _check(_small(spec), isa, schedule, workload, bench)
    return _times(workload, spec, isa, schedule, bench)


@cache
def _bench(target: str) -> Any:
    from bitwright.autotune.step_bench import Bench
    from bitwright.target import Target

    return Bench(Target.parse(target))


def _times(workload: Workload, spec: LinearSpec, isa: Isa, schedule: LinearSchedule, bench: Any) -> tuple[float, float]:
    from bitwright.autotune.calls import Call, alternate
    from bitwright.autotune.chain import Chain
    from bitwright.autotune.kernels import WEIGHTS
    from bitwright.autotune.step_kernel import of_team
    from bitwright.codegen.linear import build_linear, linear_arguments, linear_team_kernel

    bench.arena.release()
    knobs = (schedule, default_schedule(spec, isa))
    if workload.m == 1:
        kernels = [of_team(linear_team_kernel(spec, isa, "linear", fixed(k)), workload.threads, WEIGHTS) for k in knobs]
        chains = [Chain(kernel, workload.threads, bench.target, bench.arena) for kernel in kernels]
        seconds, default_seconds = bench.compare(chains)
        return seconds, default_seconds
    arguments = linear_arguments(spec, isa)
    functions = [build_linear(spec, isa, schedules=fixed(k)) for k in knobs]
    calls = [Call(function, arguments, bench) for function in functions]
    for call in calls:
        call.place(workload.m, workload.threads)
    seconds, default_seconds = alternate(calls)
    return seconds, default_seconds


def _small(spec: LinearSpec) -> LinearSpec:
    group = spec.scheme.weight.group or spec.inputs
    inputs = spec.inputs if group > CHECKED_INPUTS else min(spec.inputs, CHECKED_INPUTS)
    return LinearSpec(min(spec.outputs, CHECKED_OUTPUTS), inputs, spec.scheme, True, spec.rows)


def _check(spec: LinearSpec, isa: Isa, schedule: LinearSchedule, workload: Workload, bench: Any) -> None:
    """Compares the kernel with the NumPy oracle on random weights and activations."""
    import tvm

    from bitwright.codegen.builder import build
    from bitwright.codegen.linear import build_linear
    from bitwright.codegen.packing import dequantize, pack, pack_float
    from bitwright.codegen.reference import linear as reference

    random, layout, weight = np.random.default_rng(0), spec.layout(isa), spec.scheme.weight
    x = random.standard_normal((1 if spec.rows else min(workload.m, 37), spec.inputs)).astype(np.float32)
    bias = random.standard_normal(spec.outputs).astype(np.float32)
    grouped = (spec.outputs, layout.groups)
    if weight.is_float:
        packed = pack_float(random.standard_normal((spec.outputs, spec.inputs)).astype(np.float32), layout)
        activations: tuple[Any, ...] = (x,)
        expected = reference.linear(x, dequantize(packed, layout), bias)
        magnitude, tolerance = np.abs(dequantize(packed, layout)), reference.TOLERANCE["linear_float"]
    else:
        codes = random.integers(0, 1 << weight.bits, (spec.outputs, spec.inputs)).astype(np.uint8)
        scales = (random.standard_normal(grouped) * 0.01).astype(np.float16)
        zeros = np.full(grouped, weight.centre) if weight.symmetric else random.integers(0, 256, grouped)
        codebook = None
        if weight.is_codebook:
            step = weight.value_step
            codebook = (random.integers(-128 // step, 128 // step, 1 << weight.bits) * step).astype(np.int8)
        packed = pack(codes, scales, None if weight.symmetric else zeros.astype(np.uint8), layout, codebook)
        operands = codes if codebook is None else reference.look_up(codes, codebook) + weight.centre
        activations = reference.quantize_activation(x, layout.group, spec.scheme.terms)
        expected = reference.linear_packed(*activations[:2], operands, scales, zeros, bias)
        # The kernel sums operand * x and zero * x apart from each other.
        unsigned = np.repeat(np.abs(scales.astype(np.float64)), layout.group, 1) * operands
        magnitude = np.maximum(np.abs(dequantize(packed, layout)), unsigned)
        tolerance = reference.TOLERANCE["linear_packed"]
    magnitude = reference.magnitude(x, magnitude, bias)
    function = build(build_linear(spec, isa, schedules=fixed(schedule)), bench.target.tvm())["linear"]
    result = tvm.runtime.tensor(np.full(expected.shape, np.nan, np.float32))
    function(*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (*activations, *packed.values(), bias)), result)
    error = float(np.max(np.abs(result.numpy() - expected) / magnitude))
    if not error <= tolerance:
        raise NumericalError(
            "the candidate differs from the oracle",
            where=f"{workload}, {schedule}",
            limit=f"relative error {error:.2g}, at most {tolerance:.2g}",
        )
