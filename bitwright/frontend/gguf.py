"""Reader of a GGUF file: weights dequantized and tokenizer converted by transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bitwright.errors import BitwrightError, InputError
from bitwright.frontend import torch_model
from bitwright.frontend.assemble import Source
from bitwright.frontend.export import quiet
from bitwright.frontend.gguf_header import GgufHeader, broken, read_header
from bitwright.frontend.tokenizer_files import checked_generation

_SIZES = ("block_count", "embedding_length", "feed_forward_length", "context_length", "attention.head_count")


def read(path: Path, context: int | None, name: str | None = None) -> Source:
    """Load, check and export the model of a GGUF file.

    Raises:
        InputError, UnsupportedError, UsageError: see the parts called.
    """
    header = read_header(path)
    _check_metadata(header, str(path))
    where = {"gguf_file": path.name}
    config = torch_model.load_config(path.parent, **where)
    chosen = torch_model.chosen_context(config.get_text_config().max_position_embeddings, context, str(path))
    tokenizer = _tokenizer(path, header)
    model = torch_model.load_model(config, path.parent, sum(math.prod(t.shape) for t in header.tensors), **where)
    template = header.metadata.get("tokenizer.chat_template")
    return Source(
        torch_model.exported(model),
        name or str(header.metadata.get("general.name") or path.stem),
        chosen,
        tokenizer,
        template if isinstance(template, str) else None,
        _generation(header, str(path)),
    )


def _check_metadata(header: GgufHeader, where: str) -> None:
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise broken(where, f"general.architecture is {architecture!r}", "the name of an architecture")
    for name in _SIZES:
        size = header.metadata.get(f"{architecture}.{name}")
        if size is not None and (
            not isinstance(size, (int, list)) or (isinstance(size, int) and not 0 < size < 1 << 31)
        ):
            raise broken(where, f"{architecture}.{name} is {size!r}", "a positive 31-bit integer")
    layers = header.metadata.get(f"{architecture}.block_count", 0)
    if isinstance(layers, int) and layers > len(header.tensors):
        raise broken(where, f"{layers} layers", f"the file holds {len(header.tensors)} tensors")


def _tokenizer(path: Path, header: GgufHeader) -> bytes | None:
    """The tokenizer as ``tokenizers`` JSON; None where the file has none."""
    if "tokenizer.ggml.tokens" not in header.metadata:
        return None
    from transformers import AutoTokenizer

    try:
        with quiet():
            loaded = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, **torch_model.OFFLINE)
            text: str = loaded.backend_tokenizer.to_str()
    except BitwrightError:
        raise
    except Exception as error:  # the conversion raises what its parsers raise
        raise InputError(
            "the tokenizer cannot be converted",
            where=str(path),
            limit=str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__,
            remedy="use another GGUF of this model, or its HF folder",
        ) from error
    if header.metadata.get("tokenizer.ggml.pre") == "smollm":
        text = split_digits(text)
    return text.encode("utf-8")


def split_digits(text: str) -> str:
    """Let a tokenizer treat every digit by itself, as SmolLM does.

    GGUF names this pre-tokenizer ``smollm``; transformers' conversion ignores the name, and every number would be
    split wrongly.
    """
    spec = json.loads(text)
    digits = {"type": "Digits", "individual_digits": True}
    found = spec.get("pre_tokenizer")
    steps = found["pretokenizers"] if found and found["type"] == "Sequence" else [found] if found else []
    if digits not in steps:
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, *steps]}
    return json.dumps(spec, ensure_ascii=False)


def _generation(header: GgufHeader, where: str) -> dict[str, Any]:
    keys = {"bos_token_id": "tokenizer.ggml.bos_token_id", "eos_token_id": "tokenizer.ggml.eos_token_id"}
    found: dict[str, Any] = {name: header.metadata[key] for name, key in keys.items() if key in header.metadata}
    turn = header.metadata.get("tokenizer.ggml.eot_token_id")
    if turn is not None and "eos_token_id" in found and turn != found["eos_token_id"]:
        found["eos_token_id"] = [found["eos_token_id"], turn]
    return checked_generation(found, where)
