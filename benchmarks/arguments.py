"""What the command lines of paired benchmarks share: the model, our artifacts, where peers and figures are kept."""

from __future__ import annotations

import argparse
from pathlib import Path


def names(text: str) -> list[str]:
    """``a,b`` as a list; empty parts are dropped."""
    return [part for part in text.split(",") if part]


def integers(text: str) -> list[int]:
    """``1,2`` as a list."""
    return [int(part) for part in text.split(",")]


def paired_parser(program: str, text: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring ``text``, with the options that every paired benchmark has."""
    description, details = (text or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{program}",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("reference", type=Path, help="HF folder of a llama-architecture model")
    parser.add_argument("--artifact", type=Path, action="append", default=[], help="bitwright artifact (repeatable)")
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"rounds in the end, finished ones included ({rounds})"
    )
    parser.add_argument("--work", type=Path, default=Path("models/peers"), help="where the peers' models are kept")
    parser.add_argument("--json", type=Path, help="keep the figures there, and continue from what is there")
    return parser


def require_known(parser: argparse.ArgumentParser, chosen: list[str], known: tuple[str, ...]) -> None:
    """End with an error that names what is not known, and what is."""
    if unknown := set(chosen) - set(known):
        parser.error(f"not known: {', '.join(sorted(unknown))}; known are {', '.join(known)}")


def require_names(parser: argparse.ArgumentParser, artifacts: list[Path]) -> None:
    """End with an error unless artifacts can be told apart in the tables."""
    if len({path.name for path in artifacts}) < len(artifacts):
        parser.error("two artifacts have the same folder name, which is how the tables tell them apart")
