"""The frontend: any supported model becomes one canonical ONNX graph.

``load`` is the whole of it. A reader per kind of file (``onnx_file``, ``huggingface``, ``gguf``, ``builtin``) checks
what it reads and hands a raw graph to ``normalise``; ``canonical`` states what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bitwright.frontend.model import CacheShape, ImportedModel

__all__ = ["CacheShape", "ImportedModel", "load"]


def load(
    model: str | Path, *, context: int | None = None, progress: Callable[[str, float], None] | None = None
) -> ImportedModel:
    """Import a model.

    Args:
        model: an ONNX file, an HF folder, a GGUF file, or a built-in name such as ``smollm2-135m``.
        context: positions to import; the model's own maximum by default. Rotary tables have this many rows.
        progress: called with the name of a phase and the fraction of it that is done, 0 to 1.

    Raises:
        InputError: for files that are missing, malformed or inconsistent.
        UnsupportedError: for a model that is not understood; it names the node, its op and its domain.
        UsageError: for a context that the model does not have.
    """
    # Readers and rewrites need onnx; importing this package must not.
    from bitwright.frontend import source
    from bitwright.frontend.assemble import assemble

    if progress is not None:
        progress("read and export", 0.0)
    return assemble(source.read(model, context), progress)
