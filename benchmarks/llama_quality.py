"""What llama.cpp's types make of a model, on the windows and by the figures of `bitwright eval`.

    python -m benchmarks.llama_quality models/reference --text FILE --reference-cache DIR --types q8_0,q4_0
    python -m benchmarks.llama_quality models/reference --text FILE --types float --caches f16,q8_0,q4_0 --ctx 8192

The files are those of benchmarks.peers: llama.cpp's own quantizer, without an importance matrix. Perplexity is over all
positions of a window, divergence from the float model and agreement over its second half, as `bitwright eval
--reference` has them; KL increases of cache formats are differences to the row of f16.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.arguments import names, require_known
from benchmarks.llama_engine import CACHE_TYPES, LlamaEngine
from benchmarks.llama_gguf import TYPES
from benchmarks.packages import NATIVE_LLAMA
from benchmarks.peer_llama_cpp import FLOAT, contestants
from benchmarks.reference import home_of
from bitwright.runtime.rows import Logits


def parser() -> argparse.ArgumentParser:
    description, details = str(__doc__).split("\n\n", 1)
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.llama_quality",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = (FLOAT, *TYPES)
    made.add_argument("reference", type=Path, help="HF folder of a llama-architecture model")
    made.add_argument("--text", type=Path, required=True, help="file of UTF-8 text")
    made.add_argument("--windows", type=int, default=16, help="most windows (16)")
    made.add_argument("--ctx", type=int, default=512, help="tokens of a window (512)")
    made.add_argument("--types", type=names, default=list(TYPES), help=f"of {', '.join(known)} (all but {FLOAT})")
    made.add_argument("--caches", type=names, default=["f16"], help=f"of {', '.join(CACHE_TYPES)} (f16)")
    made.add_argument("--reference-cache", type=Path, help="folder that keeps the float model's predictions")
    made.add_argument("--work", type=Path, default=Path("models/peers"), help="where the peers' models are kept")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--json", action="store_true", help="rows as one JSON document instead of a table")
    return made


def measured(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per type and cache format."""
    from bitwright.frontend import load
    from bitwright.runtime.evaluate import evaluate

    home = home_of(arguments.reference, arguments.work)
    files = contestants(arguments.reference, home, arguments.types, avx2=False)
    packages = NATIVE_LLAMA.ensure()
    if packages is not None:
        sys.path.insert(0, str(packages))
    model = load(arguments.reference)
    tokens = encoded(model.tokenizer_json, arguments.text)
    expected = float_logits(model, arguments.reference_cache)
    for name, file in zip(arguments.types, files, strict=True):
        for cache in arguments.caches:
            with LlamaEngine(file.path, arguments.threads, arguments.ctx, cache) as engine:
                found = evaluate(
                    engine.rows, tokens, context=arguments.ctx, reference=expected, max_windows=arguments.windows
                )
                stored = file.path.stat().st_size
                yield {"type": name, "cache": cache, "bytes": stored, "context": arguments.ctx, **found.to_json()}


def encoded(tokenizer: bytes | None, text: Path) -> list[int]:
    """The text in the model's tokens, without special ones."""
    from tokenizers import Tokenizer

    if tokenizer is None:
        raise SystemExit("the model has no tokenizer.json")
    made = Tokenizer.from_str(tokenizer.decode())
    made.no_truncation()
    ids: list[int] = made.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    return ids


def float_logits(model: Any, cache: Path | None) -> Logits:
    """The float model, computed in torch, kept in ``cache`` if one is given."""
    from bitwright.frontend.interpreter import Interpreter
    from bitwright.frontend.interpreter.rows import CachedRows
    from bitwright.runtime.reference_cache import ReferenceCache

    rows = CachedRows(Interpreter(model.graph))
    return rows if cache is None else ReferenceCache(cache, model.digest, rows)


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| llama.cpp | cache | MB | perplexity | KL | KL 99 % | top-1 |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        cells = (
            row["type"], row["cache"], f"{row['bytes'] / 1e6:.1f}", f"{row['perplexity']:.2f}",
            f"{row['kl']['mean']:.4f}", f"{row['kl']['p99']:.3f}", f"{100 * row['top1']:.1f} %",
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    made = parser()
    arguments = made.parse_args()
    require_known(made, arguments.types, (FLOAT, *TYPES))
    require_known(made, arguments.caches, tuple(CACHE_TYPES))
    rows = []
    for row in measured(arguments):
        print(f"{row['type']}, {row['cache']} cache: KL {row['kl']['mean']:.4f}", file=sys.stderr)
        rows.append(row)
    print(json.dumps(rows, indent=1) if arguments.json else "\n".join(table(rows)))


if __name__ == "__main__":
    main()
