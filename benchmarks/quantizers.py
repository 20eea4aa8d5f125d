"""What every quantizer makes of a model, from compiled artifacts:

    python -m benchmarks.quantizers MODEL --calibration FILE --text FILE -o FOLDER [--set widths,bars,ablation]

Every row is compiled and evaluated in a process of its own, whose CPU time and peak memory stand in the table, and kept
in FOLDER/rows.json: a run that was cut off goes on where it stopped. Artifacts are deleted once they are measured. The
table is printed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

QUANTIZERS = ("rtn", "clip", "gptq", "auto")
BEST = "auto+weigh-tokens+equalise"
PARTS = ("residual", "value", "hidden")
BYTES = "u8g32a8"
"""The table of an ablation: nearly without loss, so that rows differ by their linear layers."""


@dataclass(frozen=True)
class Row:
    """One artifact: a method (a quantizer and options of compile joined by +), and schemes."""

    method: str
    scheme: str
    table: str

    @property
    def options(self) -> list[str]:
        """Of ``bitwright compile``: ``auto+equalise+distill=300`` is --quantizer auto --equalise --distill 300."""
        quantizer, *more = self.method.split("+")
        flags = [word for part in more for word in (f"--{part}".split("=", 1))]
        return ["--quantizer", quantizer, *flags, "--scheme", self.scheme, "--table", self.table]


def rows_of(name: str) -> tuple[Row, ...]:
    """The rows of a set: ``widths``, ``bars`` or ``ablation``; or one row written METHOD:SCHEME:TABLE."""
    if name == "widths":
        schemes = [f"u{bits}g32a{bits_of_input}" for bits_of_input in (8, 16) for bits in (8, 6, 5, 4, 3, 2)]
        return tuple(Row(method, scheme, scheme) for scheme in schemes for method in (*QUANTIZERS, BEST))
    if name == "bars":
        pairs = (("u5g64a8", "u5g32a8"), ("u4g64a8", "u5g32a8"), ("c3g32a8", "u4rowa8"))
        return tuple(Row(BEST, *pair) for pair in pairs)
    if name == "ablation":
        return tuple(Row(*row, BYTES) for bits in (4, 3, 2) for row in _ingredients(bits))
    parts = name.split(":")
    if len(parts) != 3:
        raise SystemExit(f"'{name}' is not widths, bars, ablation or METHOD:SCHEME:TABLE")
    return (Row(*parts),)


def _ingredients(bits: int) -> Iterator[tuple[str, str]]:
    """Methods and linear schemes of an ablation at one width: quantizers, what is added to them, and codebooks."""
    whole = f"rotate={','.join(PARTS)}"
    added = ("equalise", "weigh-tokens", "weigh-tokens+equalise", whole, f"weigh-tokens+equalise+{whole}")
    trained = f"{BEST}+distill=100"
    alone = [f"auto+rotate={part}" for part in PARTS] if bits == 3 else []  # each rotation by itself
    for method in (*QUANTIZERS, *(f"auto+{part}" for part in added), *alone, trained):
        yield method, f"u{bits}g32a8"
    for method in ("auto", BEST, f"{BEST}+{whole}"):
        yield method, f"c{bits}g32a8"


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    model: str
    calibration: Path
    text: Path
    windows: int
    folder: Path

    def compile(self, row: Row, artifact: Path) -> list[str]:
        calibrating = ["--calibration", str(self.calibration), "--calibration-cache", str(self.folder / "calibration")]
        needed = [] if row.method == "rtn" else calibrating
        return ["compile", self.model, *row.options, *needed, "--context", "512", "--overwrite", "-o", str(artifact)]

    def evaluate(self, artifact: Path) -> list[str]:
        reference = ["--reference", self.model, "--reference-cache", str(self.folder / "reference")]
        return ["eval", str(artifact), "--text", str(self.text), "--windows", str(self.windows), *reference]


def measured(setting: Setting, row: Row) -> dict[str, Any]:
    """Compile and evaluate one row."""
    artifact = setting.folder / "artifact"
    _, seconds, memory = _verb(setting.compile(row, artifact))
    found, _, _ = _verb(setting.evaluate(artifact))
    shutil.rmtree(artifact)
    return {**asdict(row), **found, "compile_cpu_seconds": seconds, "compile_peak_bytes": memory}


def _verb(arguments: Sequence[str]) -> tuple[dict[str, Any], float, int]:
    """Run a verb with --json: its document, CPU seconds and peak resident bytes."""
    command = [sys.executable, "-m", "bitwright.cli", *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # it is a pipe
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return json.loads(output), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def known(path: Path) -> dict[Row, dict[str, Any]]:
    """The rows measured before."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {Row(entry["method"], entry["scheme"], entry["table"]): entry for entry in found}


def keep(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Replace ``path``; it is never half a file."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def table(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| quantizer | linear layers | table | MB | perplexity | KL | KL 99 % | top-1 | CPU s | peak MB |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for e in entries:
        cells = (
            e["method"], f"`{e['scheme']}`", f"`{e['table']}`", f"{e['bytes'] / 1e6:.1f}", f"{e['perplexity']:.2f}",
            f"{e['kl']['mean']:.4f}", f"{e['kl']['p99']:.3f}", f"{100 * e['top1']:.1f} %",
            f"{e['compile_cpu_seconds']:.0f}", f"{e['compile_peak_bytes'] / 1e6:.0f}",
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def main(
    model: Annotated[str, typer.Argument(help="What bitwright compile reads.")],
    calibration: Annotated[Path, typer.Option(help="Text to calibrate on.")],
    text: Annotated[Path, typer.Option(help="Text to evaluate on, another one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for figures and caches.")],
    sets: Annotated[str, typer.Option("--set", help="widths, bars, ablation or METHOD:SCHEME:TABLE, by commas.")] = (
        "widths,bars,ablation"
    ),
    windows: Annotated[int, typer.Option(help="Windows of 512 tokens to evaluate on.")] = 16,
) -> None:
    """Compile and evaluate a model once per quantizer and scheme."""
    setting = Setting(model, calibration, text, windows, output)
    output.mkdir(parents=True, exist_ok=True)
    journal = output / "rows.json"
    wanted = dict.fromkeys(row for name in sets.split(",") for row in rows_of(name))
    done = known(journal)
    for number, row in enumerate(wanted, start=1):
        typer.echo(f"{number} of {len(wanted)}: {row.method} {row.scheme} {row.table}", err=True)
        if row in done:
            continue
        done[row] = {**measured(setting, row), "windows": windows}
        keep(journal, list(done.values()))
    for line in table([done[row] for row in wanted]):
        typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
