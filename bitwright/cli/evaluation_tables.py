"""What ``bitwright eval`` prints for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitwright.cli import console

if TYPE_CHECKING:
    from bitwright.runtime.evaluate import Evaluation, PositionRange


def print_evaluation(size: int, found: Evaluation, ranges: Sequence[PositionRange] | None) -> None:
    """Figures of a text, and of its ranges of positions if there are any."""
    rows = [
        _bytes(size),
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
    if ranges is None:
        return
    columns = ["positions", "perplexity", *(("KL", "KL 99 %", "top-1") if found.divergence else ())]
    lines = []
    for entry in ranges:
        line = [f"{entry.first}-{entry.last}", f"{entry.perplexity:.4f}"]
        if (kl := entry.divergence) is not None:
            line += [f"{kl.mean:.6f}", f"{kl.p99:.6f}", f"{100 * kl.top1:.2f} %"]
        lines.append(line)
    print()
    console.print_table(columns, lines)


def print_accuracy(size: int, found: dict[str, Any]) -> None:
    """Accuracy on a file of items."""
    score = "loss" if "loss" in found else "margin"
    name = "loss per last word" if score == "loss" else "margin, ln p(good) - ln p(bad)"
    rows = [
        _bytes(size),
        ["accuracy", _share(found["accuracy"])],
        [name, f"{found[score]:.4f} nats"],
    ]
    if (reference := found["reference"]) is not None:
        rows += [
            ["accuracy of the reference", _share(reference["accuracy"])],
            [f"{name}, of the reference", f"{reference[score]:.4f} nats"],
            ["items judged alike", _share(found["agreement"])],
        ]
    rows.append(["items", str(found["items"])])
    console.print_table(("figure", "value"), rows)


def print_retrieval(size: int, found: dict[str, Any]) -> None:
    """Accuracy of finding facts, by length and depth."""
    reference = found["reference"]
    rows = [_bytes(size), ["accuracy", f"{_share(found['accuracy'])} (chance {_share(found['chance'])})"]]
    if reference is not None:
        rows += [
            ["accuracy of the reference", _share(reference["accuracy"])],
            ["questions judged alike", _share(found["agreement"])],
        ]
    rows.append(["documents of each length", str(found["documents"])])
    console.print_table(("figure", "value"), rows)
    columns = ["context", "depth", "accuracy", "margin", *(("reference", "its margin") if reference else ())]
    lines = []
    for index, cell in enumerate(found["grid"]):
        line = [str(cell["context"]), f"{cell['depth']:.3f}", _share(cell["accuracy"]), f"{cell['margin']:.3f}"]
        if reference is not None:
            beside = reference["grid"][index]
            line += [_share(beside["accuracy"]), f"{beside['margin']:.3f}"]
        lines.append(line)
    print()
    console.print_table(columns, lines)


def _bytes(size: int) -> list[str]:
    return ["bytes", f"{size} ({console.format_bytes(size)})"]


def _share(value: float) -> str:
    return f"{100 * value:.2f} %"
