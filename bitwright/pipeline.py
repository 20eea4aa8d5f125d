"""The compilation as one list of named phases.

``compile_model`` reads top to bottom: import, find the sites, decide, check, transform, write the artifact. Every phase
between import and code generation is a pass of ``passes/``; with ``dump_ir`` the module after each is written to
``NN-name.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.cachemaps import CacheMaps
from bitwright.compiling import emission
from bitwright.compiling.calibration import calibrated
from bitwright.compiling.folding import folded_values
from bitwright.compiling.key_calibration import calibrated_cache_maps
from bitwright.compiling.quantization import check_kept, quantization
from bitwright.compiling.rotation import rotated
from bitwright.compiling.transforming import transformed
from bitwright.errors import InputError, UsageError
from bitwright.options import DEFAULT_CONTEXT, Options, make_options
from bitwright.plan import Plan, check_order, uniform_plan
from bitwright.program import Program
from bitwright.target import Target

if TYPE_CHECKING:
    from bitwright.autotune.store import TunedSchedules
    from bitwright.codegen.linear.schedule import Schedules
    from bitwright.frontend.model import ImportedModel
    from bitwright.passes.base import Pass
    from bitwright.passes.quantizers.matrix import Quantizer
    from bitwright.program import Parameter
    from bitwright.runtime.artifact import Artifact

Progress = Callable[[str], None]


def compile(
    model: str | Path | ImportedModel, output: str | Path, *, progress: Progress | None = None, **options: Any
) -> Artifact:
    """Compile a model to an artifact folder: ``compile_model`` with the options of :func:`make_options`."""
    return compile_model(model, Path(output), make_options(**options), progress=progress)


def transformations(
    options: Options,
    plan: Plan,
    target: Target,
    schedules: Schedules | None = None,
    quantizer_of: Callable[[Parameter], Quantizer] | None = None,
    cache_maps: CacheMaps = CacheMaps(),  # noqa: B008 - a frozen value
) -> list[Pass]:
    """The phases between finding the sites and code generation, in order.

    Args:
        schedules: choose kernels' knobs.
        quantizer_of: turns matrices into codes when the weights are written; None: round to nearest.
        cache_maps: of the caches that the plan stores mapped.
    """
    from bitwright.codegen.isa import select_isa
    from bitwright.codegen.linear import default_schedule
    from bitwright.codegen.step.schedule import most_threads
    from bitwright.passes.annotate import Annotate
    from bitwright.passes.flatten_decode import FlattenDecode
    from bitwright.passes.fuse_add_norm import FuseAddNorm
    from bitwright.passes.fuse_glu import FuseGlu
    from bitwright.passes.fuse_linears import FuseLinears
    from bitwright.passes.fuse_packed_glu import FusePackedGlu
    from bitwright.passes.fuse_quantize import FuseQuantize
    from bitwright.passes.fuse_residual import FuseResidual
    from bitwright.passes.lower import Lower
    from bitwright.passes.map_keys import MapKeys
    from bitwright.passes.pack_arguments import PackArguments
    from bitwright.passes.quantize import Quantize
    from bitwright.passes.quantizers.sites import SiteQuantizers

    isa = select_isa(target.features, target.tune)
    return [
        Annotate(plan),
        MapKeys(cache_maps),
        FuseLinears(),
        FuseGlu(),
        FuseAddNorm(),
        Quantize(isa, quantizer_of or SiteQuantizers()),
        FuseQuantize(),
        FusePackedGlu(isa),
        FuseResidual(),
        Lower(isa, target.cores, schedules or default_schedule),
        FlattenDecode(most_threads(target.cores), isa.lanes),
        PackArguments(options.chunk),
    ]


def preparations() -> list[Pass]:
    """The phases before any decision: they find what can be decided."""
    from bitwright.passes.find_sites import FindSites
    from bitwright.passes.fuse_bias import FuseBias

    return [FuseBias(), FindSites()]


def compile_model(
    model: str | Path | ImportedModel, output: Path, options: Options | None = None, *, progress: Progress | None = None
) -> Artifact:
    """Compile a model to an artifact folder.

    Args:
        model: an ONNX file, an HF folder, a GGUF file, the name of a built-in model, or a loaded model.
        progress: called with the name of each phase as it begins.

    Raises:
        InputError, UnsupportedError, UsageError: see the frontend, the passes and the artifact writer.
    """
    from bitwright.passes.base import with_event
    from bitwright.runtime.artifact import check_destination

    options = options or Options()
    tell = progress or (lambda _: None)
    let_interruptions_pass()
    target = Target.parse(options.target)
    check_destination(output, overwrite=options.overwrite)
    if options.dump_ir is not None:
        with writing_ir(options.dump_ir):
            pass  # now rather than after the model has been read
    imported = load_model(model, tell, options.context)
    if options.rotate:
        rotated(imported, options.rotate)  # what cannot be is said now rather than after calibration
    plan, program = plan_and_program(imported, options, target, tell)
    schedules = tuned_schedules(options, target)
    with calibrated(imported, options, tell) as moments:
        ready = transformed(
            imported, moments, equalise=options.equalise, reorder=options.reorder, rotate=options.rotate
        )
        imported, moments = ready.model, ready.moments
        check_order(plan, ready.digests.get("order", ""))
        if options.codes is not None:
            check_kept(options.codes, ready.digests, options.rotate)
        folded = folded_values(imported, moments, calibrated_cache_maps(imported, options, plan, tell))
        imported, moments = folded.model, folded.moments
        events = {**ready.events, **folded.events}
        if events:
            program = sites_of(imported, options, tell)
        for name, counts in events.items():
            program = with_event(program, name, **counts)
        coding = quantization(imported, program, plan, options, moments, tell, folded.weights)
        phases = transformations(options, plan, target, schedules, coding.quantizer_of, folded.maps)
        for number, phase in enumerate(phases, start=3):
            tell(phase.name)
            program = phase(program)
            _dump(options.dump_ir, number, phase.name, program)
        tuned = {"tuning": schedules.digest} if schedules.used else {}
        digests = {**coding.digests, **ready.digests, **folded.digests, **tuned}
        return emission.write(imported, program, plan, target, options, output, tell, digests, coding.description)


def tuned_schedules(options: Options, target: Target) -> TunedSchedules:
    """Chooses kernels' knobs from the tuning records that ``options`` name or that are found.

    Raises:
        InputError: the records cannot be read, or those that were named hold nothing for the target.
    """
    from bitwright.autotune.store import TunedSchedules, load_records
    from bitwright.codegen.isa import select_isa

    records = load_records(options.records, select_isa(target.features), target.fingerprint, target.tune)
    return TunedSchedules(records, target.fingerprint, target.cores)


def let_interruptions_pass() -> None:
    """Keep Ctrl-C and ``sys.exit`` what they are on their way through TVM, which else makes RuntimeErrors of them."""
    from tvm_ffi import register_error

    for kind in (KeyboardInterrupt, SystemExit):
        register_error(kind.__name__, kind)


def load_model(model: str | Path | ImportedModel, tell: Progress, context: int | None = None) -> ImportedModel:
    """The canonical model, read unless it is one already; ``context``: positions to import, None for all."""
    if not isinstance(model, (str, Path)):
        return model
    from bitwright import frontend

    tell("read the model")
    return frontend.load(model, context=context, progress=lambda phase, _fraction: tell(f"read the model: {phase}"))


def plan_and_program(imported: ImportedModel, options: Options, target: Target, tell: Progress) -> tuple[Plan, Program]:
    """Import to Relax, find the sites, and settle and check the plan."""
    from bitwright.codegen.isa import select_isa
    from bitwright.passes.legality import check_legal

    program = sites_of(imported, options, tell)
    plan = options.plan or _uniform(program, imported, options, target)
    plan.check_sites(program.sites)
    if plan.model and plan.model != imported.digest:
        raise InputError(
            "the plan was made for another model",
            where=f"plan: {plan.model[:16]}, model: {imported.digest[:16]}",
            remedy="make a plan for this model, or clear the plan's model field if you are sure",
        )
    check_legal(plan, program.sites, select_isa(target.features))
    return plan, program


def sites_of(imported: ImportedModel, options: Options, tell: Progress) -> Program:
    """Import to Relax and find the sites."""
    from bitwright.frontend.relax.module import import_model

    tell("import to Relax")
    program = import_model(imported, capacity=capacity(imported, options))
    _dump(options.dump_ir, 0, "import", program)
    for number, phase in enumerate(preparations(), start=1):
        tell(phase.name)
        program = phase(program)
        _dump(options.dump_ir, number, phase.name, program)
    return program


def capacity(imported: ImportedModel, options: Options) -> int:
    """Tokens the caches must hold; import rounds them up to a whole cache block.

    Raises:
        UsageError: more than the model has positions for.
    """
    if options.context is None:
        return min(imported.context, DEFAULT_CONTEXT)
    if options.context > imported.context:
        raise UsageError(
            f"a context of {options.context} tokens",
            limit=f"the model has positions for {imported.context}",
            remedy=f"use --context {imported.context} or less",
        )
    return options.context


def _uniform(program: Program, imported: ImportedModel, options: Options, target: Target) -> Plan:
    single = options.scheme.weight.is_float and options.scheme.weight.bits == 32
    plan = uniform_plan(
        program.sites,
        options.scheme,
        table=options.table,
        cache_bits=options.cache_bits or (32 if single else 16),
        keys=options.keys,
        values=options.values,
        model=imported.digest,
        target=target.fingerprint,
    )
    if options.caches is None:
        return plan
    return replace(plan, schemes={**plan.schemes, **options.caches}, notes={"strategy": "uniform, caches chosen"})


def _dump(folder: Path | None, number: int, name: str, program: Program) -> None:
    if folder is None:
        return
    with writing_ir(folder):
        (folder / f"{number:02d}-{name}.py").write_text(program.module.script(show_meta=False))


@contextmanager
def writing_ir(folder: Path) -> Iterator[None]:
    """Make ``folder``; what fails there and in the block is an error of ``--dump-ir``.

    Raises:
        UsageError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UsageError(
            f"the IR cannot be written: {error.strerror}",
            where=f"--dump-ir {folder}",
            remedy="choose a folder that can be written",
        ) from error
