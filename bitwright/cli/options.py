"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.errors import UsageError

ArtifactArgument = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder made by `bitwright compile`.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="ONNX file, HF folder, GGUF file, or the built-in smollm2-135m.")
]
TargetOption = Annotated[
    str, typer.Option("--target", help="native, avx512vnni, avx512vnni-novbmi, avxvnni, avx2 or generic (any CPU).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", "-t", help="Threads to compute with. Default: one per physical core.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        dir_okay=False,
        help="Read the K/V cache from this file if it exists, and save it there at the end: what an earlier prompt and"
        " this one begin with is not computed again.",
    ),
]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", "-n", help="Most tokens of an answer.")]
TemperatureOption = Annotated[
    float | None, typer.Option(help="0 is greedy. Default: what the model recommends, else 0.")
]
TopKOption = Annotated[int | None, typer.Option(help="Draw from the k most likely tokens; 0 from all.")]
TopPOption = Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that sum to this probability.")]
MinPOption = Annotated[float | None, typer.Option(help="Drop tokens less likely than this share of the likeliest.")]
PenaltyOption = Annotated[float | None, typer.Option(help="Make tokens seen before less likely; 1 is none.")]
SeedOption = Annotated[int | None, typer.Option(help="Of the random draws. Default 0: equal runs give equal answers.")]
StopOption = Annotated[list[str] | None, typer.Option("--stop", help="Stop at this text (may be repeated).")]
SystemOption = Annotated[str | None, typer.Option(help="System message for the chat template.")]
ContextShiftOption = Annotated[
    bool,
    typer.Option(
        "--context-shift",
        help="When the context is full, drop the older half of all tokens behind the first --keep and go on."
        " Without it an answer ends there, and a longer prompt is an error.",
    ),
]
KeepOption = Annotated[
    int | None,
    typer.Option(
        "--keep", metavar="N", help="Tokens that --context-shift never drops. Default: the system message, at least 4."
    ),
]
MetricOption = Annotated[str, typer.Option("--metric", help="How errors are scored, such as fisher or output_mse.")]
RotateOption = Annotated[
    str | None,
    typer.Option(
        "--rotate", metavar="PARTS", help="Rotate any of residual,value,hidden, so that what sticks out is spread."
    ),
]
MaxBytesOption = Annotated[
    str | None,
    typer.Option("--max-bytes", help="Of weights, and of the cache at --context if given: 60MB (10^6), 60MiB (2^20)."),
]
MaxDecodeOption = Annotated[
    float | None, typer.Option("--max-decode-ms", help="Of one token, after --context tokens if given.")
]
MaxPrefillOption = Annotated[float | None, typer.Option("--max-prefill-ms", help="Of a prompt of --prompt tokens.")]
LatencyOption = Annotated[
    Path | None,
    typer.Option(
        "--latency", metavar="TABLE", help="Made by `bitwright latency`. Default: this user's for the target."
    ),
]
MaxKldOption = Annotated[
    float | None, typer.Option("--max-kld", help="Expected divergence, nats per token; then bytes are minimised.")
]
AvgBitsOption = Annotated[
    float | None, typer.Option("--avg-bits", help="Bits of storage per weight: a budget of bytes in other words.")
]

MOST_DIGITS = 9


def parse_counts(text: str, name: str) -> list[int]:
    """``"0,4096"`` as numbers.

    Raises:
        UsageError: anything but whole numbers from 0, of at most MOST_DIGITS digits, with commas between them.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= MOST_DIGITS for part in parts):
        raise UsageError(
            f"'{text[:80]}' is no list of counts",
            where=name,
            limit="whole numbers from 0 with commas between them",
            remedy=f"pass for example {name} 0,4096",
        )
    return [int(part) for part in parts]
