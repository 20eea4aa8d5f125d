"""``bitwright compile``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli import console
from bitwright.cli.options import JsonOption, ModelArgument, TargetOption


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
        int | None, typer.Option("--kv-bits", help="Bits of the KV cache, 16 or 32. Default: 16 (32 with f32).")
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option("--kv", help="Packed caches, such as k=k8g32,v=v4g32. What it leaves open has --kv-bits."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A plan file instead of --scheme, --table, --kv and --kv-bits.")
    ] = None,
    quantizer: Annotated[
        str, typer.Option("--quantizer", help="rtn (nearest), clip, gptq or auto, from fastest to best.")
    ] = "rtn",
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="FILE", help="Text to calibrate on. Default: the model samples one."),
    ] = None,
    calibration_cache: Annotated[
        Path | None, typer.Option("--calibration-cache", metavar="DIR", help="Keep what calibration finds there.")
    ] = None,
    distill: Annotated[
        int,
        typer.Option(metavar="STEPS", help="Then train codes and scales for so many steps on --calibration FILE."),
    ] = 0,
    target: TargetOption = "native",
    context: Annotated[
        int | None, typer.Option("--context", help="Tokens the cache holds. Default: the model's, at most 2048.")
    ] = None,
    chunk: Annotated[int, typer.Option("--prefill-chunk", help="Most tokens of a prompt in one call.")] = 256,
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
    from bitwright.options import make_options

    options = make_options(
        scheme=scheme,
        table=table,
        kv=kv,
        kv_bits=kv_bits,
        plan=plan,
        quantizer=quantizer,
        calibration=calibration,
        calibration_cache=calibration_cache,
        distill=distill,
        target=target,
        context=context,
        chunk=chunk,
        records=records,
        dump_ir=dump_ir,
        overwrite=overwrite,
    )
    if not json:
        console.note(f"compiling {model}: {options.describe()}")
    with console.phases("compiling") as tell:
        artifact = pipeline.compile_model(model, output, options, progress=tell)
    manifest = artifact.manifest
    in_vm = manifest.kind == "decoder" and manifest.interface.step is None
    if json:
        console.print_json(
            {
                "artifact": str(artifact.folder),
                "bytes": manifest.run_bytes,
                "kv_bytes_per_token": manifest.interface.cache_bytes_per_token,
                "context": manifest.interface.context,
                "scheme": manifest.scheme,
                "target": manifest.target.fingerprint,
            }
        )
        return
    rows = [
        ["artifact", str(artifact.folder)],
        ["weights", f"{manifest.run_bytes} bytes ({console.format_bytes(manifest.run_bytes)})"],
        ["cache", f"{console.format_bytes(manifest.interface.cache_bytes_per_token)} per token"],
        ["context", f"{manifest.interface.context} tokens"],
        *([kind, names] for kind, names in manifest.scheme.items()),
        *([["decoding", "in the VM, slower; report.md says why"]] if in_vm else []),
        ["target", f"{options.target} ({manifest.target.fingerprint})"],
    ]
    console.print_table(("artifact", "value"), rows)
