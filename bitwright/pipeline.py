"""The compilation as one list of named phases.

``compile_model`` reads top to bottom: import, find the sites, decide, check, transform, generate code, write the
artifact.
Every phase between import and code generation is a pass of ``passes/``; with ``dump_ir`` the module after each is
written to
``NN-name.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.errors import InputError, UsageError
from bitwright.plan import Plan, uniform_plan
from bitwright.program import CACHE_BLOCK, Program
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.target import Target

if TYPE_CHECKING:
    from bitwright.frontend.model import ImportedModel
    from bitwright.passes.base import Pass
    from bitwright.runtime.artifact import Artifact

DEFAULT_SCHEME = "u4g32a8"
DEFAULT_CONTEXT = 2048
DEFAULT_CHUNK = 256
LARGEST_CHUNK = 4096

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What to compile for.

    Attributes:
        scheme: of every linear layer, when there is no plan.
        table: of embedding and lm_head, when there is no plan; None: the same as ``scheme``.
        cache_bits: 16 or 32, when there is no plan; None: 32 for ``f32``, else 16.
        plan: schemes by site, instead of the three above.
        target: a name that ``Target.parse`` knows.
        context: tokens the caches hold; None: the model's, at most DEFAULT_CONTEXT.
        chunk: most tokens in one call of prefill and score.
        dump_ir: folder for the module after each phase.
        overwrite: replace an existing artifact.
    """

    scheme: LinearScheme = LinearScheme.parse(DEFAULT_SCHEME)  # noqa: RUF009 - a frozen value
    table: LinearScheme | None = None
    cache_bits: int | None = None
    plan: Plan | None = None
    target: str = "native"
    context: int | None = None
    chunk: int = DEFAULT_CHUNK
    dump_ir: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 1:
            raise UsageError(f"a context of {self.context} tokens", limit="at least 1", remedy="leave --context out")
        if not 1 <= self.chunk <= LARGEST_CHUNK:
            raise UsageError(f"a prefill chunk of {self.chunk} tokens", limit=f"1 to {LARGEST_CHUNK}")
        if self.cache_bits not in (None, 16, 32):
            raise UsageError(f"a cache of {self.cache_bits} bits", limit="16 or 32", remedy="leave --kv-bits out")

    def describe(self) -> str:
        """The resolved options in one line."""
        schemes = "by plan" if self.plan else f"linear layers {self.scheme}, table {self.table or self.scheme}"
        return f"{schemes}, target {self.target}, context {self.context or 'default'}, chunk {self.chunk}"


def make_options(
    *,
    scheme: str | None = None,
    table: str | None = None,
    kv_bits: int | None = None,
    plan: str | Path | None = None,
    target: str = "native",
    context: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    dump_ir: str | Path | None = None,
    overwrite: bool = False,
) -> Options:
    """Options from the names and paths that users write.

    Raises:
        UsageError: a scheme, target or number that makes no sense, or a plan together with schemes.
        InputError: the plan cannot be read.
    """
    given = {"--scheme": scheme, "--table": table, "--kv-bits": kv_bits}
    if plan is not None and any(value is not None for value in given.values()):
        raise UsageError(
            "a plan and schemes were given",
            where=", ".join(name for name, value in given.items() if value is not None),
            remedy="edit the plan, or leave --plan out",
        )
    return Options(
        scheme=LinearScheme.parse(scheme or DEFAULT_SCHEME),
        table=None if table is None else LinearScheme.parse(table),
        cache_bits=kv_bits,
        plan=None if plan is None else Plan.read(Path(plan)),
        target=target,
        context=context,
        chunk=chunk,
        dump_ir=None if dump_ir is None else Path(dump_ir),
        overwrite=overwrite,
    )


def compile(
    model: str | Path | ImportedModel, output: str | Path, *, progress: Progress | None = None, **options: Any
) -> Artifact:
    """Compile a model to an artifact folder: ``compile_model`` with the options of :func:`make_options`."""
    return compile_model(model, Path(output), make_options(**options), progress=progress)


