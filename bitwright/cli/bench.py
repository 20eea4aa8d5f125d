"""``bitwright bench``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli import console
from bitwright.cli.options import ArtifactArgument, JsonOption, parse_counts

if TYPE_CHECKING:
    from bitwright.runtime.bench import BenchRow
    from bitwright.runtime.breakdown import Breakdown

COLUMNS = (
    "test",
    "depth",
    "threads",
    "tokens/s",
    "mean",
    "sd",
    "per token",
    "read",
    "of bandwidth",
    "GMAC/s",
    "of peak",
)
KERNEL_COLUMNS = ("kernel", "calls", "µs", "share", "bytes", "GB/s", "of bandwidth")


def command(
    artifact: ArtifactArgument,
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="Lengths of prompts, with commas; 0 for none.")] = "512",
    new: Annotated[str, typer.Option("-n", "--new", help="Numbers of tokens to decode; 0 for none.")] = "128",
    depth: Annotated[str, typer.Option("-d", "--depth", help="Tokens in the cache before each test.")] = "0",
    threads: Annotated[
        str | None, typer.Option("-t", "--threads", help="Numbers of threads. Default: one per physical core.")
    ] = None,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", help="Measured runs of each test.")] = 5,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also where the time goes: a decode step and a chunk, kernel by kernel.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure tokens per second: ppN processes a prompt of N tokens, tgN decodes N tokens one by one.

    Each row stands beside the read bandwidth that the same threads reach on as many bytes in the same run.
    """
    prompts, counts = parse_counts(prompt, "-p"), parse_counts(new, "-n")
    depths = parse_counts(depth, "-d")
    wanted = None if threads is None else parse_counts(threads, "-t")

    from bitwright.runtime.bench import plan_tests, profile_tests, run_tests
    from bitwright.runtime.session import load
    from bitwright.runtime.threads import choose_threads

    wanted = None if wanted is None else [choose_threads(count) for count in wanted]
    session = load(artifact, threads=None if wanted is None else max(wanted))
    chosen = wanted or [session.threads]
    tests = plan_tests(prompts, counts, depths, chosen, session.context)
    with console.progress("measuring") as advance:
        rows = list(run_tests(session, tests, repetitions=repetitions, progress=advance))
    profiles = list(profile_tests(session, tests, repetitions=repetitions)) if profile else []
    if json:
        manifest = session.manifest
        console.print_json(
            {
                "model": manifest.model.name,
                "bytes": manifest.run_bytes,
                "target": manifest.target.fingerprint,
                "repetitions": repetitions,
                "rows": [row.to_dict() for row in rows],
                **({"profiles": [entry.to_dict() for entry in profiles]} if profile else {}),
            }
        )
        return
    console.print_table(COLUMNS, [_cells(row) for row in rows])
    for entry in profiles:
        print(f"\n{entry.test} at depth {entry.depth}, threads {entry.threads}: {1e3 * entry.seconds:.3f} ms")
        console.print_table(KERNEL_COLUMNS, [*_kernel_cells(entry), _outside_cells(entry)])


def _cells(row: BenchRow) -> list[str]:
    return [
        row.test.name,
        str(row.test.depth),
        str(row.test.threads),
        f"{row.median:.1f}",
        f"{row.mean:.1f}",
        f"{row.deviation:.1f}",
        console.format_bytes(row.bytes_per_token),
        f"{row.bytes_per_second / 1e9:.1f} of {row.bandwidth / 1e9:.1f} GB/s",
        f"{100 * row.roofline_fraction:.0f} %",
        f"{row.macs_per_second / 1e9:.1f}",
        f"{100 * row.peak_fraction:.0f} %",
    ]


def _kernel_cells(profile: Breakdown) -> list[list[str]]:
    """A line per kernel, the longest first."""
    return [
        [
            kernel.name,
            str(kernel.calls),
            f"{1e6 * kernel.seconds:.1f}",
            f"{100 * kernel.seconds / profile.seconds:.1f} %",
            console.format_bytes(kernel.nbytes),
            f"{kernel.bytes_per_second / 1e9:.1f}",
            f"{100 * kernel.bytes_per_second / profile.bandwidth:.0f} %",
        ]
        for kernel in sorted(profile.kernels, key=lambda kernel: -kernel.seconds)
    ]


def _outside_cells(profile: Breakdown) -> list[str]:
    share = 100 * profile.outside / profile.seconds
    return ["outside kernels", "-", f"{1e6 * profile.outside:.1f}", f"{share:.1f} %", "-", "-", "-"]
