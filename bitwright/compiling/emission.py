"""From a lowered program to an artifact folder: code generation, quantized weights, and what the manifest says."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.codegen.step.barrier import WORDS
from bitwright.codegen.step.program import StepProgram
from bitwright.codegen.step.schedule import Schedule, Task, most_threads, schedule
from bitwright.errors import UsageError
from bitwright.options import Options
from bitwright.plan import Plan
from bitwright.program import Parameter, Program
from bitwright.runs import MixedScheme
from bitwright.scheme import CacheScheme
from bitwright.target import Target
from bitwright.traffic import operation_bytes, weight_bytes_per_token

# Object code and library of a model are one or two MB; they do not grow with its weights.
LINK_BYTES = 16 << 20

if TYPE_CHECKING:
    from bitwright.frontend.model import ImportedModel
    from bitwright.runtime.artifact import Artifact, PeakRecord, StepRecord


def write(
    imported: ImportedModel,
    program: Program,
    plan: Plan,
    target: Target,
    options: Options,
    output: Path,
    tell: Callable[[str], None],
    digests: Mapping[str, str],
    quantization: str,
) -> Artifact:
    """Generate code, quantize the weights as they are written (one matrix at a time), and write the folder.

    Args:
        digests: for the manifest.
        quantization: a sentence on how weights became codes, for the report.
    """
    from bitwright.codegen.build import build_library
    from bitwright.codegen.step.emit import step_functions
    from bitwright.runtime.artifact import Interface, ModelRecord, StateTensor, TargetRecord, write_artifact

    step, plan_of_step = program.step, None
    if step is not None:
        plan_of_step = schedule(step.program, most_threads(target.cores))

    def export(path: Path) -> None:
        tell("generate code")
        module = _with_ceilings(program.module, target)
        for folder in (path.parent, Path(tempfile.gettempdir())):
            reserve(folder)
        try:
            functions = dict(program.tile_functions)
            if step is not None and plan_of_step is not None:
                functions |= step_functions(step.program, plan_of_step, step.workers, step.vocab, target.triple)
            build_library(module, target, path, functions)
        except RuntimeError as error:
            raise UsageError(
                "the library could not be linked",
                where=str(path),
                limit=" ".join(str(error).split())[-400:],
                remedy=f"free space there and in {tempfile.gettempdir()}, and check that gcc works",
            ) from error
        tell("quantize the weights")

    return write_artifact(
        output,
        kind=program.kind,  # type: ignore[arg-type]  # decoder or encoder
        model=ModelRecord(name=imported.name, digest=imported.digest),
        interface=Interface(
            context=min(program.capacity, imported.context),
            prefill_chunk=options.chunk,
            vocab=imported.vocab,
            functions=tuple(sorted(name for name, _ in _entry_points(program))),
            token_types=token_types(imported),
            weight_bytes_per_token=weight_bytes_per_token(program),
            cache_bytes_per_token=cache_bytes_per_token(program, plan),
            cache_fixed_bytes=cache_fixed_bytes(program, plan),
            recent_run=recent_run(plan),
            macs_per_token=program.prefill_macs[0],
            macs_per_chunk=program.prefill_macs[1],
            peak=_peak_record(target),
            step=None
            if step is None or plan_of_step is None
            else step_record(program, plan, step.program, plan_of_step),
        ),
        state=[StateTensor(name=n, shape=s, dtype=d) for n, s, d in _state(program, plan)],
        target=TargetRecord(
            arch=target.triple.split("-")[0],
            features=target.required_features,
            fingerprint=target.fingerprint,
            details={"name": target.name, "cpu": target.cpu, "cores": target.cores, **target.caches},
        ),
        export_library=export,
        weights={name: _Weight(parameter) for name, parameter in program.parameters.items()},
        plan=plan.to_json(),
        tokenizer_json=imported.tokenizer_json,
        chat_template=imported.chat_template,
        generation=imported.generation or None,
        report=_report(imported, program, plan, target, quantization),
        scheme=_summary(plan),
        digests=digests,
        overwrite=options.overwrite,
    )


def step_record(program: Program, plan: Plan, step: StepProgram, schedule: Schedule) -> StepRecord:
    """What a session needs to know about the decode step: its memory, its tasks and the bytes that each reads."""
    from bitwright.runtime.artifact import StepRecord

    caches = ((plan.schemes[site.name], site.shape) for site in program.sites if not site.weight)
    sizes = (scheme.bytes_per_token(*shape) for scheme, shape in caches if isinstance(scheme, CacheScheme))
    position = dict(enumerate(sizes))
    read = operation_bytes(program, step.operations, position)
    return StepRecord(
        shared_bytes=schedule.shared_bytes,
        private_bytes=schedule.private_bytes,
        threads=schedule.threads,
        barrier_words=WORDS,
        barriers=schedule.barriers,
        tasks=tuple(
            (_task_name(step, task), *(read[task.operation] if task.phase == 0 else (0, 0))) for task in schedule.tasks
        ),
    )


def _task_name(step: StepProgram, task: Task) -> str:
    """The kernel's name, and which of its phases if there are several."""
    operation = step.operations[task.operation]
    return operation.name if len(operation.workers) == 1 else f"{operation.name}.{task.phase}"


