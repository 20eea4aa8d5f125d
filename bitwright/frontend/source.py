"""From what the user calls a model to the reader that understands it."""

from __future__ import annotations

from pathlib import Path

from bitwright.errors import InputError
from bitwright.frontend import builtin
from bitwright.frontend.assemble import Source

_REMEDY = (
    "give an .onnx file, a .gguf file, a folder with config.json and safetensors, or one of: "
    f"{', '.join(builtin.PACKAGES)}"
)


def read(model: str | Path, context: int | None) -> Source:
    """Read ``model`` with the reader of its kind.

    Raises:
        InputError: where there is no such model, or nothing here reads it; and what the readers raise.
    """
    if str(model) in builtin.PACKAGES:
        from bitwright.frontend import gguf

        return gguf.read(builtin.path_of(str(model)), context, name=str(model))
    path = Path(model)
    if not path.exists():
        raise InputError(
            f"there is no model '{model}'",
            where=str(path),
            limit="an existing file or folder, or a built-in name",
            remedy=_REMEDY,
        )
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(
                "the folder holds no config.json", where=str(path), limit="config.json and safetensors", remedy=_REMEDY
            )
        from bitwright.frontend import huggingface

        return huggingface.read(path, context)
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        from bitwright.frontend import gguf

        return gguf.read(path, context)
    if suffix == ".onnx":
        from bitwright.frontend import onnx_file

        return onnx_file.read(path, context)
    raise InputError(
        f"'{path.name}' is no model that can be read",
        where=str(path),
        limit="the file ends in .onnx or .gguf",
        remedy=_REMEDY,
    )
