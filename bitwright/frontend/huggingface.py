"""Reader of an HF folder: config.json, safetensors and tokenizer.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError, UnsupportedError
from bitwright.frontend import tokenizer_files, torch_model, torch_shell
from bitwright.frontend.assemble import Source
from bitwright.frontend.json_file import read_object
from bitwright.frontend.safetensors_header import read_header
from bitwright.frontend.stored_weights import stored_tensors

if TYPE_CHECKING:
    import onnx_ir as ir

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, all inside it.

    Raises:
        InputError: where an index names files outside the folder, or files that are missing.
        UnsupportedError: where the weights are in another format.
    """
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if not (folder / INDEX).exists():
        raise UnsupportedError(
            "the folder holds no safetensors weights",
            where=str(folder),
            limit=f"{SINGLE} or {INDEX}; pickled weights are never opened",
            remedy="convert the weights to safetensors",
        )
    mapping = read_object(folder / INDEX).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(name, str) for name in mapping.values()):
        raise InputError(
            "the index has no weight_map",
            where=str(folder / INDEX),
            limit="tensor name -> file name",
            remedy="download it again",
        )
    files = []
    for name in sorted(set(mapping.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(
                f"the index names the file '{name}'",
                where=str(folder / INDEX),
                limit="safetensors files in the same folder",
                remedy="do not use this model: its index points elsewhere",
            )
        if not (folder / name).is_file():
            raise InputError(
                f"the weight file '{name}' is missing",
                where=str(folder),
                limit="every file of the index",
                remedy="download it",
            )
        files.append(folder / name)
    return files


def read(folder: Path, context: int | None) -> Source:
    """Load, check and export the model of a folder.

    Raises:
        InputError, UnsupportedError, UsageError: see the parts called.
    """
    raw = read_object(folder / "config.json")
    files = weight_files(folder)
    for path in files:
        read_header(path)
    tokenizer = tokenizer_files.tokenizer_json(folder)
    template, generation = tokenizer_files.chat_template(folder), tokenizer_files.generation(folder, raw)
    config = torch_model.load_config(folder)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    chosen = torch_model.chosen_context(positions if isinstance(positions, int) else None, context, str(folder))
    return Source(_graph(config, folder, files), folder.resolve().name, chosen, tokenizer, template, generation)


def _graph(config: Any, folder: Path, files: Sequence[Path]) -> ir.Model:
    """The raw graph, with weights that stay in their files where they lie there as the module has them."""
    stored = stored_tensors(files)
    graph = None if stored is None else torch_shell.export_shell(config, stored, str(folder))
    if graph is not None:
        return graph
    elements = sum(math.prod(entry.shape) for path in files for entry in read_header(path).values())
    return torch_model.exported(torch_model.load_model(config, folder, elements))
