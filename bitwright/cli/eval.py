"""``bitwright eval``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.cli import console
from bitwright.cli.options import ArtifactArgument, JsonOption, ThreadsOption
from bitwright.cli.prompt import read_text
from bitwright.errors import UsageError

if TYPE_CHECKING:
    from bitwright.runtime.evaluate import Evaluation, Logits
    from bitwright.runtime.session import Session


def command(
    artifact: ArtifactArgument,
    text: Annotated[Path, typer.Option("--text", help="File of UTF-8 text to score.")],
    ctx: Annotated[int, typer.Option("--ctx", help="Tokens of a window; windows do not overlap.")] = 512,
    windows: Annotated[int | None, typer.Option("--windows", help="Most windows to score. Default: all.")] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="MODEL", help="Unquantized model to compare with (needs torch)."),
    ] = None,
    reference_cache: Annotated[
        Path | None, typer.Option("--reference-cache", help="Folder that keeps the reference's predictions.")
    ] = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Measure perplexity on a text, and with --reference the KL divergence and top-1 agreement."""
    content = read_text(text)

    from bitwright.runtime.evaluate import evaluate, windows_of
    from bitwright.runtime.session import load

    session = load(artifact, threads=threads)
    tokens = session.tokenizer.encode(content, special=False)
    if ctx > session.context:
        raise UsageError(
            f"windows of {ctx} tokens",
            where="--ctx",
            limit=f"the context of this artifact is {session.context} tokens",
            remedy=f"use --ctx {session.context} or less, or compile the model with a larger --context",
        )
    windows_of(tokens, ctx, windows)  # a text that is too short is refused before the reference is loaded
    expected = None if reference is None else _reference(reference, reference_cache)
    with console.progress("scoring windows") as advance:
        found = evaluate(session.logits, tokens, context=ctx, reference=expected, max_windows=windows, progress=advance)
    if json:
        console.print_json({"bytes": session.manifest.run_bytes, **found.to_json()})
        return
    _print(session, found)


def _reference(model: str, cache: Path | None) -> Logits:
    """The float model's logits, computed by torch from canonical ONNX."""
    from bitwright.frontend import load
    from bitwright.frontend.interpreter import Interpreter
    from bitwright.runtime.reference_cache import ReferenceCache

    with console.phases("reading the reference") as tell:
        imported: Any = load(model, progress=lambda phase, _fraction: tell(phase))
    logits: Logits = Interpreter(imported.graph).logits
    return logits if cache is None else ReferenceCache(cache, imported.digest, logits)


def _print(session: Session, found: Evaluation) -> None:
    rows = [
        ["bytes", f"{session.manifest.run_bytes} ({console.format_bytes(session.manifest.run_bytes)})"],
        ["perplexity", f"{found.perplexity:.4f}"],
        ["perplexity, second halves", f"{found.perplexity_second_half:.4f}"],
    ]
    if found.divergence is not None:
        rows += [
            ["KL(reference || model), mean", f"{found.divergence.mean:.6f} nats"],
            ["KL(reference || model), 99 %", f"{found.divergence.p99:.6f} nats"],
            ["top-1 agreement", f"{100 * found.divergence.top1:.2f} %"],
        ]
    rows.append(["windows", f"{found.windows} of {found.context} tokens"])
    console.print_table(("figure", "value"), rows)
