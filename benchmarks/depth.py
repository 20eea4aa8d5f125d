"""Decoding at depth: bitwright artifacts and llama.cpp's cache formats on the same weights, in turns, in one run.

    bitwright compile models/reference --scheme u4g32a8 --context 8192 --kv k=k8row,v=v8row -o artifacts/u4-k8v8
    python -m benchmarks.depth models/reference --artifact artifacts/u4-k8v8 -d 0,2048,4096,8128 --json depth.json

llama.cpp runs Q4_0 weights with `-ctk` and `-ctv` of --caches (flash attention is on where they are quantized). Every
contestant runs in a process of its own. A round takes each through the depths once: the cache is really filled, by a
prompt up to each depth, and --tokens tokens are decoded there, one at a time. Figures are medians over rounds, ratios
are taken within a round. With --json a run that was cut off continues.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import peer_llama_cpp
from benchmarks.arguments import integers, names, paired_parser, require_known, require_names
from benchmarks.journal import Journal
from benchmarks.llama_engine import CACHE_TYPES
from benchmarks.paired import Contestant, Worker, ratios
from benchmarks.reference import home_of, reference
from benchmarks.report import report
from benchmarks.worker import Row

WEIGHTS = "q4_0"
MULTIPLE = 256
"""llama.cpp rounds contexts up to it."""


def contestants(arguments: argparse.Namespace, home: Path) -> list[Contestant]:
    """Ours first, then llama.cpp with each cache format."""
    ours = [Contestant(f"bitwright {path.name}", "bitwright", path) for path in arguments.artifact]
    (plain,) = peer_llama_cpp.contestants(arguments.reference, home, [WEIGHTS], avx2=False)
    return ours + [
        Contestant(f"{plain.label}, {cache} cache", plain.engine, plain.path, plain.packages, cache)
        for cache in arguments.caches
    ]


def run(arguments: argparse.Namespace) -> None:
    depths = sorted(set(arguments.depths))
    tests = [Row("tg", arguments.tokens, depth) for depth in depths]
    context = -(-tests[-1].positions // MULTIPLE) * MULTIPLE
    home = home_of(arguments.reference, arguments.work)
    everyone, expected = contestants(arguments, home), reference(arguments.reference, home)
    journal = Journal.read(arguments.json, home.name) if arguments.json else Journal(home.name)
    load = os.getloadavg()
    ours = [entry.label for entry in everyone if entry.engine == "bitwright"]
    with contextlib.ExitStack() as stack:
        workers = []
        for contestant in everyone:
            worker = stack.enter_context(Worker(contestant, arguments.threads, context))
            expected.require_similar(worker.logits(expected.ids), contestant.label)
            journal.enter(contestant.label, {**worker.description, "path": str(contestant.path)})
            workers.append(worker)
        cells = [(worker.contestant.label, worker.threads, test) for worker in workers for test in tests]
        for number in journal.missing(cells, arguments.rounds):
            speeds = {}
            for worker in workers if number % 2 == 0 else reversed(workers):
                print(f"round {number} {worker.contestant.label}", file=sys.stderr)
                for test, speed in zip(tests, worker.sweep(depths, arguments.tokens), strict=True):
                    speeds[worker.contestant.label, worker.threads, test] = speed
            journal.add(number, speeds)
            if arguments.json:
                journal.write(arguments.json, report(journal, ours, load))
    print(markdown(journal, ours, arguments.threads, tests))


def markdown(journal: Journal, ours: Sequence[str], threads: int, tests: Sequence[Row]) -> str:
    """Two tables: tokens per second by depth, and ours over each peer's within a round."""
    depths = [str(test.depth) for test in tests]
    lines = [_line(["contestant", "cache bytes per token", *depths]), _line(["---"] * (2 + len(tests)))]
    for label, described in journal.contestants.items():
        speeds = [journal.figures.get((label, threads, test)) for test in tests]
        cells = [f"{median(found.values()):.0f}" if found else "-" for found in speeds]
        lines.append(_line([label, f"{int(described['cache_bytes_per_token']):,}", *cells]))
    lines += ["", _line(["ours", "peer", *depths]), _line(["---"] * (2 + len(tests)))]
    peers = [label for label in journal.contestants if not label.startswith("bitwright ")]
    for mine in ours:
        found = ratios(journal.figures, mine, peers)
        for peer in peers:
            lines.append(_line([mine, peer, *(_ratio(found, peer, threads, test) for test in tests)]))
    return "\n".join(lines)


def _ratio(found: Sequence[dict[str, Any]], peer: str, threads: int, test: Row) -> str:
    wanted = (peer, test.name, test.depth, threads)
    for row in found:
        if (row["peer"], row["test"], row["depth"], row["threads"]) == wanted:
            ratio = row["ratio"]
            return f"{ratio['median']:.2f} [{ratio['min']:.2f}-{ratio['max']:.2f}]"
    return "-"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = paired_parser("depth", __doc__, rounds=5)
    parser.add_argument("--caches", type=names, default=list(CACHE_TYPES), help=f"of {', '.join(CACHE_TYPES)} (all)")
    parser.add_argument("-d", "--depths", type=integers, default=[0, 2048, 4096, 8128], help="tokens of context")
    parser.add_argument("--tokens", type=int, default=32, help="tokens decoded at each depth (32)")
    parser.add_argument("-t", "--threads", type=int, default=2)
    arguments = parser.parse_args(given)
    require_known(parser, arguments.caches, tuple(CACHE_TYPES))
    require_names(parser, arguments.artifact)
    if arguments.tokens < 1 or arguments.rounds < 1 or min(arguments.depths) < 0:
        parser.error("at least one round of one token is needed, and no depth is negative")
    steps = sorted(set(arguments.depths))
    if any(after - before <= arguments.tokens for before, after in itertools.pairwise(steps)):
        parser.error("depths must differ by more than --tokens: each is reached from the one before")
    return arguments


if __name__ == "__main__":
    run(parse_arguments())