def transformations(options: Options, plan: Plan, target: Target) -> list[Pass]:
    """The phases between finding the sites and code generation, in order."""
    from bitwright.codegen.isa import select_isa
    from bitwright.passes.annotate import Annotate
    from bitwright.passes.fuse_add_norm import FuseAddNorm
    from bitwright.passes.fuse_glu import FuseGlu
    from bitwright.passes.fuse_linears import FuseLinears
    from bitwright.passes.fuse_quantize import FuseQuantize
    from bitwright.passes.lower import Lower
    from bitwright.passes.pack_arguments import PackArguments
    from bitwright.passes.quantize import Quantize

    isa = select_isa(target.features)
    return [
        Annotate(plan),
        FuseLinears(),
        FuseGlu(),
        FuseAddNorm(),
        Quantize(isa),
        FuseQuantize(),
        Lower(isa, threads=target.cores),
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
    from bitwright.runtime.artifact import check_destination

    options = options or Options()
    tell = progress or (lambda _: None)
    target = Target.parse(options.target)
    check_destination(output, overwrite=options.overwrite)
    imported = load_model(model, tell, options.context)
    plan, program = plan_and_program(imported, options, target, tell)
    for number, phase in enumerate(transformations(options, plan, target), start=3):
        tell(phase.name)
        program = phase(program)
        _dump(options.dump_ir, number, phase.name, program)
    return _emit(imported, program, plan, target, options, output, tell)


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
    """Tokens the caches hold: a multiple of CACHE_BLOCK unless the model's own context is none.

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
    return uniform_plan(
        program.sites,
        options.scheme,
        table=options.table,
        cache_bits=options.cache_bits or (32 if single else 16),
        model=imported.digest,
        target=target.fingerprint,
    )


def _dump(folder: Path | None, number: int, name: str, program: Program) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number:02d}-{name}.py").write_text(program.module.script(show_meta=False))


def _emit(
    imported: ImportedModel,
    program: Program,
    plan: Plan,
    target: Target,
    options: Options,
    output: Path,
    tell: Progress,
) -> Artifact:
    """Generate code, quantize the weights as they are written, and write the folder."""
    from bitwright.codegen.build import build_library
    from bitwright.runtime.artifact import Interface, ModelRecord, StateTensor, TargetRecord, write_artifact

    def export(path: Path) -> None:
        tell("generate code")
        build_library(_with_bandwidth(program.module, target), target, path)

    tell("quantize the weights")
    weights = {name: np.ascontiguousarray(p.load()) for name, p in program.parameters.items()}
    return write_artifact(
        output,
        kind=program.kind,  # type: ignore[arg-type]  # decoder or encoder
        model=ModelRecord(name=imported.name, digest=imported.digest),
        interface=Interface(
            context=min(program.capacity, imported.context),
            prefill_chunk=options.chunk,
            vocab=imported.vocab,
            functions=tuple(sorted(name for name, _ in _entry_points(program))),
            token_types=_has_token_types(program),
            weight_bytes_per_token=weight_bytes_per_token(program),
            cache_bytes_per_token=cache_bytes_per_token(program, plan),
        ),
        state=[StateTensor(name=n, shape=s, dtype=d) for n, s, d in _state(program, plan)],
        target=TargetRecord(
            arch=target.triple.split("-")[0],
            features=target.required_features,
            fingerprint=target.fingerprint,
            details={"name": target.name, "cpu": target.cpu, "cores": target.cores, **target.caches},
        ),
        export_library=export,
        weights=weights,
        plan=plan.to_json(),
        tokenizer_json=imported.tokenizer_json,
        chat_template=imported.chat_template,
        generation=imported.generation or None,
        report=_report(imported, program, plan, target, weights),
        scheme=_summary(plan),
        overwrite=options.overwrite,
    )


def _entry_points(program: Program) -> Iterator[tuple[str, Any]]:
    from bitwright.passes.base import functions

    return functions(program.module)


def _has_token_types(program: Program) -> bool:
    return program.kind == "encoder" and any(
        p.name == "token_type_ids" for _, f in _entry_points(program) for p in f.params
    )


def _with_bandwidth(module: Any, target: Target) -> Any:
    """Add the plain read loop that ``bitwright bench`` measures the roofline with."""
    from bitwright.autotune.bandwidth import build_read_bandwidth
    from bitwright.codegen.isa import select_isa

    module = module.clone() if hasattr(module, "clone") else module
    module["read_bandwidth"] = build_read_bandwidth(select_isa(target.features))
    return module


def weight_bytes_per_token(program: Program) -> int:
    """Bytes of parameters one decode step reads: everything, but one row of a table that is not the lm_head as well."""
    tables = {site.weight: site for site in program.sites if site.kind == "table" and not site.tied}
    total = 0
    for name, parameter in program.parameters.items():
        site = tables.get(name.rpartition(".")[0])
        total += parameter.nbytes // site.shape[0] if site else parameter.nbytes
    return total


def cache_bytes_per_token(program: Program, plan: Plan) -> int:
    """Bytes of K and V of one position, all layers."""
    total = 0
    for site in program.sites:
        scheme = plan.schemes[site.name]
        if isinstance(scheme, CacheScheme):
            total += scheme.bytes_per_token(*site.shape)
    return total


def _state(program: Program, plan: Plan) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of each cache tensor, in the order of the functions' state tuple."""
    for i, shape in enumerate(program.caches):
        keys = (shape.kv_heads, program.capacity // CACHE_BLOCK, shape.head_dim, CACHE_BLOCK)
        values = (shape.kv_heads, program.capacity, shape.value_dim)
        for letter, extents in (("k", keys), ("v", values)):
            scheme = plan.schemes[f"layer.{i}.{letter}_cache"]
            yield f"{letter}_cache.{i}", extents, f"float{scheme.bits}"  # type: ignore[union-attr]


def _summary(plan: Plan) -> dict[str, str]:
    """The schemes in use, by kind of site, with how many sites have each."""
    counts: dict[str, dict[str, int]] = {}
    for site, scheme in plan.schemes.items():
        kind = "cache" if isinstance(scheme, CacheScheme) else "table" if site.startswith("table") else "linear"
        counts.setdefault(kind, {}).setdefault(scheme.name, 0)
        counts[kind][scheme.name] += 1
    return {kind: ", ".join(f"{name} x{n}" for name, n in found.items()) for kind, found in counts.items()}


def _report(
    imported: ImportedModel, program: Program, plan: Plan, target: Target, weights: dict[str, np.ndarray[Any, Any]]
) -> str:
    total = sum(array.nbytes for array in weights.values())
    lines = [
        f"# {imported.name}",
        "",
        f"Compiled for {target.name} ({target.cpu or 'any CPU'} of {target.triple}, fingerprint {target.fingerprint}).",
        f"Context {min(program.capacity, imported.context)} tokens. Weights {total:,} bytes as stored.",
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
