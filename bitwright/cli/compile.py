"""``bitwright compile``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.cli import console
from bitwright.cli.options import (
    AvgBitsOption,
    JsonOption,
    MaxBytesOption,
    MaxKldOption,
    ModelArgument,
    RotateOption,
    TargetOption,
)
from bitwright.errors import UsageError
from bitwright.sizes import parse_size

if TYPE_CHECKING:
    from bitwright.frontend.model import ImportedModel


def command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="ARTIFACT", help="Folder to create.")],
    scheme: Annotated[
        str | None, typer.Option(help="Of every linear layer: u4g32a8, u3g64za16, f16, f32, ... Default: u4g32a8.")
    ] = None,
    table: Annotated[
        str | None, typer.Option(help="Of embedding and lm_head, such as u8g32a8. Default: like --scheme.")
    ] = None,
    kv_bits: Annotated[
        float | None,
        typer.Option(
            "--kv-bits",
            help="Bits of the KV cache, 16 or 32 (default: 16, 32 with f32); with --kv auto the most on average.",
        ),
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            "--kv",
            help="Packed caches, such as k=k4rowmr32,v=v4rowmr32 (the rest has --kv-bits), or auto: from --profile.",
        ),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A plan file instead of --scheme, --table, --kv and --kv-bits.")
    ] = None,
    max_bytes: MaxBytesOption = None,
    max_kld: MaxKldOption = None,
    avg_bits: AvgBitsOption = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile", metavar="DIR", help="For budgets, made if absent (default: ARTIFACT.profile); for --kv auto."
        ),
    ] = None,
    correct: Annotated[int, typer.Option("--correct", help="With budgets: rounds of correcting the plan.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="With budgets: schemes scored at a time.")] = 1,
    quantizer: Annotated[
        str | None,
        typer.Option(
            "--quantizer",
            help="rtn (nearest), clip, gptq or auto, from fastest to best. Default: rtn, with budgets auto.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="FILE", help="Text to calibrate on. Default: the model samples one."),
    ] = None,
    calibration_cache: Annotated[
        Path | None, typer.Option("--calibration-cache", metavar="DIR", help="Keep what calibration finds there.")
    ] = None,
    weigh_tokens: Annotated[
        bool, typer.Option("--weigh-tokens", help="Calibrate with tokens that count by gradients: slower, better.")
    ] = False,
    rotate: RotateOption = None,
    equalise: Annotated[
        bool,
        typer.Option("--equalise", help="First move factors between layers, so that channels share scales better."),
    ] = False,
    reorder: Annotated[
        bool,
        typer.Option(
            "--reorder", help="Sort hidden units and tokens by importance: runs of rows differ more. For budgets."
        ),
    ] = False,
    reconstruct: Annotated[
        int,
        typer.Option(
            metavar="STEPS", help="Then train each block on the float block's outputs, on --calibration FILE."
        ),
    ] = 0,
    distill: Annotated[
        int,
        typer.Option(metavar="STEPS", help="Then train codes and scales for so many steps on --calibration FILE."),
    ] = 0,
    stage_minutes: Annotated[
        float | None,
        typer.Option(
            "--stage-minutes", metavar="M", help="Most minutes for --reconstruct, and for --distill. Default: no limit."
        ),
    ] = None,
    target: TargetOption = "native",
    context: Annotated[
        int | None, typer.Option("--context", help="Tokens the cache holds. Default: the model's, at most 2048.")
    ] = None,
    chunk: Annotated[int, typer.Option("--prefill-chunk", help="Most tokens of a prompt in one call.")] = 512,
    records: Annotated[
        Path | None,
        typer.Option("--records", help="Tuning records. Default: this user's for the target, and the package's."),
    ] = None,
    dump_ir: Annotated[
        Path | None, typer.Option("--dump-ir", metavar="DIR", help="Write the IR after every phase there.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing artifact.")] = False,
    json: JsonOption = False,
) -> None:
    """Compile a model to an artifact: packed weights, a shared library, and all that is needed to run them."""
    from bitwright import pipeline
    from bitwright.allocation import Budgets
    from bitwright.options import make_options

    bounds = {"--max-bytes": max_bytes, "--max-kld": max_kld, "--avg-bits": avg_bits}
    given = [name for name, bound in bounds.items() if bound is not None]
    _require_no_schemes(given, {"--scheme": scheme, "--table": table, "--kv": kv, "--kv-bits": kv_bits, "--plan": plan})
    options = make_options(
        scheme=scheme,
        table=table,
        kv=kv,
        kv_bits=kv_bits,
        profile=profile if kv == "auto" else None,
        plan=plan,
        quantizer=quantizer or ("auto" if given else "rtn"),
        calibration=calibration,
        calibration_cache=calibration_cache,
        weigh_tokens=weigh_tokens,
        rotate=rotate,
        equalise=equalise,
        reorder=reorder,
        reconstruct=reconstruct,
        distill=distill,
        stage_minutes=stage_minutes,
        target=target,
        context=context,
        chunk=chunk,
        records=records,
        dump_ir=dump_ir,
        overwrite=overwrite,
    )
    if not json:
        console.note(f"compiling {model}: {_wish(bounds) if given else options.describe()}")
    with console.phases("compiling") as tell:
        source: str | ImportedModel = model
        if given:
            from bitwright.budgets.budgeted import budgeted

            limit = None if max_bytes is None else parse_size(max_bytes, "--max-bytes")
            budgets = Budgets(max_bytes=limit, max_kld=max_kld, avg_bits=avg_bits, context=context)
            source = pipeline.load_model(model, tell)
            folder = profile or output.with_name(output.name + ".profile")
            options = budgeted(source, folder, budgets, options, correct, jobs, tell)
        artifact = pipeline.compile_model(source, output, options, progress=tell)
    manifest = artifact.manifest
    in_vm = manifest.kind == "decoder" and manifest.interface.step is None
    if json:
        console.print_json(
            {
                "artifact": str(artifact.folder),
                "bytes": manifest.run_bytes,
                "kv_bytes_per_token": manifest.interface.cache_bytes_per_token,
                "kv_fixed_bytes": manifest.interface.cache_fixed_bytes,
                "context": manifest.interface.context,
                "scheme": manifest.scheme,
                "target": manifest.target.fingerprint,
            }
        )
        return
    rows = [
        ["artifact", str(artifact.folder)],
        ["weights", f"{manifest.run_bytes} bytes ({console.format_bytes(manifest.run_bytes)})"],
        ["cache", console.format_cache(manifest.interface.cache_bytes_per_token, manifest.interface.cache_fixed_bytes)],
        ["context", f"{manifest.interface.context} tokens"],
        *([kind, names] for kind, names in manifest.scheme.items()),
        *([["decoding", "in the VM, slower; report.md says why"]] if in_vm else []),
        ["target", f"{options.target} ({manifest.target.fingerprint})"],
    ]
    console.print_table(("artifact", "value"), rows)


def _wish(bounds: dict[str, Any]) -> str:
    """The budgets in one line."""
    return "within " + ", ".join(f"{name} {bound}" for name, bound in bounds.items() if bound is not None)


def _require_no_schemes(budgets: list[str], schemes: dict[str, Any]) -> None:
    """Raises UsageError: budgets choose the schemes that were named as well."""
    named = [name for name, value in schemes.items() if value is not None]
    if budgets and named:
        raise UsageError(
            "budgets and schemes were given",
            where=", ".join([*budgets, *named]),
            remedy="give budgets, and the schemes are chosen; or schemes or a plan alone",
        )
