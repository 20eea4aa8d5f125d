"""Figures as files and as text: matplotlib without a display, and the same bytes for the same figure."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "drawing needs matplotlib", where=str(error), remedy="pip install 'bitwright[study]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def rendered(figure: Figure, kind: str) -> bytes:
    """The figure as ``png`` or ``svg``."""
    import matplotlib

    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    # Else identifiers in an SVG are random, and its look depends on the fonts of whoever opens it.
    with matplotlib.rc_context({"svg.hashsalt": "bitwright", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def inline_svg(figure: Figure) -> str:
    """The figure as an ``svg`` element of an HTML page."""
    text = rendered(figure, "svg").decode()
    return text[text.index("<svg") :]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or leave the old one as it is.

    Raises:
        InputError: it cannot be written.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise InputError(
            "the file cannot be written", where=str(path), limit=error.strerror, remedy="choose another place"
        ) from error
