"""``bitwright doctor``"""

from __future__ import annotations

from bitwright.cli import console
from bitwright.cli.options import JsonOption


def command(json: JsonOption = False) -> None:
    """Show this machine: what LLVM can use, caches, measured read bandwidth, the TVM pair, what can be compiled."""
    from bitwright.diagnosis import diagnose

    with console.phases("measuring") as tell:
        found = diagnose(progress=tell)
    if json:
        console.print_json(found.to_json())
        return
    console.print_table(("this machine", ""), found.rows())
    print()
    rows = [
        [b.level, console.format_bytes(b.nbytes), str(b.threads), f"{b.bytes_per_second / 1e9:.1f} GB/s"]
        for b in found.bandwidth
    ]
    console.print_table(("read bandwidth", "buffer", "threads", "median"), rows)
    for problem in found.problems:
        console.note(f"problem: {problem}")
