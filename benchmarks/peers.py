"""Speed of bitwright artifacts and of other engines on the same weights, in turns, in one run.

    python -m benchmarks.make_reference models/reference
    bitwright compile models/reference --scheme u4g32a8 -o artifacts/u4g32a8
    python -m benchmarks.peers models/reference --artifact artifacts/u4g32a8 --peers llama.cpp,onnxruntime,openvino
        -t 1,2 --tests pp512,tg64 --json out.json

Peers are built or installed when they are not there (into build/peers; `llama.cpp-avx2` is built without AVX-512 and
AVX-VNNI). Their models are made once from the same Hugging Face folder (kept in --work), and the unquantized copy of
each is checked against torch's logits first. Every contestant runs in a process of its own; before it is timed, its
logits must resemble the reference's. A round times each contestant once per test (llama-bench's rows: pp512 is a prompt
of 512 random tokens, tg64 is 64 tokens decoded one at a time); figures are medians [min, max] over rounds, ratios are
taken within a round. With --json a run that was cut off continues: finished rounds count, --rounds says how many there
should be in the end, and contestants, tests and thread counts may be added later.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import peer_llama_cpp, peer_onnxruntime, peer_openvino
from benchmarks.arguments import integers, names, paired_parser, require_known, require_names
from benchmarks.journal import Journal
from benchmarks.llama_gguf import TIMED, TYPES
from benchmarks.paired import Contestant, Worker, measure
from benchmarks.reference import home_of, reference
from benchmarks.report import print_tables, report
from benchmarks.worker import Row

PEERS = ("llama.cpp", "llama.cpp-avx2", "onnxruntime", "openvino")
ENOUGH_ROUNDS = 5


def contestants(arguments: argparse.Namespace, home: Path) -> list[Contestant]:
    """Ours first, then the peers' in the order they were asked for."""
    found = [Contestant(f"bitwright {path.name}", "bitwright", path) for path in arguments.artifact]
    for peer in arguments.peers:
        if peer.startswith("llama.cpp"):
            avx2 = peer == "llama.cpp-avx2"
            found += peer_llama_cpp.contestants(arguments.reference, home, arguments.types, avx2=avx2)
        elif peer == "onnxruntime":
            found += peer_onnxruntime.contestants(arguments.reference, home)
        else:
            found += peer_openvino.contestants(arguments.reference, home)
    return found


def run(arguments: argparse.Namespace) -> None:
    tests = [Row.parse(name, depth) for depth in arguments.depths for name in arguments.tests]
    context = -(-max(test.positions for test in tests) // 256) * 256
    home = home_of(arguments.reference, arguments.work)
    everyone, expected = contestants(arguments, home), reference(arguments.reference, home)
    journal = Journal.read(arguments.json, home.name) if arguments.json else Journal(home.name)
    load = os.getloadavg()
    if load[0] > 0.5:
        print(f"note: load average {load[0]:.1f}: others are computing; absolute figures are low", file=sys.stderr)
    ours = [entry.label for entry in everyone if entry.engine == "bitwright"]
    with contextlib.ExitStack() as stack:
        workers = []
        for threads in arguments.threads:
            for contestant in everyone:
                worker = stack.enter_context(Worker(contestant, threads, context))
                likeness = expected.require_similar(worker.logits(expected.ids), contestant.label)
                print(f"{contestant.label}, threads {threads}: correlation {likeness:.4f}", file=sys.stderr)
                described = {
                    **worker.description,
                    "path": str(contestant.path),
                    "modified": _modified(contestant.path),
                    "correlation": round(likeness, 3),
                }
                if not journal.enter(contestant.label, described):
                    print(f"{contestant.label} has changed: its earlier rounds are forgotten", file=sys.stderr)
                workers.append(worker)
        cells = [(worker.contestant.label, worker.threads, test) for worker in workers for test in tests]

        def finished(number: int, speeds: dict[tuple[str, int, Row], float]) -> None:
            journal.add(number, speeds)
            if arguments.json:
                journal.write(arguments.json, report(journal, ours, load))

        numbers = journal.missing(cells, arguments.rounds)
        if numbers:
            measure(workers, tests, numbers, lambda text: print(text, file=sys.stderr), finished)
    document = report(journal, ours, load)
    if arguments.json:
        journal.write(arguments.json, document)
    print_tables(document, journal)
    if arguments.rounds < ENOUGH_ROUNDS:
        print(f"note: medians should be taken over at least {ENOUGH_ROUNDS} rounds", file=sys.stderr)


def _modified(path: Path) -> float:
    """When the model was made: of an artifact's manifest, or of the file."""
    manifest = path / "manifest.json"
    return (manifest if manifest.exists() else path).stat().st_mtime


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = paired_parser("peers", __doc__, rounds=7)
    parser.add_argument("--peers", type=names, default=["llama.cpp"], help=f"of {', '.join(PEERS)}")
    parser.add_argument(
        "--types", type=names, default=list(TIMED), help=f"of llama.cpp: {', '.join(TYPES)} ({','.join(TIMED)})"
    )
    parser.add_argument("--tests", type=names, default=["pp512", "tg64"], help="pp<tokens>, tg<tokens> (pp512,tg64)")
    parser.add_argument("-d", "--depths", type=integers, default=[0], help="tokens of context before the test (0)")
    parser.add_argument("-t", "--threads", type=integers, default=[1, 2], help="numbers of threads (1,2)")
    arguments = parser.parse_args(given)
    require_known(parser, arguments.types, tuple(TYPES))
    require_known(parser, arguments.peers, tuple(PEERS))
    require_names(parser, arguments.artifact)
    if arguments.rounds < 1 or not arguments.tests:
        parser.error("at least one round of one test is needed")
    return arguments


if __name__ == "__main__":
    run(parse_arguments())
