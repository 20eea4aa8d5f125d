"""The state of a training on disk, so that an interrupted one goes on."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.errors import InputError

if TYPE_CHECKING:
    import torch

    from bitwright.frontend.distill.student import Student

Numbers = tuple[float, float, int, float]
"""Divergence before training, its running mean, steps done, and seconds that they took."""


def keep(path: Path, student: Student, optimizer: torch.optim.Adam, numbers: Numbers) -> None:
    """Write latent numbers, scales and the optimizer's moments; the file is replaced when all of it is written."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"numbers": numbers, "leaves": student.leaves(), "optimizer": optimizer.state_dict()}, file)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def restore(path: Path, student: Student, optimizer: torch.optim.Adam) -> Numbers:
    """Take up what :func:`keep` wrote for the same student.

    Raises:
        InputError: the file is damaged.
    """
    import torch

    try:
        state = torch.load(path, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for leaf, kept in zip(student.leaves(), state["leaves"], strict=True):
                leaf.copy_(kept)
        before, running, done, seconds = state["numbers"]
        return float(before), float(running), int(done), float(seconds)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(
            "the state of an interrupted distillation cannot be read",
            where=str(path),
            limit=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy="delete the file: training begins again",
        ) from error