@dataclass(frozen=True)
class _Weight:
    """A parameter as a tensor that is loaded, and quantized, when the writer makes an array of it."""

    parameter: Parameter

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parameter.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.parameter.dtype)

    @property
    def nbytes(self) -> int:
        return self.parameter.nbytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return self.parameter.load()


def reserve(folder: Path, size: int = LINK_BYTES) -> None:
    """Prove that ``size`` bytes can be written in ``folder`` now: LLVM ends the process when it cannot write.

    Raises:
        UsageError: the disk is full, the folder is not writable, or a limit on file sizes is smaller.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise UsageError(
            f"there is no room to generate code: {error.strerror}",
            where=str(folder),
            limit=f"{size} bytes are needed for a while, {shutil.disk_usage(folder).free} are free",
            remedy="free space there; TMPDIR names the folder of temporary files; nothing was left behind",
        ) from error


def _entry_points(program: Program) -> Iterator[tuple[str, Any]]:
    from bitwright.passes.base import functions

    return functions(program.module)


def token_types(imported: ImportedModel) -> int:
    """Rows of the table that ``token_type_ids`` looks up; 0 if the model has none."""
    for node in imported.graph.graph:
        table, index = (*node.inputs, None, None)[:2]
        if node.op_type == "Gather" and table is not None and index is not None and index.name == "token_type_ids":
            return int(table.const_value.shape[0])
    return 0


def _with_ceilings(module: Any, target: Target) -> Any:
    """Add the loops that only read and only multiply, which ``bitwright bench`` measures the rooflines with."""
    from bitwright.autotune.bandwidth import build_read_bandwidth
    from bitwright.autotune.dot_peak import build_dot_peak
    from bitwright.codegen.isa import select_isa

    isa, module = select_isa(target.features), module.clone()
    module["read_bandwidth"] = build_read_bandwidth(isa)
    module["dot_peak"] = build_dot_peak(isa)
    return module


def _peak_record(target: Target) -> PeakRecord:
    from bitwright.autotune.dot_peak import STEPS, products_per_step
    from bitwright.codegen.isa import select_isa
    from bitwright.runtime.artifact import PeakRecord

    isa = select_isa(target.features)
    return PeakRecord(lanes=isa.lanes, macs=STEPS * products_per_step(isa))


def cache_bytes_per_token(program: Program, plan: Plan) -> int:
    """Bytes of K and V of one position, all layers."""
    total = 0
    for site in program.sites:
        scheme = plan.schemes[site.name]
        if isinstance(scheme, CacheScheme):
            total += scheme.bytes_per_token(*site.shape)
    return total


def cache_fixed_bytes(program: Program, plan: Plan) -> int:
    """Bytes of K and V besides those of positions, all layers."""
    schemes = ((site, plan.schemes[site.name]) for site in program.sites)
    return sum(scheme.fixed_bytes(*site.shape) for site, scheme in schemes if isinstance(scheme, CacheScheme))


def recent_run(plan: Plan) -> int:
    """Tokens of the runs that caches keep exact; 0: none does."""
    return max((s.recent for s in plan.schemes.values() if isinstance(s, CacheScheme)), default=0)


def _state(program: Program, plan: Plan) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of each cache tensor, in the order of the functions' state tuple."""
    from bitwright.passes.caches import cache_specs

    for i, cache in enumerate(cache_specs(program, plan)):
        for tensor in (cache.keys, cache.values):
            yield f"{tensor.name}.{i}", tensor.shape, tensor.dtype


def _summary(plan: Plan) -> dict[str, str]:
    """The schemes in use, by kind of site, with how many sites have each; runs of rows are named without their rows."""
    counts: dict[str, dict[str, int]] = {}
    for site, scheme in plan.schemes.items():
        kind = "cache" if isinstance(scheme, CacheScheme) else "table" if site.startswith("table") else "linear"
        name = "+".join(str(run.scheme) for run in scheme.runs) if isinstance(scheme, MixedScheme) else scheme.name
        counts.setdefault(kind, {}).setdefault(name, 0)
        counts[kind][name] += 1
    return {kind: ", ".join(f"{name} x{n}" for name, n in found.items()) for kind, found in counts.items()}


def _report(imported: ImportedModel, program: Program, plan: Plan, target: Target, quantization: str) -> str:
    total = sum(parameter.nbytes for parameter in program.parameters.values())
    lines = [
        f"# {imported.name}",
        "",
        f"Compiled for {target.name} ({target.cpu or 'any CPU'} of {target.triple}, fingerprint {target.fingerprint}).",
        f"Context {min(program.capacity, imported.context)} tokens. Weights {total:,} bytes as stored.",
        quantization,
        "",
        _decode_line(program),
        "",
        "| kind of site | schemes |",
        "|---|---|",
        *(f"| {kind} | {names} |" for kind, names in _summary(plan).items()),
        "",
        "| pass | what it did |",
        "|---|---|",
        *(
            f"| {name} | {', '.join(f'{what} {count}' for what, count in counts.items())} |"
            for name, counts in program.events.items()
        ),
        "",
    ]
    return "\n".join(lines)


def _decode_line(program: Program) -> str:
    if program.step is not None:
        return f"Decoding: one parallel region of {len(program.step.program.operations)} kernel calls."
    if program.step_refused:
        return f"Decoding: in the VM, because the step could not be flattened: {program.step_refused}."
    return "Encoder: one call per text."
