"""Tokenizer, chat template and generation defaults from the files of an HF folder, or beside an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitwright.errors import InputError
from bitwright.frontend.json_file import optional_object, parse_object, read_bytes

_KEPT = ("bos_token_id", "eos_token_id", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "do_sample")


def tokenizer_json(folder: Path) -> bytes | None:
    """``tokenizer.json``, checked to be a JSON object with a model; None where there is none.

    Raises:
        InputError: for a file that is no tokenizer.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    content = read_bytes(path)
    if not isinstance(parse_object(content, str(path)).get("model"), dict):
        raise InputError(
            "the file is not a tokenizer", where=str(path), limit="an object with a 'model'", remedy="download it again"
        )
    return content


def chat_template(folder: Path) -> str | None:
    """``chat_template.jinja``, or the template named default in ``tokenizer_config.json``; None where there is none."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return read_bytes(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError("the chat template is not UTF-8", where=str(path), remedy="download it again") from error
    found = optional_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        found = next((x.get("template") for x in found if isinstance(x, dict) and x.get("name") == "default"), None)
    if found is not None and not isinstance(found, str):
        raise InputError(
            "chat_template is no text", where=str(folder / "tokenizer_config.json"), remedy="download it again"
        )
    return found


def generation(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Defaults of ``generation_config.json``, completed by ``config.json``; ``eos_token_id`` is always a list.

    Raises:
        InputError: for token ids that are no integers.
    """
    stated = optional_object(folder / "generation_config.json")
    merged = {name: config[name] for name in ("bos_token_id", "eos_token_id") if config.get(name) is not None}
    merged |= {name: stated[name] for name in _KEPT if stated.get(name) is not None}
    return checked_generation(merged, str(folder))


def checked_generation(found: dict[str, Any], where: str) -> dict[str, Any]:
    """``found`` with ``eos_token_id`` as a list of integers."""
    eos = found.get("eos_token_id")
    if eos is not None:
        found["eos_token_id"] = eos if isinstance(eos, list) else [eos]
    ids = [*found.get("eos_token_id", []), *([found["bos_token_id"]] if "bos_token_id" in found else [])]
    if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
        raise InputError(
            f"token ids {ids}",
            where=f"generation config of {where}",
            limit="non-negative integers",
            remedy="check the file",
        )
    return found
